"""What a method is: one nnx.Module class, from images or frozen features to logits.

A new method is one file with one subclass of `PixelMethod` or `FeatureMethod` and one line in
`fgvpl_jax/methods/__init__.py`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.recognition import normalize, total
from fgvpl_jax.variables import Frozen

# Numbers that are chosen on validation, by the names of the arguments of `logits` that they are.
Choices = dict[str, float]


class Task(NamedTuple):
    """What a model is built for.

    Attributes:
        class_names: In label order.
        text_features: w, the zero-shot weights, unit vectors.
        support_labels: Classes of the few-shot images.
    """

    class_names: tuple[str, ...]
    text_features: Float[Array, "k e"]
    support_labels: Int[np.ndarray, "s"]


class Recipe(NamedTuple):
    """How long and how fast a method is trained; `Method.optimizer` says by what."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


# Of methods without an epoch; the batch size is that of evaluation's own batches.
NO_TRAINING = Recipe(epochs=0, batch_size=256, learning_rate=0.0, weight_decay=0.0)


@runtime_checkable
class FewShotFeatures(Protocol):
    """The few-shot images as the method reads them, made when they are asked for.

    Attributes:
        labels: Classes of the support images.
    """

    labels: Int[np.ndarray, "s"]

    def augmented(self, epoch: int) -> Float[np.ndarray, "s e"]:
        """Features of the support images as epoch `epoch`, from 0, sees them."""

    def plain(self) -> Float[np.ndarray, "s e"]:
        """Features of the support images under the evaluation transform."""

    def validation(self) -> tuple[Float[np.ndarray, "v e"], Int[np.ndarray, "v"]] | None:
        """Features and labels of the readable validation images, if there are any."""


class Method(nnx.Module):
    """One row of the paper's tables; variables are `Trainable` or `Frozen`.

    Attributes:
        name: Of `config.method`.
        title: In tables.
        reads_features: Whether it reads CLIP's frozen image features, [b, e], or pixels.
        finds_objects: Whether its features have an `attention_map` and an `object_mask`.
        tunable_encoder: Whether its image encoder heeds `compute_dtype` and `rematerialise`.
        uses_cache: Whether its logits need a `VisualCache` of the support images.
        leave_one_out: Whether in training an image is kept from matching itself in that cache:
            then `logits` is given `own_places`.
        text_features: w [k, e], frozen, unit vectors.
        logit_scale: The backbone's exp(logit_scale), frozen.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads_features: ClassVar[bool]
    finds_objects: ClassVar[bool] = False
    tunable_encoder: ClassVar[bool] = False
    uses_cache: ClassVar[bool] = False
    leave_one_out: bool = False

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"]):
        self.text_features = Frozen(text_features)
        self.logit_scale = Frozen(jnp.asarray(clip.logit_scale))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "Method":
        """The model before training.

        Args:
            clip: The backbone.
            task: Classes and labels.
            config: See `default_config.py`.
            rngs: From the run's seed.
        """
        raise NotImplementedError

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """What a config that leaves them out means by epochs, batch size and so on.

        Args:
            benchmark: `config.benchmark`.
            shots: Images per class.
            num_images: Of the support set.
        """
        return NO_TRAINING

    @staticmethod
    def schedule(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """A cosine to 0; here and in `optimizer` equal arguments give the same object."""
        return cosine(learning_rate, epochs * steps_per_epoch)

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """AdamW."""
        return adamw(schedule, weight_decay)

    @classmethod
    def starting_choices(cls, config: ConfigDict) -> Choices:
        """The choices in training, and where there is no validation image to choose by."""
        return {}

    @classmethod
    def candidates(cls, config: ConfigDict) -> Sequence[Choices]:
        """The choices that validation chooses from; of equally good ones it takes the first."""
        return [cls.starting_choices(config)]

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Sets parameters from the few-shot images, before the first epoch."""

    def facts(self) -> dict[str, Any]:
        """What a trained model adds to `results.json`."""
        return {}

    def features(self, inputs: Array) -> Any:
        """What the logits are computed from, the same for all choices."""
        raise NotImplementedError

    def support_features(self, inputs: Array) -> tuple:
        """The first fields of a `VisualCache` of these images."""
        return self.kept_features(self.features(inputs))

    def kept_features(self, features: Any) -> tuple:
        """What a `VisualCache` keeps of features at hand."""
        raise NotImplementedError

    # mypy lets methods name their own choices only under Any's signature.
    def logits(
        self, features: Any, support: Any, *args: Any, **choices: Any
    ) -> Float[Array, "b k"]:
        """Logits of features at hand; `support` is a `VisualCache` or None.

        A method defines these or the `contributions` that they are the sum of.
        """
        return total(self.contributions(features, support, *args, **choices))

    def contributions(
        self, features: Any, support: Any, *args: Any, **choices: Any
    ) -> dict[str, Float[Array, "b k"]]:
        """What each feature and pathway adds to the logits, which are the sum.

        Names are "image_text", "image_cache", "object_text" and "object_cache", or "image" alone
        where the logits have no such parts; arguments are those of `logits`.
        """
        return {"image": self.logits(features, support, *args, **choices)}

    def zero_shot_logits(self, inputs: Array) -> Float[Array, "b k"]:
        """Plain CLIP's logits of the same images (Eq. 1)."""
        raise NotImplementedError

    def __call__(self, inputs: Array, support: Any, **choices: Any) -> Float[Array, "b k"]:
        """From inputs to logits."""
        return self.logits(self.features(inputs), support, **choices)

    def text_logits(self, image_features: Float[Array, "b e"]) -> Float[Array, "b k"]:
        """Scaled cosines with the zero-shot weights."""
        return self.cosine_logits(image_features, self.text_features[...])

    def cosine_logits(
        self, image_features: Float[Array, "b e"], class_weights: Float[Array, "k e"]
    ) -> Float[Array, "b k"]:
        """Scaled cosines with weights that are unit vectors."""
        return self.logit_scale[...] * normalize(image_features) @ class_weights.T


class FeatureMethod(Method):
    """A method that reads CLIP's frozen image features, raw."""

    reads_features = True

    def features(self, inputs: Float[Array, "b e"]) -> Any:
        """The inputs, of a method that computes nothing else before its choices."""
        return inputs

    def zero_shot_logits(self, inputs: Float[Array, "b e"]) -> Float[Array, "b k"]:
        """Plain CLIP's logits (Eq. 1)."""
        return self.text_logits(inputs)


class PixelMethod(Method):
    """A method with an image encoder of its own, from uint8 pixels.

    Attributes:
        image_encoder: Plain CLIP's.
        passes_are_cheap: Whether training a batch in small parts computes little more than at
            once, apart from comparisons with a cache; not so where every part has the text
            tower's work to do.
    """

    reads_features = False
    passes_are_cheap: ClassVar[bool] = False

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"]):
        super().__init__(clip, text_features)
        self.image_encoder = clip.image_encoder

    def zero_shot_logits(self, inputs: UInt8[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Plain CLIP's logits: no prompt, no adapters, no cache (Eq. 1)."""
        return self.text_logits(self.image_encoder(inputs))
