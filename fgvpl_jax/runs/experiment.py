"""The main job: from a config to a trained, measured classifier in a workdir."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fgvpl_jax.data import ShapesSplit, few_shot_record
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Evaluator, Predictions, mask_iou, score, to_saved_predictions
from fgvpl_jax.methods import Choices
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.runs.cross_validation import (
    HeldOut,
    accuracy_interval,
    cross_validate,
    read_held_out,
)
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import Chosen, Labelled, calibration, choose_on_validation
from fgvpl_jax.runs.watching import Watch, Watcher, watching
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import Checkpoints, read_metrics, restore_model, to_host


def train_and_evaluate(
    config: ConfigDict, workdir: Workdir, watch: Watch | None = None
) -> dict[str, Any]:
    """Trains where training is unfinished, then evaluates; returns and writes `results.json`.

    Args:
        config: See `default_config.py`.
        workdir: An empty or new folder, or this very run's, which then goes on.
        watch: Where the training can be watched, beside the progress that is shown.
    Raises:
        UserError: For every mistake in config or data, before anything is written; if another
            command is at work in the folder.
    """
    with workdir.locked():
        return carry_out(config, workdir, watch)


def carry_out(config: ConfigDict, workdir: Workdir, watch: Watch | None = None) -> dict[str, Any]:
    """As `train_and_evaluate`, in a folder that the caller holds."""
    started = time.monotonic()
    run = prepare(config, workdir)
    if not workdir.config_file.exists():
        workdir.write(workdir.few_shot_file, few_shot_record(run.few_shot))
        workdir.write_config(run.config, asdict(run.clip.identity))
    if run.dataset.test is None:
        cross_validate(run)
    support = run.few_shot.support
    with watching(run, watch or Watch()) as watcher:
        with Checkpoints(workdir.checkpoints, run.provenance, to_train=True) as checkpoints:
            if checkpoints.latest_epoch != run.config.epochs:
                model = run.new_model(support)
                watcher.watch(model)
                run.train(model, support, checkpoints, workdir.metrics_file, watcher.epoch)
        return measure(run, started, watcher)


def evaluate(workdir: Workdir, config: ConfigDict | None = None) -> dict[str, Any]:
    """Measures a trained run again from its checkpoint; rewrites `results.json`.

    Args:
        workdir: A run's folder.
        config: Must agree with the run's, the places of backbone and data apart; None takes
            the run's own.
    """
    started = time.monotonic()
    stored = workdir.stored_config()
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{workdir.path} is not trained: use --mode=train with the same config")
    with workdir.locked():
        return measure(prepare(stored if config is None else config, workdir), started)


def measure(run: Run, started: float, watcher: Watcher | None = None) -> dict[str, Any]:
    """Restores the final checkpoint, selects on validation, then reads the test split once.

    Nothing is written before the test split is read; `results.json`, by which a run is known to be
    complete, comes last.

    Args:
        run: A run whose training is complete.
        started: `time.monotonic()` when the command began.
        watcher: Is shown what the validation images came to.
    """
    config, few_shot = run.config, run.few_shot
    held_out = read_held_out(run) if run.dataset.test is None else None
    model = run.new_model(few_shot.support)
    with Checkpoints(run.workdir.checkpoints, run.provenance) as checkpoints:
        epoch = restore_model(model, checkpoints, run.mesh)
    if epoch != config.epochs:
        raise UserError(
            f"{run.workdir.path} is trained for {epoch} of {config.epochs} epochs: "
            "finish it with --mode=train and the same config"
        )
    evaluator, cache = run.evaluator(model, few_shot.support)
    chosen = choose_on_validation(evaluator, run)
    if watcher is not None:
        watcher.validated(chosen.validation)
    selection = selection_of(chosen, run, held_out)
    tested = (
        test_scores(evaluator, run, chosen.choices, selection["temperature"])
        if held_out is None
        else fold_scores(held_out)
    )
    results = {
        "method": config.method,
        "benchmark": config.benchmark,
        "backbone": asdict(run.clip.identity),
        "shots": config.shots,
        "seed": config.seed,
        "epochs": config.epochs,
        "num_classes": len(run.dataset.class_names),
        "split_protocol": run.dataset.split_protocol,
        "counts": {
            "train": len(few_shot.support),
            "validation": len(few_shot.validation or ()),
            "test": len(run.dataset.test or ()),
        },
        **model.facts(),
        **selection,
        **tested,
        "train_seconds": sum_of_seconds(run.workdir.metrics_file, config.epochs),
        "wall_seconds": round(time.monotonic() - started, 1),
    }
    run.workdir.write_arrays(
        run.workdir.support_file,
        **cache_columns(cache),
        labels=few_shot.support.labels,
        keys=np.array(few_shot.support.keys),
        root=np.array(str(few_shot.support.root.absolute())),
    )
    run.workdir.write(run.workdir.results_file, results)
    return results


def cache_columns(cache: VisualCache | None) -> dict[str, np.ndarray]:
    """The features of a visual cache without padding; none of a method without one."""
    if cache is None:
        return {}
    image, object_, _, valid = to_host(tuple(cache))
    columns = {"image": image, "object": object_}
    return {name: np.asarray(x)[valid] for name, x in columns.items() if x is not None}


def selection_of(chosen: Chosen, run: Run, held_out: HeldOut | None) -> dict[str, Any]:
    """What `results.json` says of the choices, such as λ, and of the temperature.

    The temperature is fitted on validation or, without, on the folds; else it is 1.
    """
    selection: dict[str, Any] = {
        **chosen.choices,
        "validation_accuracy": chosen.accuracies,
        "validation_unreadable": list(chosen.unreadable),
        "temperature": 1.0,
    }
    if run.config.calibrate and chosen.validation is not None:
        selection |= calibration("validation", chosen.validation)
    elif run.config.calibrate and held_out is not None:
        selection |= calibration("folds", Labelled(held_out.logits, held_out.labels))
    return selection


def sum_of_seconds(metrics_file: Path, epochs: int) -> float:
    """Of all epochs, also those before an interruption."""
    return round(math.fsum(line["seconds"] for line in read_metrics(metrics_file, epochs)), 1)


def test_scores(
    evaluator: Evaluator, run: Run, choices: Choices, temperature: float
) -> dict[str, Any]:
    """The final figures beside zero-shot CLIP's, from one reading of the test split."""
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
        "unreadable": list(predictions.unreadable),
        **mask_scores(run, predictions),
    }


def fold_scores(held_out: HeldOut) -> dict[str, Any]:
    """The cross-validated estimate with its interval; the test accuracy is null."""
    right = int((held_out.logits.argmax(axis=1) == held_out.labels).sum())
    return {
        "test_accuracy": None,
        **scores_of(held_out, "cv"),
        "cv_interval": accuracy_interval(right, len(held_out.labels)),
        "unreadable": [],
    }


def scores_of(predictions: Predictions | HeldOut, name: str) -> dict[str, float]:
    """All scores under `name_…`, and plain CLIP's under `zero_shot_…`."""
    ours = score(predictions.logits, predictions.labels)._asdict()
    plain_clip = score(predictions.zero_shot_logits, predictions.labels)._asdict()
    return {f"{name}_{key}": value for key, value in ours.items()} | {
        f"zero_shot_{key}": value for key, value in plain_clip.items()
    }


def mask_scores(run: Run, predictions: Predictions) -> dict[str, Any]:
    """IoU of the object masks where the data knows the true ones."""
    test = run.dataset.test
    if predictions.object_masks is None or not isinstance(test, ShapesSplit):
        return {}
    truth = np.stack([test.scene(int(i)).mask for i in predictions.indices])
    return {"mask_iou": mask_iou(predictions.object_masks, truth, run.clip.vision.grid)._asdict()}
