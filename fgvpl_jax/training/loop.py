"""The training loop: epochs of steps, cache refresh, metrics, checkpoints."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fgvpl_jax.data import Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import Method
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.cache import CacheBuilder
from fgvpl_jax.training.checkpoints import Checkpoints
from fgvpl_jax.training.inputs import FewShotInputs, Inputs
from fgvpl_jax.training.mesh import batch_size_for, replicate, split_batch
from fgvpl_jax.training.step import (
    StepBatch,
    StepMetrics,
    TrainState,
    make_train_step,
    split_model,
)


def train(
    model: Method,
    support: Split,
    validation: Split | None,
    config: ConfigDict,
    *,
    inputs: Inputs,
    checkpoints: Checkpoints,
    metrics_file: Path,
    mesh: Mesh,
) -> None:
    """Trains the model in place, going on from the newest checkpoint where there is one.

    Args:
        model: Freshly initialised from the run's seed.
        support: The few-shot images.
        validation: For what a method chooses before it is trained; None where there are none.
        config: See `configs/common.py`; with the recipe filled in.
        inputs: What the method reads of the images.
        checkpoints: Written every `config.checkpoint_every_epochs` and after the last epoch.
        metrics_file: JSON lines, one an epoch; lines of epochs done again are dropped first.
        mesh: Devices.
    Raises:
        UserError: If the loss of an epoch is not finite.
    """
    batch_size = batch_size_for(mesh, config.batch_size, len(support))
    steps_per_epoch = -(-len(support) // batch_size)
    if checkpoints.latest_epoch is None:
        model.initialise(FewShotInputs(inputs, support, validation, batch_size))
    graphdef, trainable, frozen = split_model(model)
    trainable, frozen = replicate(mesh, (trainable, frozen))
    keep_first_lines(metrics_file, checkpoints.latest_epoch or 0)
    if not config.epochs:
        checkpoints.save(0, TrainState(trainable, None))
        return
    optimizer = model.optimizer(
        config.learning_rate, config.weight_decay, config.epochs, steps_per_epoch
    )
    build_cache: Callable[[nnx.State, nnx.State], VisualCache | None] = no_cache
    if model.uses_cache:
        build_cache = CacheBuilder(
            graphdef, support, inputs=inputs, batch_size=batch_size, mesh=mesh
        )
    cache = build_cache(trainable, frozen)  # with cache_refresh "once" this one stays
    state = TrainState(trainable, replicate(mesh, optimizer.init(trainable)))
    first_epoch = 0
    if checkpoints.latest_epoch is not None:
        state, first_epoch = checkpoints.restore(state), checkpoints.latest_epoch
        print(f"going on after epoch {first_epoch} of {config.epochs}")

    train_step = make_train_step(graphdef, optimizer)
    choices = replicate(
        mesh, {name: jnp.float32(v) for name, v in model.starting_choices(config).items()}
    )
    progress = tqdm(
        range(first_epoch, config.epochs),
        desc="training",
        unit="epoch",
        initial=first_epoch,
        total=config.epochs,
        mininterval=1.0,
    )
    for epoch in progress:
        started = time.monotonic()
        if config.cache_refresh == "epoch" and epoch > 0:
            cache = build_cache(state.trainable, frozen)
        per_step = []
        for batch in inputs.epoch(support, batch_size, epoch):
            device_batch = split_batch(
                mesh, StepBatch(batch.inputs, batch.labels, batch.weights, batch.indices)
            )
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, frozen, cache, choices, device_batch)
            per_step.append(metrics)
        line = epoch_line(epoch, jax.device_get(per_step), started)
        if not math.isfinite(line["loss"]):
            raise UserError(
                f"the loss of epoch {epoch + 1} is {line['loss']}: lower --config.learning_rate "
                f"({config.learning_rate} now); the last checkpoint is of epoch "
                f"{checkpoints.latest_epoch or 0}"
            )
        with metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        progress.set_postfix_str(f"loss {line['loss']:.4f}, accuracy {line['accuracy']:.3f}")
        done = epoch + 1
        if done % config.checkpoint_every_epochs == 0 or done == config.epochs:
            checkpoints.save(done, state)
    nnx.update(model, state.trainable)


def no_cache(trainable: nnx.State, frozen: nnx.State) -> None:
    """The cache of a method without one."""


def restore_model(model: Method, checkpoints: Checkpoints, mesh: Mesh) -> int | None:
    """Puts the newest checkpoint's parameters into a model; returns its number of epochs."""
    _, trainable, _ = split_model(model)
    state = checkpoints.restore(TrainState(replicate(mesh, trainable), None))
    nnx.update(model, state.trainable)
    return checkpoints.latest_epoch


def epoch_line(epoch: int, per_step: list[StepMetrics], started: float) -> dict[str, float | int]:
    """One line of `metrics.jsonl`; epochs count from 1; images are augmented.

    Args:
        epoch: From 0.
        per_step: Fetched from the device, so that all the epoch's work is over.
        started: `time.monotonic()` at the epoch's start.
    """
    seconds = time.monotonic() - started
    loss, correct, weight = (float(sum(column)) for column in zip(*per_step, strict=True))
    return {
        "epoch": epoch + 1,
        "loss": loss / weight,
        "accuracy": correct / weight,
        "seconds": round(seconds, 3),
        "images_per_second": round(weight / seconds, 1),
    }


def keep_first_lines(file: Path, count: int) -> None:
    """Cuts a metrics file to its first `count` lines, creating it where it is missing."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text("".join(text.splitlines(keepends=True)[:count]), encoding="utf-8")
