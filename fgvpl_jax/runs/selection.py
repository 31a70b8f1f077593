"""Chooses values, such as λ and the temperature, on validation images only."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fgvpl_jax.evaluation import Evaluator, helpful_temperature, score
from fgvpl_jax.methods import Choices, LabelledLogits, method_named
from fgvpl_jax.methods.held_out import LIKELIHOOD
from fgvpl_jax.runs.run import Run

# With fewer photos a temperature cannot be judged by photos that it was not fitted on.
FEWEST_TO_CALIBRATE = 4
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
    """Returns the method's candidate that `config.selection_rule` chooses.

    By accuracy, the first of equally good candidates in the method's order is chosen; by
    likelihood, the one nearest to the choices of training. Those stay if there is no readable
    validation image.
    """
    method, validation = method_named(run.config.method), run.few_shot.validation
    start = method.starting_choices(run.config)
    if validation is None:
        return Chosen(start, {}, None, ())
    candidates, rule = method.candidates(run.config), run.config.selection_rule
    if rule == LIKELIHOOD:
        candidates = nearest_first(candidates, start)
    found = evaluator.choose(validation, candidates, rule)
    if not len(found.labels):
        return Chosen(start, {}, None, found.unreadable)
    reported = range(len(candidates)) if len(candidates) <= MOST_REPORTED else [found.best]
    accuracies = {described(candidates[i]): float(found.accuracies[i]) for i in reported}
    best = LabelledLogits(found.logits, found.labels)
    return Chosen(candidates[found.best], accuracies, best, found.unreadable)


def nearest_first(candidates: Sequence[Choices], start: Choices) -> Sequence[Choices]:
    """Returns the candidates by their distance from a start: the steps of the grid in between.

    Steps are fractions of the number of values, summed over the names of the choices.
    """
    grids = {name: np.unique([choices[name] for choices in candidates]) for name in start}

    def distance(choices: Choices) -> float:
        places = (
            (np.searchsorted(grid, choices[name]) - np.searchsorted(grid, start[name])) / len(grid)
            for name, grid in grids.items()
        )
        return float(sum(map(abs, places)))

    return sorted(candidates, key=distance)


def described(choices: Choices) -> str:
    """Returns a candidate in a few words."""
    return ", ".join(f"{name} {value:.6g}" for name, value in choices.items()) or "as trained"


def calibration(photos_by_name: dict[str, LabelledLogits | None]) -> dict[str, Any]:
    """Fits the temperature on photos, and measures their calibration error without and with it.

    Args:
        photos_by_name: Logits of photos that the model was not fitted on and that are not for
            testing, by their names in the results; None for photos that do not exist.
    Returns:
        Fields of `RunResults`; empty if there are fewer than four photos.
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
