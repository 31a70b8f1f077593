"""The training loop: epochs of steps, cache refresh, metrics, checkpoints."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fgvpl_jax import interruption
from fgvpl_jax.data import Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json, written_whole
from fgvpl_jax.methods import Method
from fgvpl_jax.methods.interface import PixelMethod
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.cache_builder import CacheBuilder
from fgvpl_jax.training.checkpoints import Checkpoints, Position
from fgvpl_jax.training.epochs import HostSteps, ResidentSteps, Steps
from fgvpl_jax.training.inputs import FewShotInputs, Inputs
from fgvpl_jax.training.mesh import BatchLayout, batch_layout, batch_size_for, replicate
from fgvpl_jax.training.processes import agree_to_stop, is_writer, stoppable
from fgvpl_jax.training.resident import decode_resident
from fgvpl_jax.training.train_step import (
    StepMetrics,
    TrainState,
    make_resident_train_step,
    make_train_step,
    split_model,
)

# Is given each epoch's line of `metrics.jsonl` and the parameters at its end, on the first process.
Observer = Callable[[dict[str, float | int], nnx.State], None]
# What was fastest on two cores, for B/16, L/14 and 64 pixels in patches of 8.
CPU_PATCHES = 512
# Every part of a batch is compared with all of them, 8·s·e² FLOPs, which with far more is more than
# parts gain; with so many they still take 0.9 of the whole batch's time, six layers 192 wide.
MOST_KEYS_IN_PARTS = 4096


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
    observe: Observer,
) -> None:
    """Trains the model in place, going on from the newest checkpoint where there is one.

    Args:
        model: Freshly initialised from the run's seed.
        support: The few-shot images.
        validation: For what a method chooses before it is trained; None where there are none.
        config: See `fgvpl_jax/runs/default_config.py`; with the recipe filled in.
        inputs: What the method reads of the images.
        checkpoints: Written every `config.checkpoint_every_epochs` and after the last epoch.
        metrics_file: JSON lines, one an epoch; lines of epochs done again are dropped first.
        mesh: Devices.
        observe: Called after every epoch; must not keep the parameters, whose memory is reused.
    Raises:
        UserError: If a loss or a parameter is not finite; the last checkpoint is.
        Interrupted: If a signal asked for the end; the steps that it came upon are done and saved.
    """
    batch_size = min(config.batch_size, len(support))
    microbatch = config.microbatch or images_in_a_pass(model, mesh, len(support))
    layout = batch_layout(mesh, batch_size, microbatch)
    steps_per_epoch = -(-len(support) // batch_size)
    if checkpoints.latest_step is None:
        size = batch_size_for(mesh, config.batch_size, len(support))
        model.initialise(FewShotInputs(inputs, support, validation, size))
    graphdef, trainable, frozen = split_model(model)
    trainable, frozen = replicate(mesh, (trainable, frozen))
    if not config.epochs:
        if is_writer():
            keep_first_lines(metrics_file, 0)
        if checkpoints.latest_step is None:
            checkpoints.save(0, TrainState(trainable, None), Position())
        else:
            restore_model(model, checkpoints, mesh)
        return
    schedule = model.schedule(config.learning_rate, config.epochs, steps_per_epoch)
    optimizer = model.optimizer(schedule, config.weight_decay)
    build_cache: Callable[[nnx.State, nnx.State], VisualCache | None] = no_cache
    if model.uses_cache:
        size = batch_size_for(mesh, config.microbatch or config.batch_size, len(support))
        build_cache = CacheBuilder(
            graphdef,
            support,
            inputs=inputs,
            batch_size=size,
            max_bytes=resident_bytes(config),
            mesh=mesh,
        )
    state = TrainState(trainable, replicate(mesh, optimizer.init(trainable)))
    cache = build_cache(trainable, frozen) if config.cache_refresh == "once" else None
    position, epoch_start = Position(), None
    if checkpoints.latest_step is not None:
        state, position, epoch_start = checkpoints.restore(state)
        begun = f" and {len(position.steps)} steps" if position.steps else ""
        if is_writer():
            print(f"going on after epoch {position.epoch}{begun} of {config.epochs}")
    if is_writer():
        keep_first_lines(metrics_file, position.epoch)
    if position.epoch == config.epochs:
        nnx.update(model, state.trainable)
        return

    steps = steps_of(model, graphdef, optimizer, support, config, inputs, layout, mesh)
    choices = replicate(
        mesh, {name: jnp.float32(v) for name, v in model.starting_choices(config).items()}
    )

    def keep() -> None:
        step = position.epoch * steps_per_epoch + len(position.steps)
        try:
            checkpoints.save(step, state, position, epoch_start)
        except FloatingPointError as error:
            raise diverged(str(error), step) from error

    def diverged(problem: str, step: int) -> UserError:
        last = checkpoints.latest_epoch
        kept = f"the checkpoint of epoch {last} is finite" if last else "no checkpoint is there yet"
        return UserError(
            f"{problem} at step {step} (epoch {-(-step // steps_per_epoch)}), where the learning "
            f"rate is {schedule(step - 1):.3g}; {kept}: begin anew in another --workdir with a "
            f"lower --config.learning_rate ({config.learning_rate} now), and see that --mode=data "
            "finds nothing wrong"
        )

    with interruption.deferred():
        for epoch in range(position.epoch, config.epochs):
            started = time.monotonic() - position.seconds
            per_step = list(position.steps)
            refreshes = config.cache_refresh == "epoch" and model.uses_cache
            if refreshes and epoch_start is None:
                # A copy: steps give the state's memory away, and who goes on in the midst of
                # the epoch needs the cache that it began with.
                epoch_start = jax.tree.map(jnp.copy, state.trainable)
            try:
                with stoppable():
                    if epoch_start is not None:
                        cache = build_cache(epoch_start, frozen)
                    run_steps = steps.epoch(epoch, len(per_step))
            except interruption.Interrupted:
                keep()
                raise
            for after, metrics in run_steps(state, frozen, cache, choices):
                state = after
                per_step += metrics
                # What comes later is for the next step: all processes must go the same way.
                stopping = agree_to_stop()
                if stopping:
                    break
            for number, of_step in enumerate(per_step, start=epoch * steps_per_epoch + 1):
                if not np.isfinite(of_step.loss):
                    raise diverged(f"the loss is {of_step.loss}", number)
            if len(per_step) == steps_per_epoch:
                line = epoch_line(epoch, per_step, started)
                if is_writer():
                    append_line(metrics_file, line)
                    observe(line, state.trainable)
                position, epoch_start = Position(epoch + 1), None
                due = (epoch + 1) % config.checkpoint_every_epochs == 0
                if due or epoch + 1 == config.epochs or stopping:
                    keep()
            else:
                position = Position(epoch, per_step, time.monotonic() - started)
                keep()
            if stopping:
                break
    nnx.update(model, state.trainable)


def images_in_a_pass(model: Method, mesh: Mesh, num_support: int) -> int:
    """What `config.microbatch` is where the config leaves it open.

    Args:
        model: To be trained.
        mesh: Devices.
        num_support: Few-shot images s, with all of which a method with a cache compares every part
            of a batch.
    Returns:
        On one CPU as many images as have `CPU_PATCHES` patches, but a power of two, and at least
        one. 0, for the whole batch, elsewhere, and where a part costs much beside its images.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 0
    if not isinstance(model, PixelMethod) or not model.passes_are_cheap:
        return 0
    if model.uses_cache and num_support > MOST_KEYS_IN_PARTS:
        return 0
    patches = math.prod(model.image_encoder.vision.config.grid)
    return 1 << max(1, CPU_PATCHES // patches).bit_length() - 1


def steps_of(
    model: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    support: Split,
    config: ConfigDict,
    inputs: Inputs,
    layout: BatchLayout,
    mesh: Mesh,
) -> Steps:
    """Of photos on the devices, where the method reads pixels and `data.resident_gb` has room."""
    batch_size = min(config.batch_size, len(support))
    if isinstance(model, PixelMethod):
        photos = decode_resident(support, resident_bytes(config))
        if photos is not None:
            size = model.image_encoder.vision.config.image_size
            train_steps = make_resident_train_step(
                graphdef, optimizer, mesh, layout.num_passes, size
            )
            return ResidentSteps(
                train_steps, photos, support.labels, batch_size, layout, config.seed, mesh
            )
    train_step = make_train_step(graphdef, optimizer, mesh, layout.num_passes)
    return HostSteps(train_step, inputs, support, batch_size, layout, mesh)


def resident_bytes(config: ConfigDict) -> int:
    """What photos to crop from may take of each device, and the cache's photos of all of them."""
    return int(config.data.resident_gb * 1e9)


def no_cache(trainable: nnx.State, frozen: nnx.State) -> None:
    """The cache of a method without one."""


def restore_model(model: Method, checkpoints: Checkpoints, mesh: Mesh) -> int:
    """Puts the newest checkpoint's parameters into a model; returns its number of whole epochs."""
    _, trainable, _ = split_model(model)
    restored = checkpoints.restore(TrainState(replicate(mesh, trainable), None))
    nnx.update(model, restored.state.trainable)
    return restored.position.epoch


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


def append_line(file: Path, line: dict[str, float | int]) -> None:
    """Adds a line; it is on the disk before the checkpoint that counts it."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def keep_first_lines(file: Path, count: int) -> None:
    """Cuts a metrics file to its first `count` lines, creating it where there shall be none.

    Raises:
        UserError: As `read_metrics` does.
    """
    text = "".join(json.dumps(line) + "\n" for line in read_metrics(file, count))
    with written_whole(file) as stream:
        stream.write(text.encode())


def read_metrics(file: Path, count: int) -> list[dict[str, float | int]]:
    """The lines of the first `count` epochs.

    Raises:
        UserError: If they are not all there, or one is damaged.
    """
    if not count:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()[:count]
        metrics = [parse_json(line) for line in lines]
        found = [line["epoch"] for line in metrics if math.isfinite(line["seconds"])]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}): restore it, or begin anew in another --workdir"
        ) from error
    if found != list(range(1, count + 1)):
        raise UserError(
            f"{file} holds {len(found)} of the {count} epochs that were trained: restore it, or "
            "begin anew in another --workdir"
        )
    return metrics
