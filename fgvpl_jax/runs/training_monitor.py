"""Logs a training run to TensorBoard or Weights & Biases: numbers, masks, confusion matrix."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fgvpl_jax.displays.figures import confusion_figure
from fgvpl_jax.displays.mask_pictures import MaskPictures
from fgvpl_jax.displays.overlay import seen_square
from fgvpl_jax.displays.training_logs import TensorBoardLog, TrainingLog, WandbLog
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import LabelledLogits, Method
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.settings import plain
from fgvpl_jax.training import is_writer

NUM_PHOTOS = 6
NUM_PICTURES = 10  # per training run, evenly spaced
MOST_CONFUSED = 100  # classes; the matrix of more classes cannot be read


@dataclass(frozen=True)
class LogTargets:
    """Which logs a training run writes.

    Attributes:
        tensorboard: Whether to write event files to the folder `tensorboard` of the workdir.
        wandb_project: Project of Weights & Biases to log to; None for no such log.
    """

    tensorboard: bool = False
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        """Raises `UserError` if a package is missing, before there is a run."""
        if self.wandb_project is not None:
            try:
                import wandb  # noqa: F401
            except ModuleNotFoundError as error:
                raise UserError(
                    "logging to Weights & Biases needs the extra `wandb`: pip install -c "
                    "constraints.txt -e '.[wandb]' in a checkout, otherwise pip install wandb"
                ) from error


class TrainingMonitor:
    """Sends the metrics and pictures of one run to its logs; without logs, does nothing."""

    def __init__(self, run: Run, logs: list[TrainingLog]):
        self._run = run
        self._logs = logs
        self._pictures: MaskPictures | None = None

    def watch(self, model: Method) -> None:
        """Sets the model to draw pictures of; called when its training begins."""
        if self._logs and model.finds_objects:
            support, clip = self._run.few_shot.support, self._run.clip
            _, first = np.unique(support.labels, return_index=True)
            photos = [support.image(int(place)) for place in first[:NUM_PHOTOS]]
            crops = np.stack([clip.resize_and_crop(photo) for photo in photos])
            seen_box = clip.image_processor.seen_box
            squares = [seen_square(photo, seen_box(*photo.size)) for photo in photos]
            self._pictures = MaskPictures(model, squares, crops, clip.vision.grid)

    def on_epoch(self, line: Mapping[str, float | int], trainable: nnx.State) -> None:
        """Logs the metrics of an epoch and, at up to ten epochs, pictures of the object masks."""
        number, last = int(line["epoch"]), self._run.config.epochs
        values = {f"train/{k}": float(v) for k, v in line.items() if k != "epoch"}
        for log in self._logs:
            log.scalars(values, number)
        every = -(-last // NUM_PICTURES)
        if self._pictures is not None and (number == 1 or number == last or not number % every):
            picture = self._pictures.draw(trainable)
            for log in self._logs:
                log.picture("train/object_masks", picture, number)

    def on_validation(self, validation: LabelledLogits | None) -> None:
        """Logs accuracy and confusion matrix of the trained model on the validation images."""
        names = self._run.dataset.class_names
        if not self._logs or validation is None:
            return
        guesses, last = validation.logits.argmax(axis=1), self._run.config.epochs
        accuracy = float((guesses == validation.labels).mean())
        for log in self._logs:
            log.scalars({"validation/accuracy": accuracy}, last)
        if len(names) > MOST_CONFUSED:
            return
        confusion = np.zeros((len(names), len(names)), np.int64)
        np.add.at(confusion, (validation.labels, guesses), 1)
        canvas = FigureCanvasAgg(confusion_figure(confusion, names, "validation images"))
        canvas.draw()
        pixels = np.array(canvas.buffer_rgba())[..., :3]
        for log in self._logs:
            log.picture("validation/confusion", pixels, last)


@contextmanager
def open_monitor(run: Run, targets: LogTargets) -> Iterator[TrainingMonitor]:
    """Opens the logs of a run on process 0, and closes them at the end of the block."""
    logs: list[TrainingLog] = []
    if is_writer():
        folder = run.workdir.path
        if targets.tensorboard:
            logs.append(TensorBoardLog(folder / "tensorboard"))
        if targets.wandb_project is not None:
            logs.append(WandbLog(targets.wandb_project, folder.name, folder, plain(run.config)))
    try:
        yield TrainingMonitor(run, logs)
    finally:
        for log in logs:
            log.close()
