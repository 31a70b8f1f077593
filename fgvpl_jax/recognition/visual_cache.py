"""The support set as the second path sees it."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

# Names of the two places from which the query's object feature in path 2 can come (Eq. 16).
OBJECT_QUERIES = ("class_token", "object_patches")
# Keys that are adapted and compared at a time. At k = 1,000 their one-hot labels are 32 MiB; only
# ImageNet's 16 shots are more.
CHUNK = 8192

Adapter = Callable[[Float[Array, "r e"]], Float[Array, "r e"]]


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
    queries: Float[Array, "b e"],
    keys: Float[Array, "s e"],
    cache: VisualCache,
    num_classes: int,
    *,
    adapter: Adapter,
    own_places: Int[Array, "b"] | None = None,
) -> Float[Array, "b k"]:
    """Sums phi(cosine) over each class's images (Eqs. 17-18), phi(a) = exp(-(1 - a)).

    Where classes have different numbers of images, each sum is divided by its class's number and
    multiplied by their mean over the classes that have any, so that a larger class gets no louder
    voice; with equal numbers this is the paper's formula. A class without images gets 0.

    At most about `CHUNK` keys are adapted and compared at a time, in the backward pass as well,
    which computes them anew: memory does not grow with the cache beyond its raw keys. Where the
    cache is split over devices, so is every chunk.

    Args:
        queries: Raw features of the queries.
        keys: Raw features of the cached images.
        cache: Supplies labels and validity.
        num_classes: k.
        adapter: q of Eqs. 13-16, from raw features to unit vectors.
        own_places: Where each query's own image is in the cache, -1 for none: it neither votes for
            the query nor counts. None where queries are not in the cache, and in the paper, whose
            training lets an image match itself.
    Returns:
        Path-2 logits, before λ.
    """
    adapted = adapter(queries)

    def votes_of(keys, labels, valid, places):
        votes = jnp.exp(adapted @ adapter(keys).T - 1.0)
        if own_places is not None:
            votes = jnp.where(places == own_places[:, None], 0.0, votes)
        members = jax.nn.one_hot(jnp.where(valid, labels, -1), num_classes, dtype=votes.dtype)
        return votes @ members

    rows = (keys, cache.labels, cache.valid, jnp.arange(len(keys)))
    # A power of two, which whole batches of many devices divide.
    num_chunks = 1 << max(0, -(-len(keys) // CHUNK) - 1).bit_length()
    if num_chunks == 1:
        totals = votes_of(*rows)
    else:
        chunked = jax.tree.map(lambda x: interleaved(x, num_chunks), rows)

        @partial(jax.checkpoint, prevent_cse=False)  # which a scan does not need
        def add(totals, number):
            # Taken here, not by the scan, which would want a transposed copy of all keys.
            chunk = jax.tree.map(lambda x: jnp.take(x, number, axis=1), chunked)
            return totals + votes_of(*chunk), None

        zeros = jnp.zeros((len(queries), num_classes), adapted.dtype)
        totals = jax.lax.scan(add, zeros, jnp.arange(num_chunks))[0]

    voters = cache.valid.astype(adapted.dtype)
    counts = jax.ops.segment_sum(voters, cache.labels, num_classes)[None]
    if own_places is not None:
        own = jax.nn.one_hot(cache.labels[own_places], num_classes, dtype=adapted.dtype)
        counts -= own * jnp.where(own_places >= 0, voters[own_places], 0.0)[:, None]
    present = jnp.count_nonzero(counts, axis=1, keepdims=True)
    mean_count = counts.sum(axis=1, keepdims=True) / jnp.maximum(present, 1).astype(counts.dtype)
    return totals * (mean_count / jnp.maximum(counts, 1.0))


def interleaved(rows: Shaped[Array, "s *d"], num_chunks: int) -> Shaped[Array, "c n *d"]:
    """Every n-th row to the same chunk, [:, chunk]; rows of 0, not valid, fill up the last ones.

    So a chunk of rows that are split over devices is split over them likewise.
    """
    padded = jnp.pad(rows, [(0, -len(rows) % num_chunks), *[(0, 0)] * (rows.ndim - 1)])
    return padded.reshape(-1, num_chunks, *rows.shape[1:])
