"""Tests whether one method is better than another beyond these test images and draws."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest, bootstrap

CONFIDENCE = 0.95
RESAMPLES = 1999
BATCH = 50  # resamples at a time: with 50,000 images in float64 they take 20 MB


class Comparison(NamedTuple):
    """Comparison of two methods on the same seeds and test images.

    Attributes:
        difference: Accuracy of the first minus that of the second, in points, mean over the seeds.
        low: Lower end of the 95% interval of the difference.
        high: Upper end of the 95% interval of the difference.
        seeds: Number of seeds.
        seeds_ahead: Number of seeds in which the first method has the higher accuracy.
        p_value: Largest p-value over the seeds of McNemar's test, whose hypothesis is that each
            method is equally often the only one that is right.
    """

    difference: float
    low: float
    high: float
    seeds: int
    seeds_ahead: int
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval and every seed's test show a difference, all the same way."""
        agree = self.seeds_ahead == (self.seeds if self.difference > 0 else 0)
        return agree and not self.low <= 0 <= self.high and self.p_value < 1 - CONFIDENCE


def compare(first: Bool[np.ndarray, "S N"], second: Bool[np.ndarray, "S N"]) -> Comparison:
    """Compares two methods, paired over seeds and images.

    The interval is a percentile bootstrap (1,999 resamples with a fixed seed) of the mean
    difference: test images are resampled, each together with the predictions of both methods in
    all seeds. So it covers other test images for these few-shot draws. There are too few draws to
    resample them; `seeds_ahead` counts in how many of them the sign holds.

    The p-value is that of the exact McNemar test: of the images that only one of the two methods
    gets right, each method has half if the two are equally good (binomial). It is computed for
    each seed, and the largest is returned: predictions of several seeds for one image are not
    independent, so they cannot be pooled, and a claimed difference should hold in every seed.

    Args:
        first: Whether each seed of the first method got each image right.
        second: The same for the second method, with the same seeds and images.
    """
    per_image = (first.astype(np.float64) - second).mean(axis=0)
    by_seed = first.mean(axis=1) - second.mean(axis=1)
    low, high = interval_of_mean(per_image)
    return Comparison(
        difference=100 * float(per_image.mean()),
        low=100 * low,
        high=100 * high,
        seeds=len(first),
        seeds_ahead=int((by_seed > 0).sum()),
        p_value=max(mcnemar(ours, theirs) for ours, theirs in zip(first, second, strict=True)),
    )


def interval_of_mean(values: Float[np.ndarray, "N"]) -> tuple[float, float]:
    """Returns the 95% percentile bootstrap interval of a mean."""
    if len(values) < 2:  # a single value cannot be resampled
        return float(values.mean()), float(values.mean())
    interval = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mcnemar(first: Bool[np.ndarray, "N"], second: Bool[np.ndarray, "N"]) -> float:
    """Returns one seed's two-sided p-value of the exact McNemar test; 1 without a difference."""
    alone = int((first & ~second).sum())
    other = int((second & ~first).sum())
    return float(binomtest(alone, alone + other).pvalue) if alone + other else 1.0
