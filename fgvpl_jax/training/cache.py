"""Builds the visual cache from the support images under the current parameters."""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from fgvpl_jax.data import Batch, ImageCache, Split, Transform, eval_batches
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.mesh import replicate, split_batch


@cache
def compile_support_features(graphdef: nnx.GraphDef) -> Callable:
    """One compiled program a model structure, however many sets are encoded with it."""

    @jax.jit
    def support_features(trainable, frozen, images):
        return nnx.merge(graphdef, trainable, frozen).support_features(images)

    return support_features


class CacheBuilder:
    """Support images decoded once under the evaluation transform, encoded at every call.

    The images stay on the host as uint8: 150 KB each at 224 px.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        support: Split,
        *,
        transform: Transform,
        image_cache: ImageCache | None,
        batch_size: int,
        mesh: Mesh,
    ):
        self.mesh = mesh
        self.batches: Sequence[Batch] = list(
            eval_batches(support, batch_size, transform=transform, strict=True, cache=image_cache)
        )
        self._support_features = compile_support_features(graphdef)

    def __call__(self, trainable: nnx.State, frozen: nnx.State) -> VisualCache:
        """Features of every support image, without gradient, padded to whole batches."""
        features = [
            self._support_features(trainable, frozen, split_batch(self.mesh, batch.images))
            for batch in self.batches
        ]
        support = VisualCache(
            image=jnp.concatenate([f.image for f in features]),
            object=jnp.concatenate([f.object for f in features]),
            labels=jnp.concatenate([jax.device_put(b.labels) for b in self.batches]),
            valid=jnp.concatenate([jax.device_put(b.weights > 0) for b in self.batches]),
        )
        return replicate(self.mesh, support)
