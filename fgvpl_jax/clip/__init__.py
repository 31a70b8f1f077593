"""The frozen two-tower backbone: a Hugging Face CLIP in, features out."""

from fgvpl_jax.clip.image_encoder import ImageEncoder
from fgvpl_jax.clip.load import CLIP, Identity, identity_of, load_clip
from fgvpl_jax.clip.towers import TextTower, VisionTower

__all__ = [
    "CLIP",
    "Identity",
    "ImageEncoder",
    "TextTower",
    "VisionTower",
    "identity_of",
    "load_clip",
]
