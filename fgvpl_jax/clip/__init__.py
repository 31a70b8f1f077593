"""The frozen two-tower backbone: loads a checkpoint and computes features."""

from fgvpl_jax.clip.image_encoder import FrozenEncoder, ImageEncoder
from fgvpl_jax.clip.load import CLIP, Identity, identity_of, load_clip
from fgvpl_jax.clip.towers import ImageTower, PooledTower, TextTower, VisionTower, class_token_tower

__all__ = [
    "CLIP",
    "FrozenEncoder",
    "Identity",
    "ImageEncoder",
    "ImageTower",
    "PooledTower",
    "TextTower",
    "VisionTower",
    "class_token_tower",
    "identity_of",
    "load_clip",
]
