"""The visual cache: features of the support images, and the class votes of path 2."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from fgvpl_jax import defaults

# The two object features that path 2 can use as the query (Eq. 16).
OBJECT_QUERIES = ("class_token", "object_patches")
# How the votes of a class's photos are combined: added up, as in the paper, or averaged and
# multiplied by `VOTES_OF_MEAN`, so that λ means the same for any number of photos.
VOTE_RULES = ("sum", "mean")
VOTES_OF_MEAN = 16.0  # the number of photos for which both are the same
# Number of keys that are adapted and compared at a time. At k = 1,000 their one-hot labels take
# 32 MiB. Of the benchmarks, only ImageNet with 16 shots has more keys.
CHUNK = 8192

Adapter = Callable[[Float[Array, "r e"]], Float[Array, "r e"]]


class VisualCache(NamedTuple):
    """Features of the support images, computed without gradient; raw (not normalised).

    Attributes:
        image: Image features f(x_set).
        object: Means over the object patches, as the paper defines them in section 3.2; None for a
            method without objects.
        labels: Class of each image; any valid class where `valid` is False.
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
    combine: str = defaults.CACHE_VOTES,
    own_places: Int[Array, "b"] | None = None,
) -> Float[Array, "b k"]:
    """Returns the sum of phi(cosine) over each class's images (Eqs. 17-18), phi(a) = exp(-(1 - a)).

    Where classes have different numbers of images, each sum is divided by the number of its class
    and multiplied by the mean number over the classes that have images, so that a larger class has
    no more weight. With equal numbers this is the paper's formula. A class without images gets 0.

    At most about `CHUNK` keys are adapted and compared at a time, also in the backward pass, which
    recomputes them: beyond the raw keys, memory does not grow with the cache. If the cache is split
    over devices, so is every chunk.

    Args:
        queries: Raw features of the queries.
        keys: Raw features of the cached images.
        cache: Labels and validity of the cached images.
        num_classes: Number of classes k.
        adapter: Adapter q of Eqs. 13-16, which maps raw features to unit vectors.
        combine: "sum", or "mean" for each class's mean times 16.
        own_places: Index of each query's own image in the cache, -1 if it is not there. That image
            does not vote for the query and is not counted. None where queries are not in the
            cache, and in the paper, whose training lets an image match itself.
    Returns:
        Path-2 logits before the multiplication by λ.
    """
    adapted = adapter(queries)

    def votes_of(
        keys: Float[Array, "c e"],
        labels: Int[Array, "c"],
        valid: Bool[Array, "c"],
        places: Int[Array, "c"],
    ) -> Float[Array, "b k"]:
        votes = jnp.exp(adapted @ adapter(keys).T - 1.0)
        if own_places is not None:
            votes = jnp.where(places == own_places[:, None], 0.0, votes)
        members = jax.nn.one_hot(jnp.where(valid, labels, -1), num_classes, dtype=votes.dtype)
        return votes @ members

    rows = (keys, cache.labels, cache.valid, jnp.arange(len(keys)))
    # A power of two, so that the batches of many devices divide into whole chunks.
    num_chunks = 1 << max(0, -(-len(keys) // CHUNK) - 1).bit_length()
    if num_chunks == 1:
        totals = votes_of(*rows)
    else:
        chunked = jax.tree.map(lambda x: interleaved(x, num_chunks), rows)

        @partial(jax.checkpoint, prevent_cse=False)  # not needed inside a scan
        def add(
            totals: Float[Array, "b k"], number: Int[Array, ""]
        ) -> tuple[Float[Array, "b k"], None]:
            # Taken here and not by the scan, which would need a transposed copy of all keys.
            chunk = jax.tree.map(lambda x: jnp.take(x, number, axis=1), chunked)
            return totals + votes_of(*chunk), None

        zeros = jnp.zeros((len(queries), num_classes), adapted.dtype)
        totals = jax.lax.scan(add, zeros, jnp.arange(num_chunks))[0]

    return totals * class_factors(cache, num_classes, combine, adapted.dtype, own_places)


def class_factors(
    cache: VisualCache,
    num_classes: int,
    combine: str,
    dtype: jnp.dtype,
    own_places: Int[Array, "b"] | None,
) -> Float[Array, "b k"] | Float[Array, "1 k"]:
    """Returns what the sum of each class's votes is multiplied by; see `class_votes`."""
    voters = cache.valid.astype(dtype)
    counts = jax.ops.segment_sum(voters, cache.labels, num_classes)[None]
    if own_places is not None:
        own = jax.nn.one_hot(cache.labels[own_places], num_classes, dtype=dtype)
        counts -= own * jnp.where(own_places >= 0, voters[own_places], 0.0)[:, None]
    if combine == "mean":
        return VOTES_OF_MEAN / jnp.maximum(counts, 1.0)
    present = jnp.count_nonzero(counts, axis=1, keepdims=True)
    mean_count = counts.sum(axis=1, keepdims=True) / jnp.maximum(present, 1).astype(counts.dtype)
    return mean_count / jnp.maximum(counts, 1.0)


def interleaved(rows: Shaped[Array, "s *d"], num_chunks: int) -> Shaped[Array, "c n *d"]:
    """Deals the rows out to the chunks in turn; chunk i is [:, i], padded with rows of 0.

    A chunk of rows that are split over devices is therefore split over the same devices. The rows
    of padding are not valid.
    """
    padded = jnp.pad(rows, [(0, -len(rows) % num_chunks), *[(0, 0)] * (rows.ndim - 1)])
    return padded.reshape(-1, num_chunks, *rows.shape[1:])
