"""Runs a trained model over a split: one jitted program from uint8 pixels to logits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from fgvpl_jax.data import ImageCache, Split, Transform, eval_batches
from fgvpl_jax.errors import UserError
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import (
    batch_size_for,
    gather_texts,
    is_writer,
    process_share,
    replicate,
    split_batch,
    to_host,
)


@dataclass(frozen=True)
class Predictions:
    """Logits of the readable images of a split, in the split's order.

    Attributes:
        logits: The trained model's.
        zero_shot_logits: Plain CLIP's, from the same pixels.
        labels: True classes.
        object_masks: Patches of the object, row-major.
        indices: Places of the images in the split.
        unreadable: "path: reason" of every image that could not be decoded.
    """

    logits: Float[np.ndarray, "N k"]
    zero_shot_logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    object_masks: Bool[np.ndarray, "N n"]
    indices: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Candidates:
    """Logits of the readable images of a split at each λ; perhaps of none.

    Attributes:
        logits: By λ.
        labels: True classes.
        unreadable: "path: reason" of every image that could not be decoded.
    """

    logits: dict[float, Float[np.ndarray, "N k"]]
    labels: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


class Programs(NamedTuple):
    """What an evaluator runs on the device; the first argument is (trainable, frozen).

    Attributes:
        outputs: From images to logits, zero-shot logits and object masks.
        features: From images to features.
        logits_of: From features to logits.
    """

    outputs: Callable
    features: Callable
    logits_of: Callable


@cache
def compile_programs(graphdef: nnx.GraphDef) -> Programs:
    """The programs of one model structure, shared by all evaluators of it."""

    @jax.jit
    def outputs(state, support, cache_logit_weight, images):
        model = nnx.merge(graphdef, *state)
        features = model.features(images)
        logits = model.logits(features, support, cache_logit_weight)
        return logits, model.zero_shot_logits(images), features.object_mask

    @jax.jit
    def features(state, images):
        return nnx.merge(graphdef, *state).features(images)

    @jax.jit
    def logits_of(state, support, cache_logit_weight, features):
        return nnx.merge(graphdef, *state).logits(features, support, cache_logit_weight)

    return Programs(outputs, features, logits_of)


class Evaluator:
    """A model with its final parameters and the cache that belongs to them.

    Args:
        graphdef: Structure of the model.
        trainable: Final parameters.
        frozen: The rest.
        cache: Built with the final parameters.
        transform: The checkpoint's own evaluation transform.
        image_cache: Where images under the transform are kept.
        batch_size: Images a step.
        mesh: Devices; the frozen variables and the cache must already be on them.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        trainable: nnx.State,
        frozen: nnx.State,
        cache: VisualCache,
        *,
        transform: Transform,
        image_cache: ImageCache | None,
        batch_size: int,
        mesh: Mesh,
    ):
        self._state = (trainable, frozen)
        self._cache = cache
        self._transform = transform
        self._image_cache = image_cache
        self._batch_size = batch_size
        self._mesh = mesh
        self._programs = compile_programs(graphdef)

    def predict(self, split: Split, cache_logit_weight: float, *, name: str) -> Predictions:
        """Logits of every readable image of a split.

        Args:
            split: Read once, in order.
            cache_logit_weight: λ.
            name: What the progress line calls the split.
        Raises:
            UserError: If not one image is readable.
        """
        weight = self._scalar(cache_logit_weight)
        columns: list[tuple[np.ndarray, ...]] = []
        unreadable: list[str] = []
        for batch in self._batches(split, name):
            unreadable += batch.unreadable
            images, weights, labels, indices = split_batch(
                self._mesh, (batch.images, batch.weights, batch.labels, batch.indices)
            )
            outputs = self._programs.outputs(self._state, self._cache, weight, images)
            readable, *rows = to_host((weights > 0, *outputs, labels, indices))
            columns.append(tuple(x[readable] for x in rows))
        logits, zero_shot, masks, labels, indices = in_order_of_last(columns)
        unreadable = gather_texts(unreadable)
        if not len(labels):
            raise UserError(f"none of the {len(split)} {name} images can be read: {unreadable[0]}")
        return Predictions(logits, zero_shot, labels, masks, indices, tuple(unreadable))

    def logits_by_cache_weight(
        self, split: Split, cache_logit_weights: Sequence[float]
    ) -> Candidates:
        """Logits of the validation split at each λ.

        The images are encoded once and nothing is retraced.
        """
        columns: list[tuple[np.ndarray, ...]] = []
        unreadable: list[str] = []
        for batch in self._batches(split, "validation"):
            unreadable += batch.unreadable
            images, weights, labels, indices = split_batch(
                self._mesh, (batch.images, batch.weights, batch.labels, batch.indices)
            )
            features = self._programs.features(self._state, images)
            logits = [
                self._programs.logits_of(self._state, self._cache, self._scalar(weight), features)
                for weight in cache_logit_weights
            ]
            readable, *rows = to_host((weights > 0, *logits, labels, indices))
            columns.append(tuple(x[readable] for x in rows))
        *by_weight, labels, _ = in_order_of_last(columns)
        candidates = dict(zip(cache_logit_weights, by_weight, strict=True))
        return Candidates(candidates, labels, tuple(gather_texts(unreadable)))

    def _batches(self, split: Split, name: str):
        size = batch_size_for(self._mesh, self._batch_size, len(split))
        share = process_share()
        with tqdm(
            total=len(range(len(split))[share.of(len(split))]),
            desc=name,
            unit="image",
            mininterval=1.0,
            disable=not is_writer(),
        ) as progress:
            for batch in eval_batches(
                split, size, transform=self._transform, cache=self._image_cache, share=share
            ):
                yield batch
                progress.update(int((batch.indices >= 0).sum()))

    def _scalar(self, value: float) -> jax.Array:
        return replicate(self._mesh, jnp.asarray(value, jnp.float32))


def in_order_of_last(batches: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """The columns of all batches, sorted by the last: processes read different parts of a split."""
    columns = [np.concatenate(column) for column in zip(*batches, strict=True)]
    order = np.argsort(columns[-1])
    return [column[order] for column in columns]


def choose_cache_logit_weight(accuracies: dict[float, float]) -> float:
    """The λ of the highest validation accuracy; of equals, the one nearest 1."""
    best = max(accuracies.values())
    return min((w for w, a in accuracies.items() if a == best), key=lambda w: abs(w - 1.0))
