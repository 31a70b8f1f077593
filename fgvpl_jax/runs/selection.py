"""Chooses values, such as λ and the temperature, on validation images only."""

from typing import Any, NamedTuple

import numpy as np

from fgvpl_jax.evaluation import Evaluator, helpful_temperature, score
from fgvpl_jax.methods import Choices, LabelledLogits, method_named
from fgvpl_jax.runs.run import Run

# With fewer photos a temperature cannot be judged by photos that it was not fitted on.
FEWEST_TO_CALIBRATE = 10
# Largest number of candidates whose accuracies are all reported; of a larger grid only the best is.
MOST_REPORTED = 20


class Chosen(NamedTuple):
    """The choices, and the evidence for them.

    Attributes:
        choices: Values chosen on validation, such as λ.
        accuracies: Validation accuracy of each candidate, or of the chosen one alone if there are
            more than 20 candidates. Empty if there was no image to choose with.
        validation: Logits of the validation images with these choices; None if there was no image.
        unreadable: "path: reason" of every validation image that could not be decoded.
    """

    choices: Choices
    accuracies: dict[str, float]
    validation: LabelledLogits | None
    unreadable: tuple[str, ...]


def choose_on_validation(evaluator: Evaluator, run: Run) -> Chosen:
    """Returns the method's candidate with the highest validation accuracy; the first of equals.

    Without a readable validation image, the choices stay those of training.
    """
    method, validation = method_named(run.config.method), run.few_shot.validation
    start = method.starting_choices(run.config)
    if validation is None:
        return Chosen(start, {}, None, ())
    candidates = method.candidates(run.config)
    found = evaluator.choose(validation, candidates)
    if not len(found.labels):
        return Chosen(start, {}, None, found.unreadable)
    reported = range(len(candidates)) if len(candidates) <= MOST_REPORTED else [found.best]
    accuracies = {described(candidates[i]): float(found.accuracies[i]) for i in reported}
    best = LabelledLogits(found.logits, found.labels)
    return Chosen(candidates[found.best], accuracies, best, found.unreadable)


def described(choices: Choices) -> str:
    """Returns a candidate in a few words."""
    return ", ".join(f"{name} {value:.6g}" for name, value in choices.items()) or "as trained"


def calibration(photos_by_name: dict[str, LabelledLogits | None]) -> dict[str, Any]:
    """Fits the temperature on photos, and measures their calibration error without and with it.

    Args:
        photos_by_name: Logits of photos that the model was not fitted on and that are not for
            testing, by their names in the results; None for photos that do not exist.
    Returns:
        Fields of `RunResults`; empty if there are fewer than ten photos.
    """
    found = {name: photos for name, photos in photos_by_name.items() if photos and len(photos[1])}
    if not found:
        return {}
    photos = LabelledLogits(*map(np.concatenate, zip(*found.values(), strict=True)))
    if len(photos.labels) < FEWEST_TO_CALIBRATE:
        return {}
    fitted_on = " and ".join(found)
    temperature = helpful_temperature(*photos)
    return {
        "temperature": temperature,
        "temperature_fitted_on": fitted_on,
        "fitted_ece_before": score(*photos).ece,
        "fitted_ece_after": score(photos.logits / temperature, photos.labels).ece,
    }
