"""Zero-shot CLIP: the class whose text is nearest."""

from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.interface import FeatureMethod, Task


class ZeroShot(FeatureMethod):
    """Cosines of image and text features (Eq. 1); nothing is trained."""

    name = "zero_shot"
    title = "Zero-shot CLIP"

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "ZeroShot":
        """The model; see `Method.build`."""
        return cls(clip, task.text_features)

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Scaled cosines."""
        return self.text_logits(features)
