"""The training loop: epochs of steps, cache refresh, metrics, checkpoints."""

import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from fgvpl_jax.data import ImageCache, Split, Transform, random_crop_and_flip, train_batches
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.training.cache import CacheBuilder
from fgvpl_jax.training.checkpoints import Checkpoints
from fgvpl_jax.training.mesh import batch_layout, batch_size_for, replicate, split_batch
from fgvpl_jax.training.processes import is_writer, process_share
from fgvpl_jax.training.step import (
    StepBatch,
    StepMetrics,
    TrainState,
    make_optimizer,
    make_train_step,
    split_model,
)


def train(
    model: FGVPL,
    support: Split,
    config: ConfigDict,
    *,
    transform: Transform,
    image_cache: ImageCache | None,
    image_size: int,
    checkpoints: Checkpoints,
    metrics_file: Path,
    mesh: Mesh,
) -> None:
    """Trains the model in place, going on from the newest checkpoint where there is one.

    Args:
        model: Freshly initialised from the run's seed.
        support: The few-shot images.
        config: See `configs/common.py`.
        transform: The evaluation transform, under which the cache sees the images.
        image_cache: Where images under the transform are kept.
        image_size: Side of the augmented images.
        checkpoints: Written every `config.checkpoint_every_epochs` and after the last epoch.
        metrics_file: JSON lines, one an epoch; lines of epochs done again are dropped first.
        mesh: Devices.
    Raises:
        UserError: If the loss of an epoch is not finite.
    """
    batch_size = min(config.batch_size, len(support))
    layout = batch_layout(mesh, batch_size, config.microbatch)
    steps_per_epoch = -(-len(support) // batch_size)
    optimizer = make_optimizer(
        config.learning_rate, config.weight_decay, config.epochs * steps_per_epoch
    )
    graphdef, trainable, frozen = split_model(model)
    trainable, frozen = replicate(mesh, (trainable, frozen))
    build_cache = CacheBuilder(
        graphdef,
        support,
        transform=transform,
        image_cache=image_cache,
        batch_size=batch_size_for(mesh, config.microbatch or config.batch_size, len(support)),
        mesh=mesh,
    )
    cache = build_cache(trainable, frozen)  # with cache_refresh "once" this one stays
    state = TrainState(trainable, replicate(mesh, optimizer.init(trainable)))
    first_epoch = 0
    if checkpoints.latest_epoch is not None:
        state, first_epoch = checkpoints.restore(state), checkpoints.latest_epoch
        if is_writer():
            print(f"going on after epoch {first_epoch} of {config.epochs}")
    if is_writer():
        keep_first_lines(metrics_file, first_epoch)

    train_step = make_train_step(graphdef, optimizer, mesh, layout.num_passes)
    cache_logit_weight = replicate(mesh, jnp.asarray(config.cache_logit_weight, jnp.float32))
    progress = tqdm(
        range(first_epoch, config.epochs),
        desc="training",
        unit="epoch",
        initial=first_epoch,
        total=config.epochs,
        mininterval=1.0,
        disable=not is_writer(),
    )
    for epoch in progress:
        started = time.monotonic()
        if config.cache_refresh == "epoch" and epoch > 0:
            cache = build_cache(state.trainable, frozen)
        per_step = []
        for batch in train_batches(
            support,
            batch_size,
            augment=random_crop_and_flip(image_size),
            seed=config.seed,
            epoch=epoch,
            num_rows=layout.num_rows,
            share=process_share(),
        ):
            device_batch = split_batch(mesh, StepBatch(batch.images, batch.labels, batch.weights))
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, frozen, cache, cache_logit_weight, device_batch)
            per_step.append(metrics)
        line = epoch_line(epoch, jax.device_get(per_step), started)
        if not math.isfinite(line["loss"]):
            raise UserError(
                f"the loss of epoch {epoch + 1} is {line['loss']}: lower --config.learning_rate "
                f"({config.learning_rate} now); the last checkpoint is of epoch "
                f"{checkpoints.latest_epoch or 0}"
            )
        if is_writer():
            with metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        progress.set_postfix_str(f"loss {line['loss']:.4f}, accuracy {line['accuracy']:.3f}")
        done = epoch + 1
        if done % config.checkpoint_every_epochs == 0 or done == config.epochs:
            checkpoints.save(done, state)
    nnx.update(model, state.trainable)


def restore_model(model: FGVPL, checkpoints: Checkpoints, mesh: Mesh) -> int | None:
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
