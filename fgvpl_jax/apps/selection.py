"""What is chosen on validation images, and on nothing else."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.apps.run_setup import Run
from fgvpl_jax.evaluation import Evaluator, choose_cache_logit_weight, fit_temperature, score

# With fewer photos a fitted temperature does more harm than none.
FEWEST_TO_CALIBRATE = 30


class Labelled(NamedTuple):
    """Logits of images that a model was not trained on, with their true classes."""

    logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]


class CacheWeight(NamedTuple):
    """λ, and what it was chosen by.

    Attributes:
        weight: λ.
        accuracies: Validation accuracy by λ; empty where there was no image to choose by.
        validation: The validation images at λ; None where there was none.
        unreadable: "path: reason" of every validation image that could not be decoded.
    """

    weight: float
    accuracies: dict[float, float]
    validation: Labelled | None
    unreadable: tuple[str, ...]


def choose_on_validation(evaluator: Evaluator, run: Run) -> CacheWeight:
    """λ by validation accuracy over the config's grid.

    λ stays the config's where there is no grid or no readable validation image.
    """
    weight, validation = float(run.config.cache_logit_weight), run.few_shot.validation
    if validation is None:
        return CacheWeight(weight, {}, None, ())
    grid = [float(w) for w in run.config.cache_logit_weight_grid] or [weight]
    found = evaluator.logits_by_cache_weight(validation, grid)
    if not len(found.labels):
        return CacheWeight(weight, {}, None, found.unreadable)
    accuracies = {w: score(rows, found.labels).accuracy for w, rows in found.logits.items()}
    weight = choose_cache_logit_weight(accuracies)
    at_weight = Labelled(found.logits[weight], found.labels)
    return CacheWeight(weight, accuracies, at_weight, found.unreadable)


def calibration(fitted_on: str, photos: Labelled) -> dict[str, Any]:
    """The temperature that photos ask for, and their calibration error without and with it.

    Nothing where there are fewer than 30 photos.

    Args:
        fitted_on: What to call the photos.
        photos: Neither trained on nor tested with.
    """
    if len(photos.labels) < FEWEST_TO_CALIBRATE:
        return {}
    temperature = fit_temperature(*photos)
    return {
        "temperature": temperature,
        "temperature_fitted_on": fitted_on,
        "fitted_ece_before": score(*photos).ece,
        "fitted_ece_after": score(photos.logits / temperature, photos.labels).ece,
    }
