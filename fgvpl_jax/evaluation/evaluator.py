"""Runs a trained model over a split: one jitted program from uint8 pixels to logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from tqdm import tqdm

from fgvpl_jax.data import Split, Transform, eval_batches
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation.metrics import score
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import batch_size_for, replicate, split_batch


@dataclass(frozen=True)
class Predictions:
    """Logits of the readable images of a split, in the split's order.

    Attributes:
        logits: The trained model's.
        zero_shot_logits: Plain CLIP's, from the same pixels.
        labels: True classes.
        unreadable: "path: reason" of every image that could not be decoded.
    """

    logits: Float[np.ndarray, "N k"]
    zero_shot_logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


class Evaluator:
    """A model with its final parameters and the cache that belongs to them.

    Args:
        graphdef: Structure of the model.
        trainable: Final parameters.
        frozen: The rest.
        cache: Built with the final parameters.
        transform: The checkpoint's own evaluation transform.
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
        batch_size: int,
        mesh: Mesh,
    ):
        self._state = (trainable, frozen)
        self._cache = cache
        self._transform = transform
        self._batch_size = batch_size
        self._mesh = mesh

        @jax.jit
        def both_logits(state, cache, cache_logit_weight, images):
            model = nnx.merge(graphdef, *state)
            return model(images, cache, cache_logit_weight), model.zero_shot_logits(images)

        @jax.jit
        def features(state, images):
            return nnx.merge(graphdef, *state).features(images)

        @jax.jit
        def logits_of(state, cache, cache_logit_weight, features):
            return nnx.merge(graphdef, *state).logits(features, cache, cache_logit_weight)

        self._both_logits, self._features, self._logits_of = both_logits, features, logits_of

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
        logits: list[np.ndarray] = []
        zero_shot: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        unreadable: list[str] = []
        for batch in self._batches(split, name):
            unreadable += batch.unreadable
            ours, plain = jax.device_get(
                self._both_logits(
                    self._state, self._cache, weight, split_batch(self._mesh, batch.images)
                )
            )
            real = batch.weights > 0
            logits.append(ours[real])
            zero_shot.append(plain[real])
            labels.append(batch.labels[real])
        if not sum(map(len, labels)):
            raise UserError(f"none of the {len(split)} {name} images can be read: {unreadable[0]}")
        return Predictions(
            np.concatenate(logits),
            np.concatenate(zero_shot),
            np.concatenate(labels),
            tuple(unreadable),
        )

    def accuracy_by_cache_weight(
        self, split: Split, cache_logit_weights: Sequence[float]
    ) -> dict[float, float]:
        """Accuracy on a split at each λ; the images are encoded once and nothing is retraced."""
        logits: dict[float, list[np.ndarray]] = {weight: [] for weight in cache_logit_weights}
        labels = []
        for batch in self._batches(split, "validation"):
            features = self._features(self._state, split_batch(self._mesh, batch.images))
            real = batch.weights > 0
            labels.append(batch.labels[real])
            for weight, rows in logits.items():
                all_rows = self._logits_of(self._state, self._cache, self._scalar(weight), features)
                rows.append(np.asarray(all_rows)[real])
        truth = np.concatenate(labels)
        return {w: score(np.concatenate(rows), truth).accuracy for w, rows in logits.items()}

    def _batches(self, split: Split, name: str):
        size = batch_size_for(self._mesh, self._batch_size, len(split))
        with tqdm(total=len(split), desc=name, unit="image", mininterval=1.0) as progress:
            for batch in eval_batches(split, size, transform=self._transform):
                yield batch
                progress.update(int((batch.indices >= 0).sum()))

    def _scalar(self, value: float) -> jax.Array:
        return replicate(self._mesh, jnp.asarray(value, jnp.float32))


def choose_cache_logit_weight(accuracies: dict[float, float]) -> float:
    """The λ of the highest validation accuracy; of equals, the one nearest 1."""
    best = max(accuracies.values())
    return min((w for w, a in accuracies.items() if a == best), key=lambda w: abs(w - 1.0))
