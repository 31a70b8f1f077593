"""Where a training can be watched: TensorBoard's event files, Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8


@runtime_checkable
class TrainingLog(Protocol):
    """Takes numbers and pictures by epoch."""

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Takes an epoch's numbers by name."""

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], epoch: int) -> None:
        """Takes a picture."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoardLog:
    """Event files, for `tensorboard --logdir`; a resumed run's replace what they repeat.

    Args:
        folder: Where they go.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._writer: Any = None

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Takes an epoch's numbers by name."""
        for name, value in values.items():
            self._opened(epoch).add_scalar(name, value, epoch)

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], epoch: int) -> None:
        """Takes a picture."""
        self._opened(epoch).add_image(name, pixels, epoch, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self, epoch: int) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=epoch)
        return self._writer


class WandbLog:
    """A run at Weights & Biases, which its own variables (WANDB_MODE and so on) govern.

    Args:
        project: Its project.
        name: The run's.
        folder: Where its files go.
        config: What it is filed under.
    """

    def __init__(self, project: str, name: str, folder: Path, config: Mapping[str, Any]):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(project=project, name=name, dir=str(folder), config=dict(config))

    def scalars(self, values: Mapping[str, float], epoch: int) -> None:
        """Takes an epoch's numbers by name."""
        self._run.log({"epoch": epoch, **values})

    def picture(self, name: str, pixels: UInt8[np.ndarray, "H W 3"], epoch: int) -> None:
        """Takes a picture."""
        self._run.log({"epoch": epoch, name: self._image(pixels)})

    def close(self) -> None:
        """Writes what is left."""
        self._run.finish()
