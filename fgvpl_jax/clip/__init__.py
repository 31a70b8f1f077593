"""The frozen two-tower backbone: loads a Hugging Face CLIP and computes features."""

from fgvpl_jax.clip.image_encoder import FrozenEncoder, ImageEncoder
from fgvpl_jax.clip.load import CLIP, Identity, identity_of, load_clip
from fgvpl_jax.clip.towers import TextTower, VisionTower

__all__ = [
    "CLIP",
    "FrozenEncoder",
    "Identity",
    "ImageEncoder",
    "TextTower",
    "VisionTower",
    "identity_of",
    "load_clip",
]
