"""The training loop: begin or resume, run epochs of steps, write metrics and checkpoints."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from fgvpl_jax import interruption
from fgvpl_jax.data import Split
from fgvpl_jax.errors import SharedError
from fgvpl_jax.methods import Method
from fgvpl_jax.methods.interface import PixelMethod
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.batch_sources import (
    BatchSource,
    HostBatches,
    Pace,
    ResidentBatches,
    StepCall,
)
from fgvpl_jax.training.checkpoints import Checkpoints, Progress
from fgvpl_jax.training.few_shot_inputs import initialise
from fgvpl_jax.training.inputs import PixelInputs
from fgvpl_jax.training.mesh import batch_layout, batch_size_for, replicate
from fgvpl_jax.training.metrics_file import (
    EpochMetrics,
    append_line,
    epoch_metrics,
    keep_first_lines,
)
from fgvpl_jax.training.microbatches import default_microbatch
from fgvpl_jax.training.processes import agree_to_stop, is_writer, stoppable
from fgvpl_jax.training.resident import decode_resident
from fgvpl_jax.training.restoring import keep_initialised_model
from fgvpl_jax.training.setup import TrainingSetup, make_cache_builder, resident_bytes
from fgvpl_jax.training.train_step import (
    ChoiceArrays,
    StepMetrics,
    TrainState,
    make_resident_train_step,
    make_train_step,
    split_model,
)
from fgvpl_jax.training.visual_cache_builder import VisualCacheBuilder

# Called on process 0 after each epoch with its metrics and the parameters. It must not keep the
# parameters, whose memory the next step reuses.
EpochCallback = Callable[[EpochMetrics, nnx.State], None]


@dataclass(frozen=True)
class Job:
    """Settings and objects that do not change during one training.

    Attributes:
        config: Settings of the run.
        frozen: Frozen variables, on the devices.
        schedule: Learning rate by step.
        source: Supplies batches and the compiled step.
        choices: Values such as λ that training uses, on the devices.
        build_cache: Builds the visual cache from (trainable, frozen); None for a method without.
        steps_per_epoch: Number of steps in an epoch.
        checkpoints: Folder of the checkpoints.
        metrics_file: JSON lines, one per epoch.
    """

    config: ConfigDict
    frozen: nnx.State
    schedule: optax.Schedule
    source: BatchSource
    choices: ChoiceArrays
    build_cache: VisualCacheBuilder | None
    steps_per_epoch: int
    checkpoints: Checkpoints
    metrics_file: Path


def train(
    model: Method,
    support: Split,
    setup: TrainingSetup,
    *,
    checkpoints: Checkpoints,
    metrics_file: Path,
    on_epoch: Sequence[EpochCallback] = (),
) -> None:
    """Trains the model in place; resumes from the newest checkpoint if there is one.

    Args:
        model: Model that was initialised from the run's seed.
        support: The few-shot images.
        setup: Settings, inputs and devices.
        checkpoints: Written every `config.checkpoint_every_epochs` epochs and after the last.
        metrics_file: JSON lines, one per epoch; lines of epochs that are repeated are dropped.
        on_epoch: Called in order after every epoch.
    Raises:
        SharedError: If a loss or a parameter is not finite; the last checkpoint is finite.
        Interrupted: If a signal asked to stop; the steps that were running are done and saved.
    """
    config, mesh = setup.config, setup.mesh
    seconds = 0.0
    if checkpoints.latest_step is None:
        size = batch_size_for(mesh, config.batch_size, len(support))
        seconds = initialise(model, setup.inputs, support, setup.validation, size)
    if not config.epochs:
        keep_initialised_model(model, checkpoints, metrics_file, mesh, seconds)
        return
    graphdef, trainable, frozen = split_model(model)
    trainable, frozen = replicate(mesh, (trainable, frozen))
    steps_per_epoch = -(-len(support) // config.batch_size)
    schedule = model.schedule(config.learning_rate, config.epochs, steps_per_epoch)
    optimizer = model.optimizer(schedule, config.weight_decay)
    build_cache = None
    if model.uses_cache:
        build_cache = make_cache_builder(graphdef, support, setup, max_bytes=resident_bytes(config))
    cache = None
    if build_cache is not None and config.cache_refresh == "once":
        cache = build_cache(trainable, frozen)
    state = TrainState(trainable, replicate(mesh, optimizer.init(trainable)))
    progress = begin_or_resume(state, checkpoints, metrics_file, config.epochs)
    if progress.epoch == config.epochs:
        nnx.update(model, progress.state.trainable)
        return
    choices = {name: jnp.float32(v) for name, v in model.starting_choices(config).items()}
    job = Job(
        config=config,
        frozen=frozen,
        schedule=schedule,
        source=batch_source(model, graphdef, optimizer, support, setup),
        choices=replicate(mesh, choices),
        build_cache=build_cache,
        steps_per_epoch=steps_per_epoch,
        checkpoints=checkpoints,
        metrics_file=metrics_file,
    )
    nnx.update(model, run_epochs(job, progress, cache, on_epoch).trainable)


def begin_or_resume(
    state: TrainState, checkpoints: Checkpoints, metrics_file: Path, epochs: int
) -> Progress:
    """Returns where training starts: at `state`, or at the newest checkpoint.

    The metrics file is cut to the epochs that are done.
    """
    progress = Progress(state)
    if checkpoints.latest_step is not None:
        progress = checkpoints.restore(state)
        if is_writer():
            steps = f" and {len(progress.steps)} steps" if progress.steps else ""
            print(f"resuming after epoch {progress.epoch}{steps} of {epochs}")
    if is_writer():
        keep_first_lines(metrics_file, progress.epoch)
    return progress


def batch_source(
    model: Method,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    support: Split,
    setup: TrainingSetup,
) -> BatchSource:
    """Keeps photos on the devices if the method reads pixels and they fit `data.resident_gb`."""
    config, mesh = setup.config, setup.mesh
    batch_size = min(config.batch_size, len(support))
    microbatch = config.microbatch or default_microbatch(model, mesh, len(support))
    layout = batch_layout(mesh, batch_size, microbatch)
    if isinstance(setup.inputs, PixelInputs) and isinstance(model, PixelMethod):
        resample = setup.inputs.resample
        photos = decode_resident(support, resident_bytes(config), resample=resample)
        if photos is not None:
            size = model.image_encoder.vision.config.image_size
            crop = {"image_size": size, "resample": resample}
            program = make_resident_train_step(graphdef, optimizer, mesh, layout.num_passes, **crop)
            return ResidentBatches(
                program, photos, support.labels, batch_size, layout, config.seed, mesh
            )
    step = make_train_step(graphdef, optimizer, mesh, layout.num_passes)
    return HostBatches(step, setup.inputs, support, batch_size, layout, mesh)


def run_epochs(
    job: Job, progress: Progress, cache: VisualCache | None, on_epoch: Sequence[EpochCallback]
) -> TrainState:
    """Runs all epochs that are left; a signal ends them after the steps that are running.

    Args:
        job: Settings and objects that do not change during training.
        progress: State and position that training starts from.
        cache: Visual cache built before training; None if it is built for every epoch.
        on_epoch: Called after every epoch.
    Returns:
        The state after the last epoch.
    """
    pace, stopping = Pace(), False
    with interruption.deferred():
        while progress.epoch < job.config.epochs and not stopping:
            started = time.monotonic() - progress.seconds
            progress = with_epoch_start(job, progress)
            try:
                with stoppable():
                    if progress.epoch_start is not None and job.build_cache is not None:
                        cache = job.build_cache(progress.epoch_start, job.frozen)
                    reading = time.monotonic()
                    calls = job.source.epoch(progress.epoch, len(progress.steps), pace)
                    encoding_seconds = time.monotonic() - reading
            except interruption.Interrupted:
                save(job, progress)
                raise
            progress, stopping = run_epoch(job, progress, cache, calls, pace)
            progress = replace(progress, seconds=time.monotonic() - started)
            check_losses(job, progress)
            if len(progress.steps) == job.steps_per_epoch:
                progress = finish_epoch(job, progress, encoding_seconds, on_epoch)
            due = progress.epoch % job.config.checkpoint_every_epochs == 0
            if stopping or due or progress.epoch == job.config.epochs:
                save(job, progress)
    return progress.state


def with_epoch_start(job: Job, progress: Progress) -> Progress:
    """Keeps the parameters that an epoch begins with, if its visual cache is built from them.

    They are a copy, because steps give the state's memory away, and a run that is resumed within
    the epoch must build the same cache.
    """
    refreshes = job.build_cache is not None and job.config.cache_refresh == "epoch"
    if not refreshes or progress.epoch_start is not None:
        return progress
    return replace(progress, epoch_start=jax.tree.map(jnp.copy, progress.state.trainable))


def run_epoch(
    job: Job,
    progress: Progress,
    cache: VisualCache | None,
    calls: Iterator[StepCall],
    pace: Pace,
) -> tuple[Progress, bool]:
    """Runs the remaining steps of an epoch.

    Returns:
        The progress, and whether a signal ended the epoch early or after its last step.
    """
    stopping = False
    for state, steps in run_spans(
        job.source,
        calls,
        progress.state,
        job.frozen,
        cache,
        job.choices,
        pace,
    ):
        progress = replace(progress, state=state, steps=[*progress.steps, *steps])
        # A signal that comes later is for the next span: all processes must agree.
        stopping = agree_to_stop()
        if stopping:
            break
    return progress, stopping


def run_spans(
    source: BatchSource,
    calls: Iterator[StepCall],
    state: TrainState,
    frozen: nnx.State,
    cache: VisualCache | None,
    choices: ChoiceArrays,
    pace: Pace,
) -> Iterator[tuple[TrainState, list[StepMetrics]]]:
    """Runs the steps of an epoch in spans of about `SPAN_SECONDS`.

    Args:
        source: Its program does the steps.
        calls: Remaining calls of the epoch, from `source.epoch`.
        state: Trainable variables and optimizer state; donated.
        frozen: Frozen variables.
        cache: Visual cache; None for a method without one.
        choices: Values such as λ.
        pace: Number of steps in a span; updated after each.
    Yields:
        After each span the state and the metrics of its steps, fetched from the device.
    """
    call = next(calls, None)  # decodes the first batch while the cache is still being built
    jax.block_until_ready((state, cache))  # work that began earlier is not timed
    started = time.monotonic()
    # Bounds and metrics alone: the arguments of a call hold its batch on the device.
    span: list[tuple[int, int, StepMetrics]] = []
    while call is not None:
        first, last = call.first, call.last
        with jax.transfer_guard("disallow"):
            state, metrics = source.program(state, frozen, cache, choices, *call.arguments)
        if span:
            jax.block_until_ready(span[-1][2])  # keep at most two batches on the device
        span.append((first, last, metrics))
        call = next(calls, None)  # sends the next batch while this step runs
        num_steps = last - span[0][0]
        if num_steps >= pace.num_steps or call is None:
            fetched = jax.device_get(span)
            pace.update(num_steps, time.monotonic() - started)
            yield state, [step for done in fetched for step in source.step_metrics(*done)]
            span, started = [], time.monotonic()


def finish_epoch(
    job: Job, progress: Progress, encoding_seconds: float, on_epoch: Sequence[EpochCallback]
) -> Progress:
    """Writes the metrics of an epoch whose steps are done; returns the start of the next one."""
    if is_writer():
        line = epoch_metrics(progress.epoch + 1, progress.steps, progress.seconds, encoding_seconds)
        append_line(job.metrics_file, line)
        for callback in on_epoch:
            callback(line, progress.state.trainable)
    return Progress(progress.state, progress.epoch + 1)


def save(job: Job, progress: Progress) -> None:
    """Writes a checkpoint; its number is that of the steps done.

    Raises:
        SharedError: If a parameter is not finite; nothing is written then.
    """
    step = progress.epoch * job.steps_per_epoch + len(progress.steps)
    try:
        job.checkpoints.save(step, progress)
    except FloatingPointError as error:
        raise diverged(job, str(error), step) from error


def check_losses(job: Job, progress: Progress) -> None:
    """Refuses to continue after a loss that is not finite."""
    for number, metrics in enumerate(progress.steps, start=1):
        if not np.isfinite(metrics.loss):
            step = progress.epoch * job.steps_per_epoch + number
            raise diverged(job, f"the loss is {metrics.loss}", step)


def diverged(job: Job, problem: str, step: int) -> SharedError:
    """Returns the error for a training whose numbers are no longer finite."""
    last = job.checkpoints.latest_epoch
    kept = f"the checkpoint of epoch {last} is finite" if last else "there is no checkpoint yet"
    return SharedError(
        f"{problem} at step {step} (epoch {-(-step // job.steps_per_epoch)}), where the learning "
        f"rate is {job.schedule(step - 1):.3g}; {kept}: check the data (mode data), and start "
        f"again in another workdir with a lower learning_rate ({job.config.learning_rate} now)"
    )
