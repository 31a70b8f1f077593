"""Logs of a training run: TensorBoard's event files and Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


@runtime_checkable
class TrainingLog(Protocol):
    """A log that stores numbers and pictures by epoch."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs an epoch's numbers by name."""

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], epoch: int) -> None:
        """Logs a picture."""

    def close(self) -> None:
        """Writes everything that is not written yet."""


class TensorBoardLog:
    """Event files for `tensorboard --logdir`; those of a resumed run replace repeated epochs.

    Args:
        folder: Folder for the files.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs an epoch's numbers by name."""
        for name, value in values.items():
            self._opened(epoch).add_scalar(name, value, epoch)

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], epoch: int) -> None:
        """Logs a picture."""
        self._opened(epoch).add_image(name, pixels, epoch, dataformats="HWC")

    def close(self) -> None:
        """Writes everything that is not written yet."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self, epoch: int) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
        return self._writer


class WandbLog:
    """A run at Weights & Biases, controlled by its own variables such as WANDB_MODE.

    Args:
        project: Name of the project.
        name: Name of the run.
        folder: Folder for the run's files.
        config: Config that is stored with the run.
    """

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(project=project, name=name, dir=str(folder), config=dict(config))

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Logs an epoch's numbers by name."""
        self._run.log({"epoch": epoch, **values})

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], epoch: int) -> None:
        """Logs a picture."""
        self._run.log({"epoch": epoch, name: self._image(pixels)})

    def close(self) -> None:
        """Writes everything that is not written yet."""
        self._run.finish()
