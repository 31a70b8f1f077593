"""Zero-shot CLIP: predicts the class with the nearest text feature."""

from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.interface import FeatureMethod, Task


class ZeroShot(FeatureMethod):
    """Scaled cosines of image and text features (Eq. 1); nothing is trained."""

    name = "zero_shot"
    title = "Zero-shot CLIP"

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "ZeroShot":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.text_features)

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns scaled cosines."""
        return self.text_logits(features)
