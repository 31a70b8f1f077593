"""A trained model's device programs: photos are encoded once, and recognised among any classes."""

from functools import partial
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

    probabilities: Float[Array | np.ndarray, "b k"]
    logits: Float[Array | np.ndarray, "b k"]
    contributions: dict[str, Float[Array | np.ndarray, "b k"]]
    similar: tuple[Float[Array | np.ndarray, "b c"], Int[Array | np.ndarray, "b c"]] | None
    attention_map: Float[Array | np.ndarray, "b n"] | None
    object_mask: Bool[Array | np.ndarray, "b n"] | None


class Weights(NamedTuple):
    """All arrays that the device programs read, the images apart.

    Attributes:
        state: Of the image encoder and the trained model.
        cache: The visual cache, if the method has one.
        choices: What validation chose, by the names of the arguments of `Method.logits`; float32
            scalars, so that nothing is retraced.
        temperature: Logits are divided by it.
    """

    state: nnx.State
    cache: VisualCache | None
    choices: dict[str, Float[Array, ""]]
    temperature: Float[Array, ""]


class Inference:
    """A model with its final parameters, its cache and what validation chose.

    Args:
        model: Trained.
        image_encoder: Plain CLIP's, for a method that reads its features.
        cache: Of the support images; None for a method without one.
        choices: Such as λ.
        temperature: What the logits are divided by before they become probabilities.

    Attributes:
        weights: Of the programs, on the device.
        program: From (weights, crops) to a `Recognition`, to be traced.
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
        self.weights = Weights(
            jax.device_put(state),
            cache,
            {name: jnp.float32(value) for name, value in choices.items()},
            jnp.float32(temperature),
        )
        self.program = partial(answer, graphdef)
        self._encode = jax.jit(partial(encode, graphdef))
        self._recognise = jax.jit(partial(recognise, graphdef))

    def encode(self, images: UInt8[np.ndarray, "b H W 3"]) -> tuple[Any, tuple | None]:
        """The method's features, and what a cache keeps of them; both stay on the device."""
        return self._encode(self.weights.state, images)

    def recognise(self, features: Any, added: AddedClasses | None = None) -> Recognition:
        """Names the photos behind features of `encode`.

        Args:
            features: Of a batch.
            added: Further classes, of a method with a cache.
        """
        return jax.device_get(self._recognise(self.weights, features, added))


def answer(
    graphdef: nnx.GraphDef, weights: Weights, images: UInt8[Array, "b H W 3"]
) -> Recognition:
    """From crops to all that a prediction says, as one program."""
    return recognise(graphdef, weights, encode(graphdef, weights.state, images)[0])


def encode(
    graphdef: nnx.GraphDef, state: nnx.State, images: UInt8[Array, "b H W 3"]
) -> tuple[Any, tuple | None]:
    """See `Inference.encode`."""
    image_encoder, model = nnx.merge(graphdef, state)
    features = model.features(image_encoder(images) if model.reads_features else images)
    return features, model.kept_features(features) if model.uses_cache else None


def recognise(
    graphdef: nnx.GraphDef, weights: Weights, features: Any, added: AddedClasses | None = None
) -> Recognition:
    """See `Inference.recognise`; to be traced."""
    state, cache, choices, temperature = weights
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
        closest, places = jax.lax.top_k(affinity, min(NUM_SIMILAR, affinity.shape[1]))
        similar = closest, places
    where = (None, None)
    if model.finds_objects:
        where = (features.attention_map, features.object_mask)
    probabilities = jax.nn.softmax(logits / temperature)
    return Recognition(probabilities, logits, contributions, similar, *where)


def padded_batch(
    crops: list[UInt8[np.ndarray, "H W 3"]], size: int
) -> UInt8[np.ndarray, "b H W 3"]:
    """The crops, and black ones up to `size`."""
    pixels = np.stack(crops)
    return np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0)))
