"""A mix of trained methods, which adds up their probabilities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from fgvpl_jax.clip import CLIP, FrozenEncoder
from fgvpl_jax.methods.interface import Choices, FeatureMethod, Method, PixelMethod
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.variables import Frozen


class Member(NamedTuple):
    """A trained method within a mix.

    Attributes:
        model: The trained model.
        encoder: Encoder of the frozen features that it reads; None for a model that reads pixels.
        cache: Its visual cache; None for a method without one.
        choices: Its values chosen on validation, such as λ.
        temperature: Divisor of its logits.
        weight: Weight of its probabilities.
    """

    model: Method
    encoder: FrozenEncoder | None
    cache: VisualCache | None
    choices: Choices
    temperature: float
    weight: float


class MixedFeatures(NamedTuple):
    """Features of each member, and where the object is.

    Attributes:
        members: Features of each member.
        attention_map: See `ImageFeatures`; None if no member finds objects.
        object_mask: See `ImageFeatures`; None if no member finds objects.
    """

    members: list[Any]
    attention_map: Float[Array, "b n"] | None
    object_mask: Bool[Array, "b n"] | None


class Part(nnx.Module):
    """A `Member` whose numbers are variables."""

    def __init__(self, member: Member):
        self.model = member.model
        self.encoder = member.encoder
        self.cache = Frozen(member.cache)
        self.choices = Frozen({n: jnp.float32(value) for n, value in member.choices.items()})
        self.temperature = Frozen(jnp.float32(member.temperature))
        self.weight = Frozen(jnp.float32(member.weight))

    def features(self, inputs: UInt8[Array, "b H W 3"]) -> Any:
        """Returns the features that logits are computed from, of pixels."""
        return self.model.features(inputs if self.encoder is None else self.encoder(inputs))

    def log_probabilities(self, features: Any) -> Float[Array, "b k"]:
        """Returns the logarithms of the method's probabilities."""
        choices = self.choices.get_value()
        logits = self.model.logits(features, self.cache.get_value(), **choices)
        return jax.nn.log_softmax(logits / self.temperature[...])


class FeatureMixture(FeatureMethod):
    """Logits = log Σ weight · softmax(logits of a member / its temperature); reads features.

    Attributes:
        parts: The members.
    """

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"], members: Sequence[Member]):
        super().__init__(clip, text_features)
        self.parts = nnx.List([Part(member) for member in members])

    def features(self, inputs: Float[Array, "b e"]) -> Any:
        """Returns the features of each member."""
        return [part.model.features(inputs) for part in self.parts]

    def logits(self, features: Any, support: None) -> Float[Array, "b k"]:
        """Returns the logarithms of the mixed probabilities."""
        return mixed(self.parts, features)


class PixelMixture(PixelMethod):
    """`FeatureMixture` for members that do not all read plain CLIP's features.

    It shows the object of the member that has the largest weight among those that find objects.

    Attributes:
        parts: The members.
        shown: Place of that member; None if no member finds objects.
    """

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"], members: Sequence[Member]):
        super().__init__(clip, text_features)
        self.parts = nnx.List([Part(member) for member in members])
        finding = [place for place, one in enumerate(members) if one.model.finds_objects]
        self.shown = max(finding, key=lambda place: members[place].weight, default=None)
        self.finds_objects = self.shown is not None

    def features(self, inputs: Any) -> MixedFeatures:
        """Returns the features of each member, and where the object is."""
        found = [part.features(inputs) for part in self.parts]
        if self.shown is None:
            return MixedFeatures(found, None, None)
        shown = found[self.shown]
        return MixedFeatures(found, shown.attention_map, shown.object_mask)

    def logits(self, features: MixedFeatures, support: None) -> Float[Array, "b k"]:
        """Returns the logarithms of the mixed probabilities."""
        return mixed(self.parts, features.members)


def mixed(parts: Sequence[Part], features: Sequence[Any]) -> Float[Array, "b k"]:
    """Returns the logarithms of the parts' mixed probabilities."""
    pairs = zip(parts, features, strict=True)
    own = jnp.stack([part.log_probabilities(found) for part, found in pairs])
    weights = jnp.stack([part.weight[...] for part in parts])
    return jax.nn.logsumexp(own, axis=0, b=weights[:, None, None])


def mixture(
    clip: CLIP, text_features: Float[Array, "k e"], members: Sequence[Member]
) -> FeatureMixture | PixelMixture:
    """Returns the mix of some trained methods.

    Args:
        clip: The backbone.
        text_features: Zero-shot weights.
        members: The methods; their weights sum to 1.
    """
    only_features = all(member.encoder is clip.image_encoder for member in members)
    return (FeatureMixture if only_features else PixelMixture)(clip, text_features, members)
