"""What is chosen on validation images, and on nothing else."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.evaluation import Evaluator, fit_temperature, score
from fgvpl_jax.methods import Choices, method_named
from fgvpl_jax.runs.run import Run

# With fewer photos a fitted temperature does more harm than none.
FEWEST_TO_CALIBRATE = 30
# Candidates whose accuracies are all told; of a larger grid only the best one's is.
MOST_TOLD = 20


class Labelled(NamedTuple):
    """Logits of images that a model was not trained on, with their true classes."""

    logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]


class Chosen(NamedTuple):
    """The choices, and what they were chosen by.

    Attributes:
        choices: Such as λ.
        accuracies: Validation accuracy by candidate; the chosen one's alone where there are many.
            Empty where there was no image to choose by.
        validation: The validation images at the choices; None where there was none.
        unreadable: "path: reason" of every validation image that could not be decoded.
    """

    choices: Choices
    accuracies: dict[str, float]
    validation: Labelled | None
    unreadable: tuple[str, ...]


def choose_on_validation(evaluator: Evaluator, run: Run) -> Chosen:
    """The method's candidate of the highest validation accuracy; of equals its first.

    The choices stay those of training where there is no readable validation image.
    """
    method, validation = method_named(run.config.method), run.few_shot.validation
    start = method.starting_choices(run.config)
    if validation is None:
        return Chosen(start, {}, None, ())
    candidates = method.candidates(run.config)
    found = evaluator.choose(validation, candidates)
    if not len(found.labels):
        return Chosen(start, {}, None, found.unreadable)
    told = range(len(candidates)) if len(candidates) <= MOST_TOLD else [found.best]
    accuracies = {described(candidates[i]): float(found.accuracies[i]) for i in told}
    best = Labelled(found.logits, found.labels)
    return Chosen(candidates[found.best], accuracies, best, found.unreadable)


def described(choices: Choices) -> str:
    """A candidate in a word or two."""
    return ", ".join(f"{name} {value:.6g}" for name, value in choices.items()) or "as trained"


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
