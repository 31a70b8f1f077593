"""Trains and evaluates: from a config to a trained, measured classifier in a workdir."""

import time

from ml_collections import ConfigDict

from fgvpl_jax.displays.epoch_progress import epoch_progress
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import AUTO
from fgvpl_jax.runs.automatic import evaluate_auto, train_auto
from fgvpl_jax.runs.copies import warn_of_copies
from fgvpl_jax.runs.cross_validation import cross_validate, read_held_out
from fgvpl_jax.runs.known_classes import known_classes_of, write_known_classes
from fgvpl_jax.runs.measuring import (
    fields_of,
    fold_scores,
    restored_model,
    selection_of,
    test_scores,
    write_support,
)
from fgvpl_jax.runs.prepare import check_is_outside_photos, prepare, write_settings
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import choose_on_validation
from fgvpl_jax.runs.training_monitor import LogTargets, TrainingMonitor, open_monitor
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import Checkpoints, train


def train_and_evaluate(
    config: ConfigDict, workdir: Workdir, targets: LogTargets | None = None
) -> RunResults:
    """Finishes training if it is unfinished, evaluates, and writes `results.json`.

    Args:
        config: Config of the run; see `default_config.py`.
        workdir: New or empty folder, or the folder of this run, which then resumes.
        targets: Logs to write in addition to the progress display.
    Returns:
        The results.
    Raises:
        UserError: For every mistake in config or data, before anything is written; if another
            command is running in the folder.
    """
    check_is_outside_photos(workdir, config)
    with workdir.locked():
        return carry_out(config, workdir, targets)


def carry_out(
    config: ConfigDict, workdir: Workdir, targets: LogTargets | None = None
) -> RunResults:
    """Does the work of `train_and_evaluate` in a folder that the caller has locked."""
    started, targets = time.monotonic(), targets or LogTargets()
    if config.method == AUTO and targets != LogTargets():
        raise UserError(
            f"method is {AUTO!r}, which trains several models and logs none of them: leave "
            "--tensorboard and --wandb out, or choose one method, such as --config.method=fg_vpl"
        )
    run = prepare(config, workdir)
    if config.method == AUTO:
        return train_auto(run, started)
    write_settings(run)
    if run.dataset.test is None:
        cross_validate(run)
    support = run.few_shot.support
    with open_monitor(run, targets) as monitor:
        with Checkpoints(workdir.checkpoints, run.provenance, to_train=True) as checkpoints:
            if checkpoints.latest_epoch != run.config.epochs:
                model = run.new_model(support)
                monitor.watch(model)
                with epoch_progress(run.config.epochs) as show_epoch:
                    train(
                        model,
                        support,
                        run.training_setup,
                        checkpoints=checkpoints,
                        metrics_file=workdir.metrics_file,
                        on_epoch=(show_epoch, monitor.on_epoch),
                    )
        results = measure(run, started, monitor)
    warn_of_copies(run)
    return results


def evaluate(workdir: Workdir, config: ConfigDict | None = None) -> RunResults:
    """Measures a trained run again from its checkpoint and rewrites `results.json`.

    Args:
        workdir: Folder of the run.
        config: Config that must agree with the run's, except for the locations of backbone and
            data; None takes the run's own config.
    """
    started = time.monotonic()
    stored = workdir.stored_config()
    trained = workdir.record_file if stored.method == AUTO else workdir.checkpoints
    if not trained.exists():
        raise UserError(f"{workdir.path} is not trained: train it first, with the same config")
    with workdir.locked():
        measure_again = evaluate_auto if stored.method == AUTO else measure
        return measure_again(prepare(stored if config is None else config, workdir), started)


def measure(run: Run, started: float, monitor: TrainingMonitor | None = None) -> RunResults:
    """Restores the final checkpoint, selects on validation, then reads the test split once.

    Nothing is written before the test split is read. `results.json`, which marks a run as complete,
    is written last.

    Args:
        run: Run whose training is complete.
        started: `time.monotonic()` when the command began.
        monitor: Receives the logits of the validation images.
    """
    few_shot = run.few_shot
    held_out = read_held_out(run) if run.dataset.test is None else None
    model, train_seconds = restored_model(run)
    evaluator, cache = run.evaluator(model, few_shot.support)
    chosen = choose_on_validation(evaluator, run)
    if held_out is not None and held_out.choices is not None:
        chosen = chosen._replace(choices=held_out.choices)
    if monitor is not None:
        monitor.on_validation(chosen.validation)
    selection = selection_of(chosen, model, run, held_out)
    scores = (
        test_scores(evaluator, run, chosen.choices, selection["temperature"])
        if held_out is None
        else fold_scores(held_out, few_shot.support.num_different)
    )
    known = known_classes_of(run)
    results = RunResults(
        **fields_of(run, len(few_shot.validation or ())),
        epochs=run.config.epochs,
        facts=model.facts(),
        **selection,
        **scores,
        none_of_these=None if known is None else known.rates,
        train_seconds=round(train_seconds, 2),
        wall_seconds=round(time.monotonic() - started, 1),
    )
    write_support(run, cache)
    write_known_classes(run, known)
    results.write(run.workdir)
    return results
