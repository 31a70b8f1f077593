"""A trained model's device programs: photos are encoded once, and recognised among any classes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from fgvpl_jax.clip import ImageEncoder
from fgvpl_jax.methods import Choices, Method
from fgvpl_jax.recognition import VisualCache, total

NUM_SIMILAR = 3


class AddedClasses(NamedTuple):
    """Classes that a model was not trained for, padded so that their number is no new shape.

    Attributes:
        text_features: Unit vectors; rows beyond `num_classes` are padding.
        num_classes: How many there are.
        photos: What the cache gets for them; labels go on after the trained classes'.
    """

    text_features: Float[Array, "m e"]
    num_classes: Int[Array, ""]
    photos: VisualCache


class Recognition(NamedTuple):
    """What the model says of a batch; the last three are None where the method has no such thing.

    Attributes:
        probabilities: Tempered, as the run was calibrated.
        logits: As they are; of padding classes -inf.
        contributions: See `Method.contributions`; they add up to the logits.
        similar: Cosine with the closest photos of the cache (Eq. 17), and their places in it.
        attention_map: See `ImageFeatures`.
        object_mask: See `ImageFeatures`.
    """

    probabilities: Float[np.ndarray, "b k"]
    logits: Float[np.ndarray, "b k"]
    contributions: dict[str, Float[np.ndarray, "b k"]]
    similar: tuple[Float[np.ndarray, "b c"], Int[np.ndarray, "b c"]] | None
    attention_map: Float[np.ndarray, "b n"] | None
    object_mask: Bool[np.ndarray, "b n"] | None


class Inference:
    """A model with its final parameters, its cache and what validation chose.

    Args:
        model: Trained.
        image_encoder: Plain CLIP's, for a method that reads its features.
        cache: Of the support images; None for a method without one.
        choices: Such as λ.
        temperature: What the logits are divided by before they become probabilities.
    """

    def __init__(
        self,
        model: Method,
        image_encoder: ImageEncoder,
        cache: VisualCache | None,
        choices: Choices,
        temperature: float,
    ):
        graphdef, state = nnx.split((image_encoder, model))
        self._state = jax.device_put(state)
        self._cache = cache
        # As float32 scalars, so that nothing is retraced.
        self._choices = {name: jnp.float32(value) for name, value in choices.items()}
        self._temperature = jnp.float32(temperature)

        @jax.jit
        def encode(state, images):
            image_encoder, model = nnx.merge(graphdef, state)
            features = model.features(image_encoder(images) if model.reads_features else images)
            return features, model.kept_features(features) if model.uses_cache else None

        @jax.jit
        def recognise(state, cache, choices, temperature, added, features):
            _, model = nnx.merge(graphdef, state)
            num_classes = None
            if added is not None:
                num_classes = model.text_features.shape[0] + added.num_classes
                texts = [model.text_features[...], added.text_features]
                model.text_features.set_value(jnp.concatenate(texts))
                cache = jax.tree.map(lambda *rows: jnp.concatenate(rows), cache, added.photos)
            contributions = model.contributions(features, cache, **choices)
            logits = total(contributions)
            if num_classes is not None:
                logits = jnp.where(jnp.arange(logits.shape[1]) < num_classes, logits, -jnp.inf)
            similar = None
            if cache is not None:
                affinity = jnp.where(cache.valid, model.affinity(features, cache), -jnp.inf)
                similar = tuple(jax.lax.top_k(affinity, min(NUM_SIMILAR, affinity.shape[1])))
            where = (None, None)
            if model.finds_objects:
                where = (features.attention_map, features.object_mask)
            probabilities = jax.nn.softmax(logits / temperature)
            return Recognition(probabilities, logits, contributions, similar, *where)

        self._encode, self._recognise = encode, recognise

    def encode(self, images: UInt8[np.ndarray, "b H W 3"]) -> tuple[Any, tuple | None]:
        """The method's features, and what a cache keeps of them; both stay on the device."""
        return self._encode(self._state, images)

    def recognise(self, features: Any, added: AddedClasses | None = None) -> Recognition:
        """Names the photos behind features of `encode`.

        Args:
            features: Of a batch.
            added: Further classes, of a method with a cache.
        """
        return jax.device_get(
            self._recognise(
                self._state, self._cache, self._choices, self._temperature, added, features
            )
        )


def padded_batch(
    crops: list[UInt8[np.ndarray, "H W 3"]], size: int
) -> UInt8[np.ndarray, "b H W 3"]:
    """The crops, and black ones up to `size`."""
    pixels = np.stack(crops)
    return np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0)))
