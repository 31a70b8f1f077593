"""The interface of a method: one nnx.Module class, from images or frozen features to logits.

To add a method, write one file with a subclass of `PixelMethod` or `FeatureMethod` and add one line
to `fgvpl_jax/methods/__init__.py`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, FrozenEncoder
from fgvpl_jax.methods.held_out import LabelledLogits
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.recognition import normalize, total
from fgvpl_jax.variables import Frozen, to_device

# Numbers that validation chooses, by the names of the arguments of `logits` that take them.
Choices = dict[str, float]


class Task(NamedTuple):
    """The classification task that a model is built for.

    Attributes:
        class_names: Names of the classes in label order.
        text_features: Zero-shot weights w, unit vectors.
        support_labels: Classes of the support images.
        support_copies: Number of the group of copies of each support image, as `Split.copies`.
    """

    class_names: tuple[str, ...]
    text_features: Float[Array, "k e"]
    support_labels: Int[np.ndarray, "s"]
    support_copies: Int[np.ndarray, "s"] | None = None


class Recipe(NamedTuple):
    """Hyperparameters of a training run; `Method.optimizer` returns the optimizer itself."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


# For methods that train no epoch; the batch size is that of evaluation.
NO_TRAINING = Recipe(epochs=0, batch_size=256, learning_rate=0.0, weight_decay=0.0)


@runtime_checkable
class FewShotFeatures(Protocol):
    """Features of the few-shot images, computed when a method calls for them.

    Attributes:
        labels: Classes of the support images.
    """

    labels: Int[np.ndarray, "s"]

    def augmented(self, epoch: int) -> Float[np.ndarray, "s e"]:
        """Returns features of the support images as augmented in epoch `epoch`, counted from 0."""

    def plain(self) -> Float[np.ndarray, "s e"]:
        """Returns features of the support images under the evaluation transform."""

    def validation(self) -> tuple[Float[np.ndarray, "v e"], Int[np.ndarray, "v"]] | None:
        """Returns features and labels of the readable validation images, None without any."""


class Method(nnx.Module):
    """One row of the paper's tables; its variables are `Trainable` or `Frozen`.

    A class with a `name` must define or inherit `logits` or `contributions`, each of which is by
    default computed from the other.

    Attributes:
        name: Value of `config.method` that selects the method.
        title: Name in tables and figures.
        reads_features: Whether inputs are the frozen features of `frozen_encoder`, and not pixels.
        finds_objects: Whether its features have an `attention_map` and an `object_mask`.
        tunable_encoder: Whether its image encoder supports `compute_dtype` and `rematerialise`.
        uses_cache: Whether its logits need a `VisualCache` of the support images.
        leave_one_out: Whether training keeps an image from matching itself in that cache, by
            passing `own_places` to `logits`.
        text_features: Frozen unit vectors w [k, e].
        logit_scale: The backbone's exp(logit_scale), frozen.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads_features: ClassVar[bool]
    finds_objects: bool = False
    tunable_encoder: ClassVar[bool] = False
    uses_cache: ClassVar[bool] = False
    leave_one_out: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuses a named method without logits, whose two defaults would call each other forever.

        Raises:
            TypeError: If the class has a `name` and neither `logits` nor `contributions`.
        """
        super().__init_subclass__(**options)
        defaults = cls.logits is Method.logits and cls.contributions is Method.contributions
        if "name" in vars(cls) and defaults:
            raise TypeError(
                f"the method class {cls.__name__} defines neither `logits` nor `contributions`: "
                "define one of them"
            )

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"]):
        self.text_features = Frozen(text_features)
        self.logit_scale = Frozen(to_device(clip.logit_scale))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "Method":
        """Builds the model before training.

        Args:
            clip: The backbone.
            task: Classes and labels.
            config: Config of the run; see `default_config.py`.
            rngs: Random streams seeded from the run's seed.
        """
        raise NotImplementedError

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns the values for fields such as epochs and batch size that a config leaves out.

        Args:
            benchmark: Value of `config.benchmark`.
            shots: Images per class.
            num_images: Number of support images.
        """
        return NO_TRAINING

    @staticmethod
    def schedule(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """Returns a cosine decay to 0.

        Here and in `optimizer`, equal arguments return the same object.
        """
        return cosine(learning_rate, epochs * steps_per_epoch)

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Returns AdamW."""
        return adamw(schedule, weight_decay)

    @classmethod
    def starting_choices(cls, config: ConfigDict) -> Choices:
        """Returns the choices used in training, and in evaluation without validation images."""
        return {}

    @classmethod
    def candidates(cls, config: ConfigDict) -> Sequence[Choices]:
        """Returns the candidates of validation, which picks the first of equally good ones."""
        return [cls.starting_choices(config)]

    @classmethod
    def frozen_encoder(cls, clip: CLIP, config: ConfigDict) -> FrozenEncoder:
        """Returns the encoder of the frozen features that the method reads, if it reads any."""
        return clip.image_encoder

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Sets parameters from the few-shot images, before the first epoch."""

    def facts(self) -> dict[str, Any]:
        """Returns the entries that a trained model adds to `results.json`."""
        return {}

    def held_out_logits(self) -> LabelledLogits | None:
        """Returns logits of support images, each from a fit without it; None if unknown.

        Images whose class has no other image, and copies of images, are left out.
        """
        return None

    def features(self, inputs: Any) -> Any:
        """Returns the features that logits are computed from, the same for all choices."""
        raise NotImplementedError

    def support_features(self, inputs: Any) -> tuple:
        """Returns the first fields of a `VisualCache` of these images."""
        return self.kept_features(self.features(inputs))

    def kept_features(self, features: Any) -> tuple:
        """Returns the part of the features that a `VisualCache` keeps."""
        raise NotImplementedError

    # mypy lets subclasses name their own choices only if the signature here takes Any.
    def logits(
        self, features: Any, support: Any, *args: Any, **choices: Any
    ) -> Float[Array, "b k"]:
        """Returns the logits of features; `support` is a `VisualCache` or None.

        A method defines either `logits`, or `contributions`, which add up to the logits.
        """
        return total(self.contributions(features, support, *args, **choices))

    def contributions(
        self, features: Any, support: Any, *args: Any, **choices: Any
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the terms that add up to the logits, one for each feature and pathway.

        Their names are "image_text", "image_cache", "object_text" and "object_cache", or only
        "image" if the logits have no such parts. The arguments are those of `logits`.
        """
        return {"image": self.logits(features, support, *args, **choices)}

    def zero_shot_logits(self, inputs: Array) -> Float[Array, "b k"]:
        """Returns plain CLIP's logits of the same images (Eq. 1)."""
        raise NotImplementedError

    def __call__(self, inputs: Any, support: Any, **choices: Any) -> Float[Array, "b k"]:
        """Returns the logits of inputs."""
        return self.logits(self.features(inputs), support, **choices)

    def training_logits(
        self, inputs: Any, support: Any, *args: Any, **choices: Any
    ) -> Float[Array, "b k"]:
        """Returns the logits that a training step's loss is computed from."""
        return self(inputs, support, *args, **choices)

    def after_step(self) -> None:
        """Changes trainable variables after a training step, in addition to the optimizer."""

    def text_logits(self, image_features: Float[Array, "b e"]) -> Float[Array, "b k"]:
        """Returns scaled cosines with the zero-shot weights."""
        return self.cosine_logits(image_features, self.text_features[...])

    def cosine_logits(
        self, image_features: Float[Array, "b e"], class_weights: Float[Array, "k e"]
    ) -> Float[Array, "b k"]:
        """Returns scaled cosines with weights that are unit vectors."""
        return self.logit_scale[...] * normalize(image_features) @ class_weights.T


class FeatureMethod(Method):
    """A method whose inputs are raw frozen features: by default, CLIP's image features [b, e]."""

    reads_features = True

    def features(self, inputs: Float[Array, "b e"]) -> Any:
        """Returns the inputs; methods that compute more before applying choices override this."""
        return inputs

    def zero_shot_logits(self, inputs: Float[Array, "b e"]) -> Float[Array, "b k"]:
        """Returns plain CLIP's logits (Eq. 1)."""
        return self.text_logits(inputs)


class PixelMethod(Method):
    """A method with its own image encoder, whose inputs are uint8 pixels.

    Attributes:
        image_encoder: Plain CLIP's image encoder.
        passes_are_cheap: Whether training on a batch in small parts computes little more than
            training on it at once, apart from comparisons with a cache. It does not if every part
            repeats the text tower's work.
    """

    reads_features = False
    passes_are_cheap: ClassVar[bool] = False

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"]):
        super().__init__(clip, text_features)
        self.image_encoder = clip.image_encoder

    def zero_shot_logits(self, inputs: UInt8[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Returns plain CLIP's logits: no prompt, no adapters, no cache (Eq. 1)."""
        return self.text_logits(self.image_encoder(inputs))
