"""Tip-Adapter: zero-shot CLIP and a cache of the support features; nothing is trained.

α and β in this file are Tip-Adapter's: the weight of the cache and the sharpness of its affinities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.interface import Choices, FeatureMethod, FewShotFeatures, Task
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Frozen, Trainable

NUM_PASSES = 10  # augmented passes over which the keys are averaged
LOWEST = 0.1  # lower limit of the search over α and β
BETA_STEPS, ALPHA_STEPS = 200, 20
# Upper limits of the search, (β, α).
UPPER_LIMITS = {
    "imagenet": (7.0, 3.0),
    "caltech101": (12.0, 5.0),
    "dtd": (13.0, 13.0),
    "eurosat": (12.0, 10.0),
    "fgvc_aircraft": (30.0, 30.0),
    "food101": (10.0, 10.0),
    "oxford_flowers": (50.0, 50.0),
    "oxford_pets": (7.0, 3.0),
    "stanford_cars": (20.0, 10.0),
    "sun397": (12.0, 10.0),
    "ucf101": (7.0, 3.0),
}
# Benchmarks that Tip-Adapter's authors did not use have ImageNet's limits.
OTHER_UPPER_LIMITS = UPPER_LIMITS["imagenet"]
INITIAL_BETA = 1.0
INITIAL_ALPHA = {
    "caltech101": 3.0,
    "dtd": 2.0,
    "eurosat": 2.0,
    "fgvc_aircraft": 5.0,
    "oxford_flowers": 10.0,
    "stanford_cars": 3.0,
    "ucf101": 3.0,
}
OTHER_INITIAL_ALPHA = 1.17


class TipFeatures(NamedTuple):
    """The two parts of an image's logits before α and β are applied.

    Attributes:
        text_logits: Zero-shot logits.
        affinity: Cosines with the keys.
    """

    text_logits: Float[Array, "b k"]
    affinity: Float[Array, "b s"]


class TipAdapter(FeatureMethod):
    """Logits = scale · f·wᵀ + α · exp(-β (1 - f·keysᵀ)) · one_hot(labels).

    Attributes:
        keys: Unit vectors [s, e] computed from the support images.
        labels: Classes [s] of the support images.
    """

    name = "tip_adapter"
    title = "Tip-Adapter"

    def __init__(
        self, clip: CLIP, text_features: Float[Array, "k e"], labels: Int[np.ndarray, "s"]
    ):
        super().__init__(clip, text_features)
        self.keys = Trainable(jnp.zeros((len(labels), text_features.shape[1])))
        self.labels = Frozen(jnp.asarray(labels, jnp.int32))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "TipAdapter":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.text_features, task.support_labels)

    @classmethod
    def starting_choices(cls, config: ConfigDict) -> Choices:
        """Returns the α and β that the search starts from."""
        alpha = INITIAL_ALPHA.get(config.benchmark, OTHER_INITIAL_ALPHA)
        return {"alpha": alpha, "beta": INITIAL_BETA}

    @classmethod
    def candidates(cls, config: ConfigDict) -> Sequence[Choices]:
        """Returns 200 β × 20 α in even steps without the upper limits; smallest β first, then α."""
        highest_beta, highest_alpha = UPPER_LIMITS.get(config.benchmark, OTHER_UPPER_LIMITS)
        return [
            {"alpha": float(alpha), "beta": float(beta)}
            for beta in np.linspace(LOWEST, highest_beta, BETA_STEPS, endpoint=False)
            for alpha in np.linspace(LOWEST, highest_alpha, ALPHA_STEPS, endpoint=False)
        ]

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Sets the keys to each image's mean raw feature over ten augmented passes, then L2."""
        passes = [few_shot.augmented(epoch) for epoch in range(NUM_PASSES)]
        self.keys.set_value(normalize(jnp.asarray(np.mean(passes, axis=0))))

    def features(self, inputs: Float[Array, "b e"]) -> TipFeatures:
        """Returns the parts of the logits that do not depend on α and β."""
        affinity = normalize(inputs) @ self.keys[...].T
        return TipFeatures(self.text_logits(inputs), affinity)

    def contributions(
        self,
        features: TipFeatures,
        support: None,
        alpha: Float[Array, ""] | float,
        beta: Float[Array, ""] | float,
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the terms of zero-shot CLIP and of the cache."""
        votes = jnp.exp(-beta * (1 - features.affinity))
        members = jax.nn.one_hot(self.labels[...], self.text_features.shape[0], dtype=votes.dtype)
        return {"image_text": features.text_logits, "image_cache": alpha * (votes @ members)}
