"""Is one method better than another, or was it these test images and these draws?"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest, bootstrap

CONFIDENCE = 0.95
RESAMPLES = 1999
BATCH = 50  # resamples at once: 50,000 images in float64 are 20 MB


class Comparison(NamedTuple):
    """One method beside another, on the same seeds and test images.

    Attributes:
        difference: Accuracy of the first minus that of the second, in points, mean over the seeds.
        low: Of the 95% interval of the difference.
        high: Likewise.
        seeds: How many.
        seeds_ahead: In how many of them the first has the higher accuracy.
        p_value: That the two are equally often right alone, in the seed that says so most.
    """

    difference: float
    low: float
    high: float
    seeds: int
    seeds_ahead: int
    p_value: float

    @property
    def is_significant(self) -> bool:
        """Whether the interval and the test of every seed tell the two apart, the same way."""
        agree = self.seeds_ahead == (self.seeds if self.difference > 0 else 0)
        return agree and not self.low <= 0 <= self.high and self.p_value < 1 - CONFIDENCE


def compare(first: Bool[np.ndarray, "S N"], second: Bool[np.ndarray, "S N"]) -> Comparison:
    """Compares two methods, paired over seeds and images.

    The interval is a percentile bootstrap (1,999 resamples of fixed randomness) of the mean
    difference: test images are resampled, and with an image go its answers of both methods in all
    seeds. So it speaks of other test images for these few-shot draws. Draws are too few to be
    resampled; how often the sign holds among them is `seeds_ahead`.

    The p-value is of the exact McNemar test: of the images that just one of the two gets right,
    each gets half if they are equally good (binomial). It is computed in each seed, and the
    largest is given: the answers of several seeds to one image are not independent, so that they
    cannot be pooled, and a difference that is claimed should be there in every seed.

    Args:
        first: Which image each seed of the first method got right.
        second: The same seeds and images of the second method.
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
    """95% percentile bootstrap interval of a mean."""
    if len(values) < 2:  # which cannot be resampled
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
    """Two-sided p-value of the exact McNemar test of one seed; 1 where the two never differ."""
    alone = int((first & ~second).sum())
    other = int((second & ~first).sum())
    return float(binomtest(alone, alone + other).pvalue) if alone + other else 1.0
