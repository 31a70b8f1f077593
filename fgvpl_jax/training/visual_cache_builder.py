"""Builds the visual cache from the support images under the current parameters."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from fgvpl_jax.data import PADDING, Split
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.inputs import Inputs
from fgvpl_jax.training.mesh import split_batch, split_rows, to_host
from fgvpl_jax.training.microbatches import images_at_once_of, in_parts
from fgvpl_jax.training.processes import process_share
from fgvpl_jax.training.train_step import PROGRAMS_KEPT


@lru_cache(maxsize=PROGRAMS_KEPT)
def compile_support_features(graphdef: nnx.GraphDef) -> Callable[..., Any]:
    """Returns one compiled program per model structure, whatever sets are encoded with it."""

    @jax.jit
    def support_features(trainable: nnx.State, frozen: nnx.State, inputs: Any) -> Any:
        model = nnx.merge(graphdef, trainable, frozen)
        return in_parts(model.support_features, inputs, images_at_once_of(model, inputs))

    return support_features


@partial(jax.jit, static_argnums=0)
def reorder(mesh: Mesh, order: Array, parts: list[Any]) -> Any:
    """Concatenates the parts and returns their rows in this order, split over the devices."""
    rows = jax.tree.map(lambda *columns: jnp.concatenate(columns)[order], *parts)
    return jax.lax.with_sharding_constraint(rows, split_rows(mesh))


class VisualCacheBuilder:
    """Decodes support images once under the evaluation transform, and encodes them at every call.

    The images stay in memory as uint8, 150 KB each at 224 pixels: split over the devices if all of
    them take at most `max_bytes` together, on the host otherwise. Each of several processes keeps
    its share.

    Args:
        graphdef: Structure of the model.
        support: The few-shot images.
        inputs: Supplies what the method reads of them.
        batch_size: Number of images in one call of the encoder.
        max_bytes: Most memory that the images may take on all devices together.
        mesh: Devices.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        support: Split,
        *,
        inputs: Inputs,
        batch_size: int,
        max_bytes: int,
        mesh: Mesh,
    ):
        self.mesh = mesh
        batches = list(inputs.evaluation(support, batch_size, strict=True))
        self._inputs: list[Any] = [batch.inputs for batch in batches]
        num_bytes = sum(column.nbytes for column in jax.tree.leaves(self._inputs))
        if num_bytes * process_share().count <= max_bytes:
            self._inputs = [split_batch(mesh, rows) for rows in self._inputs]
        places = np.concatenate([to_host(split_batch(mesh, batch.indices)) for batch in batches])
        self._order = np.argsort(np.where(places == PADDING, len(places), places), kind="stable")
        labels = np.pad(support.labels, (0, len(places) - len(support)))
        valid = np.arange(len(places)) < len(support)
        ours = process_share().of(len(places))
        self._labels, self._valid = split_batch(mesh, (labels[ours], valid[ours]))
        self._support_features = compile_support_features(graphdef)

    def __call__(self, trainable: nnx.State, frozen: nnx.State) -> VisualCache:
        """Returns features of every support image, without gradient, padded to whole batches.

        Rows are in the order of the support set and split over the devices.
        """
        features: list[tuple[Any, ...]] = []
        for rows in self._inputs:
            if not isinstance(jax.tree.leaves(rows)[0], jax.Array):
                jax.block_until_ready(features[-2:-1])  # keep at most two batches on the device
                rows = split_batch(self.mesh, rows)
            features.append(self._support_features(trainable, frozen, rows))
        image, object_ = reorder(self.mesh, self._order, features)
        return VisualCache(image, object_, self._labels, self._valid)
