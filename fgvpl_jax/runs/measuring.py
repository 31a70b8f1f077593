"""Measures a trained model: what it chooses on validation, and its scores on held-out photos."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from fgvpl_jax.data import ShapesSplit
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import (
    Evaluator,
    MaskIoU,
    Predictions,
    mask_iou,
    score,
    share_interval,
    to_saved_predictions,
)
from fgvpl_jax.methods import Choices, LabelledLogits, Method
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.runs.cross_validation import HeldOut
from fgvpl_jax.runs.more_photos import learning_curve_of
from fgvpl_jax.runs.results import ImageCounts
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.selection import Chosen, calibration
from fgvpl_jax.training import Checkpoints, read_metrics, restore_model, to_host


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


def fields_of(run: Run, num_validation: int) -> dict[str, Any]:
    """Returns the fields of `RunResults` that follow from a run before it is measured.

    Args:
        run: The run.
        num_validation: Number of validation images, with those that are unreadable.
    """
    return {
        "method": run.config.method,
        "benchmark": run.config.benchmark,
        "backbone": run.clip.identity,
        "shots": run.config.shots,
        "seed": run.config.seed,
        "num_classes": len(run.dataset.class_names),
        "split_protocol": run.dataset.split_protocol,
        "counts": ImageCounts(
            train=len(run.few_shot.support),
            validation=num_validation,
            test=len(run.dataset.test or ()),
        ),
        "learning_curve": learning_curve_of(run),
    }


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
    """Returns the duration of all epochs, including those before an interruption.

    The time in which frozen features were encoded is not counted: the first run that needs them
    would pay for all others.
    """
    lines = read_metrics(metrics_file, epochs)
    # Version 0.1.0 did not write the seconds of encoding.
    seconds = (line["seconds"] - line.get("encoding_seconds", 0.0) for line in lines)
    return round(math.fsum(seconds), 1)


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


def fold_scores(held_out: HeldOut, count: int) -> dict[str, Any]:
    """Returns the fields of the cross-validated scores; the test accuracy is None.

    Args:
        held_out: Logits of the photos when held out.
        count: Number of different photos, copies counted once; the interval is that of as many.
    """
    scores = scores_of(held_out, "cv")
    return {
        "test_accuracy": None,
        **scores,
        "cv_interval": share_interval(round(scores["cv_accuracy"] * count), count),
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
