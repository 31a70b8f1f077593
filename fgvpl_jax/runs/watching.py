"""What of a training goes to TensorBoard or Weights & Biases: numbers, masks, confusions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from fgvpl_jax.displays.figures import confusion_figure
from fgvpl_jax.displays.overlay import centred_square, heat, with_outline
from fgvpl_jax.displays.training_logs import TensorBoardLog, TrainingLog, WandbLog
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import Method
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import Labelled
from fgvpl_jax.runs.settings import plain
from fgvpl_jax.training import is_writer, split_model

NUM_PHOTOS = 6
NUM_PICTURES = 10  # of a training, evenly spaced
SIDE = 160  # pixels of each square of a picture
MOST_CONFUSED = 100  # classes; the matrix of more cannot be read


@dataclass(frozen=True)
class Watch:
    """Where a person wants to watch a training.

    Attributes:
        tensorboard: Whether event files go to the run's folder `tensorboard`.
        wandb_project: Of Weights & Biases; None for not there.
    """

    tensorboard: bool = False
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        """Raises `UserError` now, before there is a run, if a package is missing."""
        if self.wandb_project is not None:
            try:
                import wandb  # noqa: F401
            except ModuleNotFoundError as error:
                raise UserError(
                    "--wandb needs the extra `wandb`: pip install -c constraints.txt -e '.[wandb]' "
                    "in a checkout, otherwise pip install wandb"
                ) from error


class Watcher:
    """Sends to the logs what there is to see of one run; without logs, nothing."""

    def __init__(self, run: Run, logs: list[TrainingLog]):
        self._run = run
        self._logs = logs
        self._pictures: MaskPictures | None = None

    def watch(self, model: Method) -> None:
        """Names the model whose training begins."""
        if self._logs and model.finds_objects:
            self._pictures = MaskPictures(self._run, model)

    def epoch(self, line: Mapping[str, float | int], trainable: nnx.State) -> None:
        """Takes an epoch's numbers and, now and then, pictures of where the model looks."""
        number, last = int(line["epoch"]), self._run.config.epochs
        values = {f"train/{k}": float(v) for k, v in line.items() if k != "epoch"}
        for log in self._logs:
            log.scalars(values, number)
        every = -(-last // NUM_PICTURES)
        if self._pictures is not None and (number == 1 or number == last or not number % every):
            picture = self._pictures.draw(trainable)
            for log in self._logs:
                log.picture("train/object_masks", picture, number)

    def validated(self, validation: Labelled | None) -> None:
        """Takes what the finished model says of the validation images."""
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
def watching(run: Run, watch: Watch) -> Iterator[Watcher]:
    """Opens the logs that are wanted; of several processes the first has them."""
    logs: list[TrainingLog] = []
    if is_writer():
        place = run.workdir.path
        if watch.tensorboard:
            logs.append(TensorBoardLog(place / "tensorboard"))
        if watch.wandb_project is not None:
            logs.append(WandbLog(watch.wandb_project, place.name, place, plain(run.config)))
    try:
        yield Watcher(run, logs)
    finally:
        for log in logs:
            log.close()


class MaskPictures:
    """A few support photos with attention map and object mask under changing parameters.

    Args:
        run: Supplies the photos, one of each of the first classes.
        model: Of the training.
    """

    def __init__(self, run: Run, model: Method):
        support = run.few_shot.support
        _, first = np.unique(support.labels, return_index=True)
        photos = [support.image(int(place)) for place in first[:NUM_PHOTOS]]
        self._grid = run.clip.vision.grid
        self._squares = [centred_square(photo) for photo in photos]
        crops = np.stack([run.clip.resize_and_crop(photo) for photo in photos])
        graphdef, _, frozen = split_model(model)

        @jax.jit
        def look(trainable, frozen, crops):
            features = nnx.merge(graphdef, trainable, frozen).features(crops)
            return features.attention_map, features.object_mask

        # From the host: these arrays are on all of the run's devices, this program on one.
        self._look = lambda trainable: jax.device_get(
            look(jax.device_get(trainable), frozen, crops)
        )

    def draw(self, trainable: nnx.State) -> UInt8[np.ndarray, "H W 3"]:
        """One row a photo: itself, the attention map on it, the object in it."""
        maps, masks = self._look(trainable)
        sheet = Image.new("RGB", (3 * SIDE, len(self._squares) * SIDE))
        for row, square in enumerate(self._squares):
            attention = heat(maps[row].reshape(self._grid))
            panels = (
                square,
                Image.blend(square, attention, 0.55),
                with_outline(square, masks[row].reshape(self._grid)),
            )
            for column, panel in enumerate(panels):
                sheet.paste(panel.resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
        return np.asarray(sheet)
