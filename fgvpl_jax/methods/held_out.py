"""Compares candidates by their logits of photos that they were not fitted on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

ACCURACY, LIKELIHOOD = "accuracy", "likelihood"
SELECTION_RULES = (ACCURACY, LIKELIHOOD)  # values of `config.selection_rule`

# Bounds of the temperature at which likelihoods are compared: the scale of a candidate's logits
# does not matter.
TEMPERATURES = (1e-3, 1e4)
# A candidate's mean loss may be this many standard errors above the lowest one and count as equal.
STANDARD_ERRORS = 1.0
# Mean losses closer than this are equal, because a temperature is found to some digits only.
ROUNDING = 1e-4


class LabelledLogits(NamedTuple):
    """Logits of images that a model was not fitted on, with their true classes."""

    logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]


class HeldOutLogits(NamedTuple):
    """A candidate's logits of the photos that may choose it.

    Attributes:
        support: Logits of the support images, each from a fit without it and its copies.
        validation: Logits of the validation images.
    """

    support: Float[np.ndarray, "s k"]
    validation: Float[np.ndarray, "v k"]


@dataclass(frozen=True)
class SelectionRule:
    """Chooses by the accuracy on the validation images, or by the likelihood of held-out photos.

    The likelihood is that of the validation images and of the support images, at the temperature
    that suits each candidate best. Candidates within one standard error of the best count as equal
    to it, because a few photos cannot tell them apart. Of equal candidates, the first is chosen:
    order them by their distance from the value that needs no choice.

    Attributes:
        name: "accuracy" or "likelihood".
        labels: Classes of the support images.
        copies: Number of each one's group of copies; see `is_judged`.
        validation_labels: Classes of the validation images; empty without any.
    """

    name: str
    labels: Int[np.ndarray, "s"]
    copies: Int[np.ndarray, "s"]
    validation_labels: Int[np.ndarray, "v"]

    def losses(self, held_out: HeldOutLogits) -> Float64[np.ndarray, "N"]:
        """Returns a candidate's loss at each photo that has a say; empty if no photo has."""
        if self.name == ACCURACY:
            return (held_out.validation.argmax(axis=1) != self.validation_labels).astype(np.float64)
        known = is_judged(self.labels, self.copies)
        logits = np.concatenate([held_out.support[known], held_out.validation])
        labels = np.concatenate([self.labels[known], self.validation_labels])
        if not len(labels):
            return np.empty(0)
        return tempered_losses(logits, labels)[1]

    def choose(
        self,
        losses: Sequence[Float64[np.ndarray, "N"]],
        standard_errors: float = STANDARD_ERRORS,
    ) -> int:
        """Returns the index of the chosen candidate, from what `losses` returned for each.

        Args:
            losses: Losses of each candidate.
            standard_errors: Number of standard errors within which likelihoods count as equal.
        """
        if not len(losses[0]):
            return 0
        if self.name == ACCURACY:
            return int(np.argmin([loss.sum() for loss in losses]))
        return first_of_the_best(np.stack(losses), standard_errors)


def first_of_the_best(
    losses: Float[np.ndarray, "c N"], standard_errors: float = STANDARD_ERRORS
) -> int:
    """Returns the first candidate whose mean loss is within a standard error of the lowest.

    The standard error is that of the mean of the paired differences.

    Args:
        losses: Loss of each candidate at each photo.
        standard_errors: Number of standard errors that count as equal.
    """
    above = losses - losses[losses.mean(axis=1).argmin()]
    allowed = standard_errors * above.std(axis=1) / np.sqrt(losses.shape[1]) + ROUNDING
    return int((above.mean(axis=1) <= allowed).argmax())


def is_judged(labels: Int[np.ndarray, "s"], copies: Int[np.ndarray, "s"]) -> Bool[np.ndarray, "s"]:
    """Returns which support images judge a fit without them and without their copies.

    Their class has another image that is no copy, without which no fit can predict it. Of a group
    of copies only the first image judges, because the others would repeat its judgement.

    Args:
        labels: Classes of the images.
        copies: Number of the group of each image; a group is of one class.
    """
    places = np.unique(copies, return_index=True)[1]
    judged = np.zeros(len(labels), np.bool_)
    judged[places] = (np.bincount(labels[places]) > 1)[labels[places]]
    return judged


def groups_of(copies: Int[np.ndarray, "s"]) -> list[Int[np.ndarray, "m"]]:
    """Returns the places of the images of each group."""
    ends = np.cumsum(np.unique(copies, return_counts=True)[1])
    return np.split(np.argsort(copies, kind="stable"), ends[:-1])


def smoothed_losses(
    logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]
) -> Callable[[float], Float64[np.ndarray, "N"]]:
    """Returns a function from T to the cross-entropy of softmax(logits / T) at each image.

    The targets are those of `smoothed_targets`.
    """
    targets = smoothed_targets(labels, logits.shape[1])
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=1, keepdims=True)
    expected = (targets * exact).sum(axis=1)  # the targets add up to 1
    return lambda temperature: np.log(np.exp(exact / temperature).sum(1)) - expected / temperature


def smoothed_targets(labels: Int[np.ndarray, "N"], num_classes: int) -> Float64[np.ndarray, "N k"]:
    """Returns smoothed targets, so that a model that was right on a few photos can still be wrong.

    They are (N + 1) / (N + 2) for the true class, by the rule of succession (Platt 1999), and equal
    parts of the rest for the other classes. With 1 / (N + k) for each other class, 40 photos of ten
    classes would let no probability exceed 0.82.
    """
    count = len(labels)
    targets = np.full((count, num_classes), 1 / (count + 2) / max(num_classes - 1, 1))
    targets[np.arange(count), labels] = (count + 1) / (count + 2)
    return targets


def tempered_losses(
    logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]
) -> tuple[float, Float64[np.ndarray, "N"]]:
    """Returns the temperature with the lowest smoothed loss, and each image's loss at it."""
    losses = smoothed_losses(logits, labels)
    temperature = best_temperature(lambda t: losses(t).sum())
    return temperature, losses(temperature)


def best_temperature(loss: Callable[[float], float]) -> float:
    """Returns the temperature with the lowest loss, searched on a logarithmic scale."""
    from scipy.optimize import minimize_scalar  # slow to import, and no prediction needs it

    found = minimize_scalar(lambda x: loss(float(np.exp(x))), bounds=np.log(TEMPERATURES))
    return float(np.exp(found.x))
