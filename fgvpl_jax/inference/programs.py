"""Device programs of a trained model, which encode photos once and recognise them by class."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from fgvpl_jax.clip import FrozenEncoder, ImageEncoder
from fgvpl_jax.methods import Choices, Method
from fgvpl_jax.recognition import KnownClasses, VisualCache, known_score, normalize, total
from fgvpl_jax.training import PROGRAMS_KEPT
from fgvpl_jax.variables import to_device

NUM_SIMILAR = 3


class AddedClassArrays(NamedTuple):
    """Classes that a model was not trained for, padded so that their number changes no shape.

    Attributes:
        text_features: Unit vectors.
        photos: Cache entries of their photos; labels continue after those of the trained classes.
    """

    text_features: Float[Array, "m e"]
    photos: VisualCache


class ChangedClassArrays(NamedTuple):
    """Changes of the classes that a model was trained for.

    Attributes:
        is_predicted: Whether each class can be predicted, the trained classes first; False for a
            class that was removed and for padding.
        added: The added classes; None without any.
    """

    is_predicted: Bool[Array, "k"]
    added: AddedClassArrays | None


class ObjectLocations(NamedTuple):
    """Locations of the objects in a batch of photos, by patch.

    Attributes:
        attention_map: See `ImageFeatures`.
        object_mask: See `ImageFeatures`.
    """

    attention_map: Float[Array | np.ndarray, "b n"]
    object_mask: Bool[Array | np.ndarray, "b n"]


class Encoded(NamedTuple):
    """Features of a batch of photos.

    Attributes:
        method: Features as the method reads them.
        known_score: See `known_score`; None for a run without known classes.
    """

    method: Any
    known_score: Float[Array | np.ndarray, "b"] | None


class Recognition(NamedTuple):
    """The model's output for a batch.

    Attributes:
        probabilities: Softmax of the logits, divided by the run's calibrated temperature.
        logits: Scores before the temperature; -inf for a class that cannot be predicted.
        contributions: See `Method.contributions`; they add up to the logits.
        similar: Cosine similarities to the closest photos of the cache (Eq. 17), and the places of
            these photos in it; -inf where too few photos are of a class that can be predicted.
            None for a method without a cache.
        locations: Locations of the objects; None for a method that looks for no object.
        known_score: Score of belonging to the known classes; None for a run without it, and with
            changed classes.
    """

    probabilities: Float[Array | np.ndarray, "b k"]
    logits: Float[Array | np.ndarray, "b k"]
    contributions: dict[str, Float[Array | np.ndarray, "b k"]]
    similar: tuple[Float[Array | np.ndarray, "b c"], Int[Array | np.ndarray, "b c"]] | None
    locations: ObjectLocations | None
    known_score: Float[Array | np.ndarray, "b"] | None


class Weights(NamedTuple):
    """All arrays that the device programs read, except the images.

    Attributes:
        state: State of the method's frozen encoder, the trained model and CLIP's image encoder.
        cache: The visual cache, if the method has one.
        choices: Values chosen on validation, under the argument names of `Method.logits`; float32
            scalars, so that nothing is traced again.
        temperature: Divisor of the logits.
        known: The known classes; None for a run without them.
    """

    state: nnx.State
    cache: VisualCache | None
    choices: dict[str, Float[Array, ""]]
    temperature: Float[Array, ""]
    known: KnownClasses | None


class Inference:
    """A model with its final parameters, its cache and the values chosen on validation.

    Args:
        model: The trained model.
        image_encoder: CLIP's image encoder, whose features the score of belonging reads.
        frozen_encoder: Encoder of the features that a `FeatureMethod` reads.
        cache: Cache of the support images; None for a method without one.
        choices: Values chosen on validation, such as λ.
        temperature: Divisor of the logits before they become probabilities.
        known: The known classes; None for a run without them.

    Attributes:
        weights: The programs' weights, on the device.
        programs: The compiled programs, whose first argument is `weights`.
    """

    def __init__(
        self,
        model: Method,
        image_encoder: ImageEncoder,
        frozen_encoder: FrozenEncoder,
        cache: VisualCache | None,
        choices: Choices,
        temperature: float,
        known: KnownClasses | None,
    ):
        graphdef, state = nnx.split((frozen_encoder, model, image_encoder))
        self.weights = Weights(
            jax.device_put(state),
            cache,
            {name: to_device(value) for name, value in choices.items()},
            to_device(temperature),
            jax.device_put(known),
        )
        self.programs = compile_inference(graphdef)

    def encode(
        self, images: UInt8[np.ndarray, "b H W 3"], *, scored: bool = True
    ) -> tuple[Encoded, tuple | None]:
        """Returns the features and those a cache would store; both stay on the device.

        Args:
            images: A batch of crops.
            scored: Whether to compute the score of belonging to the known classes, which takes
                another pass of the image encoder if the method does not read its features.
        """
        weights = self.weights if scored else self.weights._replace(known=None)
        return self.programs.encode(weights, images)

    def recognise(
        self, features: Encoded, changes: ChangedClassArrays | None = None
    ) -> Recognition:
        """Recognises the photos whose features `encode` returned.

        Args:
            features: Features of a batch.
            changes: Changes of the classes; only a method with a cache can have added ones.
        """
        return jax.device_get(self.programs.recognise(self.weights, features, changes))


class InferencePrograms(NamedTuple):
    """Jitted functions of one model structure; their first argument is the weights.

    Attributes:
        encode: See `Inference.encode`.
        recognise: See `Inference.recognise`.
        encode_and_recognise: Maps crops to a `Recognition`. It is inlined where another program
            calls it, because exports look at single operations.
    """

    encode: Callable
    recognise: Callable
    encode_and_recognise: Callable


@lru_cache(maxsize=PROGRAMS_KEPT)
def compile_inference(graphdef: nnx.GraphDef) -> InferencePrograms:
    """Returns the programs of one model structure, which all models of it share."""
    return InferencePrograms(
        jax.jit(partial(encode, graphdef)),
        jax.jit(partial(recognise, graphdef)),
        jax.jit(partial(encode_and_recognise, graphdef), inline=True),
    )


def encode_and_recognise(
    graphdef: nnx.GraphDef, weights: Weights, images: UInt8[Array, "b H W 3"]
) -> Recognition:
    """Computes everything a prediction reports from the crops, as one program."""
    return recognise(graphdef, weights, encode(graphdef, weights, images)[0])


def encode(
    graphdef: nnx.GraphDef, weights: Weights, images: UInt8[Array, "b H W 3"]
) -> tuple[Encoded, tuple | None]:
    """Implements `Inference.encode`; must be called under jit."""
    frozen_encoder, model, image_encoder = nnx.merge(graphdef, weights.state)
    inputs = frozen_encoder(images) if model.reads_features else images
    score = None
    if weights.known is not None:
        shares_features = model.reads_features and frozen_encoder is image_encoder
        plain = normalize(inputs if shares_features else image_encoder(images))
        with jax.default_matmul_precision("highest"):
            score = known_score(weights.known, plain)
    features = model.features(inputs)
    return Encoded(features, score), model.kept_features(features) if model.uses_cache else None


def recognise(
    graphdef: nnx.GraphDef,
    weights: Weights,
    encoded: Encoded,
    changes: ChangedClassArrays | None = None,
) -> Recognition:
    """Implements `Inference.recognise`; must be called under jit."""
    state, cache, choices, temperature, _ = weights
    _, model, _ = nnx.merge(graphdef, state)
    features, score = encoded.method, encoded.known_score
    if changes is not None:
        score = None  # the known classes are the trained ones
    if changes is not None and changes.added is not None:
        texts = [model.text_features[...], changes.added.text_features]
        model.text_features.set_value(jnp.concatenate(texts))
        cache = jax.tree.map(lambda *rows: jnp.concatenate(rows), cache, changes.added.photos)
    contributions = model.contributions(features, cache, **choices)
    logits = total(contributions)
    if changes is not None:
        logits = jnp.where(changes.is_predicted, logits, -jnp.inf)
    similar = None
    if cache is not None:
        shown = cache.valid
        if changes is not None:
            shown &= changes.is_predicted[cache.labels]
        affinity = jnp.where(shown, model.affinity(features, cache), -jnp.inf)
        closest, places = jax.lax.top_k(affinity, min(NUM_SIMILAR, affinity.shape[1]))
        similar = closest, places
    locations = None
    if model.finds_objects:
        locations = ObjectLocations(features.attention_map, features.object_mask)
    probabilities = jax.nn.softmax(logits / temperature)
    return Recognition(probabilities, logits, contributions, similar, locations, score)


def padded_batch(
    crops: list[UInt8[np.ndarray, "H W 3"]], size: int | None = None
) -> UInt8[np.ndarray, "b H W 3"]:
    """Stacks the crops and appends black ones up to `size`, or up to the next power of two.

    Powers of two need few compilations.
    """
    pixels = np.stack(crops)
    if size is None:
        size = 1 << (len(crops) - 1).bit_length()
    return np.pad(pixels, ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0)))
