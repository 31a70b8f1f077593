"""Chooses the best method, or a mix of methods, by the likelihood of held-out photos."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy.special import log_softmax, logsumexp

from fgvpl_jax.methods.held_out import smoothed_losses, tempered_losses

# The best method is kept alone if it beats the mix by more than this many standard errors of the
# paired difference. Otherwise a mix is the better hedge: on EuroSAT at 4 shots, without
# `gda_pool`, it is 1.6 ± 0.4 points more accurate than the best method by held-out photos
# (docs/auto.md).
STANDARD_ERRORS = 1.0
# Few photos cannot compare a dozen methods, so the mix counts the method that was most accurate on
# development data as if that many further photos spoke for it (docs/auto.md).
PRIOR_PHOTOS = 5.0
EM_STEPS = 200
LEAST_WEIGHT = 0.05  # a method with less weight in a mix is left out
# A temperature is fitted on fewer photos, evenly spread, if all have more logits than this.
MOST_LOGITS = 2**20


class Mix(NamedTuple):
    """A classifier made of the methods that were tried.

    Attributes:
        weights: Weight of each method's probabilities; they sum to 1, and a single method has 1.
        temperatures: Divisor of each method's logits.
        losses: Mean loss of each method on the photos that the mix was chosen with.
        gain: Gain in log-likelihood per photo of the best mix over the best method, each chosen
            without the photo's fold.
        gain_error: Standard error of the gain.
    """

    weights: Float64[np.ndarray, "c"]
    temperatures: Float64[np.ndarray, "c"]
    losses: Float64[np.ndarray, "c"]
    gain: float
    gain_error: float

    @property
    def is_worse_than_best(self) -> bool:
        """Whether the best mix is worse than the best method by more than chance."""
        return self.gain < -STANDARD_ERRORS * self.gain_error

    def log_probabilities(self, logits: Float[np.ndarray, "c N k"]) -> Float64[np.ndarray, "N k"]:
        """Returns the logarithms of the mixed probabilities."""
        used = np.flatnonzero(self.weights)
        own = tempered(logits[used], self.temperatures[used])
        return logsumexp(own, axis=0, b=self.weights[used, None, None])


def choose_mix(
    logits: Float[np.ndarray, "c N k"],
    labels: Int[np.ndarray, "N"],
    folds: Int[np.ndarray, "N"],
    favourite: int | None,
) -> Mix:
    """Returns the likeliest mix, or the method with the lowest loss if it is clearly better.

    Losses are those of `smoothed_losses`, at the temperature that suits each method best. The
    weights of a mix maximise the likelihood times a prior. Which is better is judged on each fold,
    with the weights and the best method of the other folds; see `judging_folds`.

    Args:
        logits: Logits of each method for photos that it was not trained on.
        labels: Classes of the photos.
        folds: Folds of the photos.
        favourite: Place of the method that the prior favours; None for no prior.
    """
    temperatures, columns = [], []
    step = -(-logits[0].size // MOST_LOGITS)
    for own in logits:
        temperatures.append(tempered_losses(own[::step], labels[::step])[0])
        columns.append(smoothed_losses(own, labels)(temperatures[-1]))
    losses, divisors = np.stack(columns), np.array(temperatures)
    true = tempered(logits, divisors)[:, np.arange(len(labels)), labels]
    prior = np.zeros(len(logits))
    if favourite is not None:
        prior[favourite] = PRIOR_PHOTOS
    gains = np.zeros(len(labels))
    folds = judging_folds(labels, folds)
    for fold in np.unique(folds):
        out = folds == fold
        if not out.all():
            best = losses[:, ~out].mean(axis=1).argmin()
            weights = likeliest_weights(true[:, ~out], prior)
            gains[out] = logsumexp(true[:, out], axis=0, b=weights[:, None]) - true[best, out]
    gain, error = float(gains.mean()), float(gains.std() / np.sqrt(len(gains)))
    means = losses.mean(axis=1)
    mix = Mix(np.eye(len(logits))[means.argmin()], divisors, means, gain, error)
    return mix if mix.is_worse_than_best else mix._replace(weights=likeliest_weights(true, prior))


def out_of_fold_log_probabilities(
    logits: Float[np.ndarray, "c N k"],
    labels: Int[np.ndarray, "N"],
    folds: Int[np.ndarray, "N"],
    favourite: int | None,
) -> Float64[np.ndarray, "N k"]:
    """Returns log-probabilities by what `choose_mix` chooses without each photo's fold."""
    found = np.empty(logits.shape[1:])
    folds = judging_folds(labels, folds)
    for fold in np.unique(folds):
        out = folds == fold
        rest = out if out.all() else ~out
        mix = choose_mix(logits[:, rest], labels[rest], folds[rest], favourite)
        found[out] = mix.log_probabilities(logits[:, out])
    return found


def judging_folds(
    labels: Int[np.ndarray, "N"], folds: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "N"]:
    """Returns the folds, or two halves of the photos if all are in one fold.

    A single fold is left where one of two is taken out. Without another one to judge on, every mix
    would seem as good as the best method.
    """
    if len(np.unique(folds)) > 1:
        return folds
    halves = np.empty(len(labels), np.int64)
    halves[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2
    return halves


def held_out_scores(
    logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]
) -> tuple[float, float]:
    """Returns the loss of a method, as `choose_mix` compares it, and its accuracy."""
    _, losses = tempered_losses(logits, labels)
    return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def tempered(
    logits: Float[np.ndarray, "c N k"], temperatures: Float64[np.ndarray, "c"]
) -> Float64[np.ndarray, "c N k"]:
    """Returns the log-probabilities of each method at its temperature."""
    return log_softmax(logits.astype(np.float64) / temperatures[:, None, None], axis=2)


def likeliest_weights(
    true: Float64[np.ndarray, "c N"], prior: Float64[np.ndarray, "c"]
) -> Float64[np.ndarray, "c"]:
    """Returns the weights of the mix under which the photos' classes are most likely.

    Expectation-maximisation from equal weights. Methods of little weight are left out.

    Args:
        true: Log-probability of each photo's class by each method.
        prior: Number of further photos that speak for each method.
    """
    scaled = np.exp(true - true.max(axis=0))
    weights = np.full(len(true), 1 / len(true))
    for _ in range(EM_STEPS):
        shares = weights[:, None] * scaled
        counts = (shares / shares.sum(axis=0)).sum(axis=1) + prior
        weights = counts / counts.sum()
    weights = np.where(weights < LEAST_WEIGHT, 0, weights)
    return weights / weights.sum()
