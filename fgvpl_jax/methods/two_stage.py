"""2SFS: all LayerNorms of both towers are trained, then a linear classifier on frozen towers."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, ImageEncoder, TextTower
from fgvpl_jax.clip.layers import LayerNorm
from fgvpl_jax.methods.both_towers import (
    FINAL_RATE,
    BothTowers,
    check_has_attention,
    first_template,
)
from fgvpl_jax.methods.interface import Task
from fgvpl_jax.methods.optimizers import CACHE_SIZE, adamw, cosine
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Trainable, trainable_copy

FIRST_STAGE_SHARE = 0.6

ModuleT = TypeVar("ModuleT", ImageEncoder, TextTower)


@dataclass(frozen=True)
class TwoCosines:
    """A schedule, from a step counted from 0 to its rate: a cosine decay to 1e-6 in each stage.

    Attributes:
        learning_rate: Rate of the first step of each stage.
        first_steps: Number of steps of the first stage.
        second_steps: Number of steps of the second stage.
    """

    learning_rate: float
    first_steps: int
    second_steps: int

    def stages(self) -> tuple[optax.Schedule, optax.Schedule]:
        """Returns the schedules of both stages, whose steps are counted from 0."""
        first, second = self.first_steps, max(1, self.second_steps)
        rate = self.learning_rate
        return cosine(rate, first, FINAL_RATE), cosine(rate, second, FINAL_RATE)

    def __call__(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """Returns the rate of a step."""
        return jnp.asarray(optax.join_schedules(self.stages(), [self.first_steps])(step))


class TwoStage(BothTowers):
    """Scaled cosines of the adapted image features with a classifier.

    The first 60% of the steps train the LayerNorms with the adapted text features as classifier.
    The classifier begins at the text features after the last of these steps; only it is trained in
    the remaining steps.

    Attributes:
        classifier: Weights [k, e]; the zero-shot weights until the second stage begins.
        steps_left: Number of steps until the second stage begins; 0 or less within it.
    """

    name = "two_stage"
    title = "2SFS"
    iterations_per_shot = 300
    learning_rate = 2e-4

    def __init__(
        self,
        clip: CLIP,
        class_names: tuple[str, ...],
        template: str,
        text_features: Float[Array, "k e"],
        *,
        first_steps: int,
    ):
        check_has_attention(clip, self.name)
        adapted_encoder = with_trained_norms(clip.image_encoder)
        adapted_text = with_trained_norms(clip.text)
        super().__init__(clip, class_names, template, text_features, adapted_encoder, adapted_text)
        self.classifier = Trainable(jnp.array(text_features, copy=True))
        self.steps_left = Trainable(jnp.float32(first_steps))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "TwoStage":
        """Builds the model; see `Method.build`."""
        steps_per_epoch = math.ceil(len(task.support_labels) / config.batch_size)
        return cls(
            clip,
            task.class_names,
            first_template(config),
            task.text_features,
            first_steps=steps_of_first_stage(config.epochs * steps_per_epoch),
        )

    @staticmethod
    def schedule(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """Returns a cosine decay to 1e-6 for each stage."""
        total = epochs * steps_per_epoch
        first = steps_of_first_stage(total)
        return TwoCosines(learning_rate, first, total - first)

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Returns an AdamW for each stage, which leaves the other stage's variables as they are."""
        assert isinstance(schedule, TwoCosines)
        return two_stage_adamw(schedule, weight_decay)

    def class_weights(self) -> Float[Array, "k e"]:
        """Returns the classifier's weights as unit vectors."""
        return normalize(self.classifier[...])

    def training_logits(
        self, inputs: UInt8[Array, "b H W 3"], support: None
    ) -> Float[Array, "b k"]:
        """Returns scaled cosines with the text features in the first stage, then the logits."""

        def first() -> Float[Array, "b k"]:
            return self.cosine_logits(self.features(inputs), self.adapted_text_features())

        def second() -> Float[Array, "b k"]:
            # Spares the backward pass through the image tower.
            return self.logits(jax.lax.stop_gradient(self.features(inputs)), support)

        return jax.lax.cond(self.steps_left[...] > 0, first, second)

    def after_step(self) -> None:
        """Counts the step; after the last one of the first stage, sets the classifier."""
        steps_left = self.steps_left[...] - 1
        self.classifier.set_value(
            jax.lax.cond(steps_left == 0, self.adapted_text_features, lambda: self.classifier[...])
        )
        self.steps_left.set_value(steps_left)


def steps_of_first_stage(total_steps: int) -> int:
    """Returns 60% of the steps, at least one."""
    return max(1, round(FIRST_STAGE_SHARE * total_steps))


def with_trained_norms(module: ModuleT) -> ModuleT:
    """Returns a copy of a frozen module whose LayerNorms are trainable."""
    copy = nnx.clone(module)
    for _, node in list(nnx.iter_graph(copy)):
        if isinstance(node, nnx.Module):
            for name, value in list(vars(node).items()):
                if isinstance(value, LayerNorm):
                    setattr(node, name, trainable_copy(value))
    return copy


@lru_cache(CACHE_SIZE)
def two_stage_adamw(schedule: TwoCosines, weight_decay: float) -> optax.GradientTransformation:
    """Returns the optimizer: AdamW of the towers in the first stage, of the classifier after it.

    Each has its own count of steps, so that the classifier's moments begin at its own first step.
    """
    first, second = schedule.stages()
    num_steps = schedule.first_steps
    stages = {
        "towers": optax.conditionally_mask(
            adamw(first, weight_decay), lambda step: step < num_steps
        ),
        "classifier": optax.conditionally_mask(
            adamw(second, weight_decay), lambda step: step >= num_steps
        ),
        "fixed": optax.set_to_zero(),
    }
    labels = {
        "adapted_encoder": "towers",
        "adapted_text": "towers",
        "classifier": "classifier",
        "steps_left": "fixed",
    }
    return optax.multi_transform(stages, lambda state: type(state)(labels))
