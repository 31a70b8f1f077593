"""Builds the visual cache from the support images under the current parameters."""

from collections.abc import Callable, Sequence
from functools import cache

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from fgvpl_jax.data import Split
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.inputs import InputBatch, Inputs
from fgvpl_jax.training.mesh import replicate, split_batch


@cache
def compile_support_features(graphdef: nnx.GraphDef) -> Callable:
    """One compiled program a model structure, however many sets are encoded with it."""

    @jax.jit
    def support_features(trainable, frozen, inputs):
        return nnx.merge(graphdef, trainable, frozen).support_features(inputs)

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
        inputs: Inputs,
        batch_size: int,
        mesh: Mesh,
    ):
        self.mesh = mesh
        self.batches: Sequence[InputBatch] = list(
            inputs.evaluation(support, batch_size, strict=True)
        )
        self._support_features = compile_support_features(graphdef)

    def __call__(self, trainable: nnx.State, frozen: nnx.State) -> VisualCache:
        """Features of every support image, without gradient, padded to whole batches."""
        features = [
            self._support_features(trainable, frozen, split_batch(self.mesh, batch.inputs))
            for batch in self.batches
        ]
        image, object_ = jax.tree.map(lambda *parts: jnp.concatenate(parts), *features)
        support = VisualCache(
            image,
            object_,
            labels=jnp.concatenate([jax.device_put(b.labels) for b in self.batches]),
            valid=jnp.concatenate([jax.device_put(b.weights > 0) for b in self.batches]),
        )
        return replicate(self.mesh, support)
