"""Models that are not trained now: restored from a checkpoint, or kept as they were initialised."""

from pathlib import Path

from flax import nnx
from jax.sharding import Mesh

from fgvpl_jax.methods import Method
from fgvpl_jax.training.checkpoints import Checkpoints, Progress
from fgvpl_jax.training.mesh import replicate
from fgvpl_jax.training.metrics_file import keep_first_lines
from fgvpl_jax.training.processes import is_writer
from fgvpl_jax.training.train_step import TrainState, split_model


def keep_initialised_model(
    model: Method, checkpoints: Checkpoints, metrics_file: Path, mesh: Mesh, seconds: float
) -> None:
    """Saves or restores the parameters of a method that trains for no epoch.

    Args:
        model: Model that was initialised, unless there is a checkpoint.
        checkpoints: Folder of the checkpoint.
        metrics_file: File that becomes empty, as no epoch was trained.
        mesh: Devices.
        seconds: Time that the initialisation took; saved with the parameters.
    """
    if is_writer():
        keep_first_lines(metrics_file, 0)
    if checkpoints.latest_step is None:
        _, trainable, _ = split_model(model)
        state = TrainState(replicate(mesh, trainable), None)
        checkpoints.save(0, Progress(state, seconds=seconds))
    else:
        restore_model(model, checkpoints, mesh)


def restore_model(model: Method, checkpoints: Checkpoints, mesh: Mesh) -> Progress:
    """Loads the newest checkpoint's parameters into a model; returns what it holds."""
    _, trainable, _ = split_model(model)
    progress = checkpoints.restore(TrainState(replicate(mesh, trainable), None))
    nnx.update(model, progress.state.trainable)
    return progress
