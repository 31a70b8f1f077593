"""The score of belonging to the known classes, by which a photo counts as "none of these"."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

OTHER_WEIGHT = 2.0  # see docs/ablations.md


class KnownClasses(NamedTuple):
    """Class means and photos of other things, in coordinates that the classes' covariance whitens.

    Attributes:
        centre: Mean of the support images' features.
        whitening: Matrix from centred features to these coordinates.
        class_means: Mean of each class that has an image.
        other: Photos of other things; no row if there are none.
        threshold: A photo with a lower score belongs to none of the classes.
    """

    centre: Float[Array | np.ndarray, "e"]
    whitening: Float[Array | np.ndarray, "e e"]
    class_means: Float[Array | np.ndarray, "k e"]
    other: Float[Array | np.ndarray, "o e"]
    threshold: Float[Array | np.ndarray, ""]


def known_score(
    known: KnownClasses, features: Float[Array | np.ndarray, "b e"]
) -> Float[Array | np.ndarray, "b"]:
    """Returns how well photos fit the known classes: 0 at a class mean, lower far from all.

    With D the squared distance to the closest class mean and O that to the closest photo of other
    things, it is -D - 2 max(0, D - O/2): a photo's squared distance to another photo of its kind is
    about twice that to their mean.

    Args:
        known: The known classes.
        features: Unit vectors of frozen CLIP; either these and `known` are of NumPy, or both of
            jax.
    """
    points = (features - known.centre) @ known.whitening
    return score_at(known, points, squared_distances(points, known.class_means).min(axis=1))


def score_at(
    known: KnownClasses,
    points: Float[Array | np.ndarray, "b e"],
    nearest_class: Float[Array | np.ndarray, "b"],
) -> Float[Array | np.ndarray, "b"]:
    """Returns the score of whitened features with D = `nearest_class`; see `known_score`."""
    if not len(known.other):
        return -nearest_class
    nearest_other = squared_distances(points, known.other).min(axis=1)
    return -nearest_class - OTHER_WEIGHT * (nearest_class - nearest_other / 2).clip(min=0)


def squared_distances(
    points: Float[Array | np.ndarray, "b e"], others: Float[Array | np.ndarray, "o e"]
) -> Float[Array | np.ndarray, "b o"]:
    """Returns the squared distance of each point to each of the others."""
    squares = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    return (squares - 2 * points @ others.T).clip(min=0)
