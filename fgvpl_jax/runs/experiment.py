"""Trains and evaluates: from a config to a trained, measured classifier in a workdir."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fgvpl_jax.data import ShapesSplit, few_shot_record
from fgvpl_jax.displays.epoch_progress import epoch_progress
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import (
    Evaluator,
    MaskIoU,
    Predictions,
    mask_iou,
    score,
    to_saved_predictions,
)
from fgvpl_jax.methods import Choices, LabelledLogits, Method
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.runs.copies import warn_of_copies
from fgvpl_jax.runs.cross_validation import (
    HeldOut,
    accuracy_interval,
    cross_validate,
    read_held_out,
)
from fgvpl_jax.runs.more_photos import learning_curve_of
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.results import ImageCounts, RunResults
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import Chosen, calibration, choose_on_validation
from fgvpl_jax.runs.training_monitor import LogTargets, TrainingMonitor, open_monitor
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import Checkpoints, read_metrics, restore_model, to_host, train


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
    with workdir.locked():
        return carry_out(config, workdir, targets)


def carry_out(
    config: ConfigDict, workdir: Workdir, targets: LogTargets | None = None
) -> RunResults:
    """Does the work of `train_and_evaluate` in a folder that the caller has locked."""
    started = time.monotonic()
    run = prepare(config, workdir)
    if not workdir.config_file.exists():
        workdir.write(workdir.few_shot_file, few_shot_record(run.few_shot))
        workdir.write_config(run.config, asdict(run.clip.identity))
    if run.dataset.test is None:
        cross_validate(run)
    support = run.few_shot.support
    with open_monitor(run, targets or LogTargets()) as monitor:
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
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{workdir.path} is not trained: train it first, with the same config")
    with workdir.locked():
        return measure(prepare(stored if config is None else config, workdir), started)


def measure(run: Run, started: float, monitor: TrainingMonitor | None = None) -> RunResults:
    """Restores the final checkpoint, selects on validation, then reads the test split once.

    Nothing is written before the test split is read. `results.json`, which marks a run as complete,
    is written last.

    Args:
        run: Run whose training is complete.
        started: `time.monotonic()` when the command began.
        monitor: Receives the logits of the validation images.
    """
    config, few_shot = run.config, run.few_shot
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
        else fold_scores(held_out)
    )
    results = RunResults(
        method=config.method,
        benchmark=config.benchmark,
        backbone=run.clip.identity,
        shots=config.shots,
        seed=config.seed,
        epochs=config.epochs,
        num_classes=len(run.dataset.class_names),
        split_protocol=run.dataset.split_protocol,
        counts=ImageCounts(
            train=len(few_shot.support),
            validation=len(few_shot.validation or ()),
            test=len(run.dataset.test or ()),
        ),
        facts=model.facts(),
        **selection,
        **scores,
        learning_curve=learning_curve_of(run),
        train_seconds=round(train_seconds, 2),
        wall_seconds=round(time.monotonic() - started, 1),
    )
    write_support(run, cache)
    results.write(run.workdir)
    return results


def restored_model(run: Run) -> tuple[Method, float]:
    """Returns the model at the end of its training.

    Returns:
        The model, and the seconds that its training took: all epochs, or one fit.
    Raises:
        UserError: If the newest checkpoint is of an earlier epoch.
    """
    model = run.new_model(run.few_shot.support)
    with Checkpoints(run.workdir.checkpoints, run.provenance) as checkpoints:
        progress = restore_model(model, checkpoints, run.mesh)
    if progress.epoch != run.config.epochs:
        raise UserError(
            f"{run.workdir.path} is trained for {progress.epoch} of {run.config.epochs} epochs: "
            "finish its training with the same config"
        )
    return model, progress.seconds + sum_of_seconds(run.workdir.metrics_file, progress.epoch)


def write_support(run: Run, cache: VisualCache | None) -> None:
    """Writes `support.npz`: names and labels of the support images, and their visual cache."""
    support = run.few_shot.support
    run.workdir.write_arrays(
        run.workdir.support_file,
        **cache_columns(cache),
        labels=support.labels,
        keys=np.array(support.keys),
        root=np.array(str(support.root.absolute())),
    )


def cache_columns(cache: VisualCache | None) -> dict[str, np.ndarray]:
    """Returns the features of a visual cache without padding; empty without a cache."""
    if cache is None:
        return {}
    image, object_, _, valid = to_host(tuple(cache))
    columns = {"image": image, "object": object_}
    return {name: np.asarray(x)[valid] for name, x in columns.items() if x is not None}


def selection_of(
    chosen: Chosen, model: Method, run: Run, held_out: HeldOut | None
) -> dict[str, Any]:
    """Returns the fields of `RunResults` about the choices, such as λ, and the temperature.

    The temperature is fitted on the validation images and on the support images that the model
    knows held-out logits of. Without either, it is fitted on the folds. With too few images, or if
    it does not help, it is 1.
    """
    selection: dict[str, Any] = {
        "choices": chosen.choices,
        "validation_accuracy": chosen.accuracies,
        "validation_unreadable": chosen.unreadable,
        "temperature": 1.0,
    }
    if run.config.calibrate:
        photos = {"held-out support": model.held_out_logits(), "validation": chosen.validation}
        if held_out is not None and not any(photos.values()):
            photos = {"folds": LabelledLogits(held_out.logits, held_out.labels)}
        selection |= calibration(photos)
    return selection


def sum_of_seconds(metrics_file: Path, epochs: int) -> float:
    """Returns the duration of all epochs, including those before an interruption."""
    return math.fsum(line["seconds"] for line in read_metrics(metrics_file, epochs))


def test_scores(
    evaluator: Evaluator, run: Run, choices: Choices, temperature: float
) -> dict[str, Any]:
    """Reads the test split once, writes `predictions.npz`, and returns the fields of the scores."""
    test = run.dataset.test
    assert test is not None
    predictions = evaluator.predict(test, choices, name="test")
    tempered = score(predictions.logits / temperature, predictions.labels)
    saved = to_saved_predictions(
        predictions.logits,
        predictions.zero_shot_logits,
        predictions.labels,
        predictions.indices,
        temperature=temperature,
        class_names=run.dataset.class_names,
    )
    run.workdir.write_arrays(run.workdir.predictions_file, **saved._asdict())
    return {
        **scores_of(predictions, "test"),
        "test_nll_tempered": tempered.nll,
        "test_ece_tempered": tempered.ece,
        "test_images_read": len(predictions.labels),
        "unreadable": predictions.unreadable,
        "mask_iou": mask_scores(run, predictions),
    }


def fold_scores(held_out: HeldOut) -> dict[str, Any]:
    """Returns the fields of the cross-validated scores; the test accuracy is None."""
    right = int((held_out.logits.argmax(axis=1) == held_out.labels).sum())
    return {
        "test_accuracy": None,
        **scores_of(held_out, "cv"),
        "cv_interval": accuracy_interval(right, len(held_out.labels)),
        "unreadable": (),
    }


def scores_of(predictions: Predictions | HeldOut, name: str) -> dict[str, float]:
    """Returns all scores as `name_…`, and those of zero-shot CLIP as `zero_shot_…`."""
    ours = score(predictions.logits, predictions.labels)._asdict()
    plain_clip = score(predictions.zero_shot_logits, predictions.labels)._asdict()
    return {f"{name}_{key}": value for key, value in ours.items()} | {
        f"zero_shot_{key}": value for key, value in plain_clip.items()
    }


def mask_scores(run: Run, predictions: Predictions) -> MaskIoU | None:
    """Returns the IoU of the object masks; None if the data has no true masks."""
    test = run.dataset.test
    if predictions.object_masks is None or not isinstance(test, ShapesSplit):
        return None
    truth = np.stack([test.scene(int(i)).mask for i in predictions.indices])
    return mask_iou(predictions.object_masks, truth, run.clip.vision.grid)
