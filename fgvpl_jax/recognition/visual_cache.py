"""The support set as the second path sees it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Names of the two places from which the query's object feature in path 2 can come (Eq. 16).
OBJECT_QUERIES = ("class_token", "object_patches")


class VisualCache(NamedTuple):
    """Features of the few-shot images, computed without gradient; raw (not normalised).

    Attributes:
        image: f(x_set).
        object: Object-patch means of the set, as the paper defines them in section 3.2; None for a
            method without objects.
        labels: Class of each image; any class in range where `valid` is false.
        valid: False for padding, which contributes nothing.
    """

    image: Float[Array, "s e"]
    object: Float[Array, "s e"] | None
    labels: Int[Array, "s"]
    valid: Bool[Array, "s"]


def class_votes(
    affinity: Float[Array, "b s"],
    cache: VisualCache,
    num_classes: int,
    own_places: Int[Array, "b"] | None = None,
) -> Float[Array, "b k"]:
    """Sums phi(affinity) over each class's images (Eqs. 17-18), phi(a) = exp(-(1 - a)).

    Where classes have different numbers of images, each sum is divided by its class's number and
    multiplied by their mean over the classes that have any, so that a larger class gets no louder
    voice; with equal numbers this is the paper's formula. A class without images gets 0.

    Args:
        affinity: Cosine of each query with each cached image.
        cache: Supplies labels and validity.
        num_classes: k.
        own_places: Where each query's own image is in the cache: it neither votes for the query
            nor counts. None where queries are not in the cache, and in the paper, whose training
            lets an image match itself.
    Returns:
        Path-2 logits, before λ.
    """
    votes = jnp.exp(affinity - 1.0)
    members = jax.nn.one_hot(cache.labels, num_classes, dtype=affinity.dtype)
    members = members * cache.valid[:, None].astype(affinity.dtype)
    if own_places is None:
        totals, counts = votes @ members, members.sum(axis=0)[None]
    else:
        others = jnp.arange(votes.shape[1]) != own_places[:, None]
        others = others.astype(affinity.dtype)
        totals, counts = (votes * others) @ members, others @ members
    present = jnp.count_nonzero(counts, axis=1, keepdims=True)
    mean_count = counts.sum(axis=1, keepdims=True) / jnp.maximum(present, 1).astype(counts.dtype)
    return totals * (mean_count / jnp.maximum(counts, 1.0))
