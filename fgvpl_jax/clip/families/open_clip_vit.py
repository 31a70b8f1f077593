"""OpenCLIP's ViTs in its own form: OpenAI through timm, LAION, DataComp, DFN, MetaCLIP 1."""

from functools import partial
from typing import Any

from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.families.open_clip_files import (
    CONFIG_FILE,
    LAYER_NAMES,
    SMALL_FILES,
    WEIGHT_FORMATS,
    activation,
    layer_norm_eps,
    read,
    side,
)
from fgvpl_jax.clip.family import AS_IS, PATCHES, Family, Source
from fgvpl_jax.clip.towers import VisionTower, without_weights

VISION_NAMES: dict[str, str | Source] = {
    **LAYER_NAMES,
    "class_embedding": "visual.class_embedding",
    "patch_embedding.kernel": Source("visual.conv1.weight", PATCHES),
    "position_embedding": "visual.positional_embedding",
    "pre_norm": "visual.ln_pre",
    "layers": "visual.transformer.resblocks",
    "post_norm": "visual.ln_post",
    "projection.kernel": Source("visual.proj", AS_IS),
}


def build(model: dict[str, Any], vision: dict[str, Any]) -> VisionTower:
    """Returns the image tower without weights, with OpenCLIP's defaults for omitted values."""
    width = vision.get("width", 768)
    config = VisionConfig(
        width=width,
        num_layers=vision.get("layers", 12),
        num_heads=width // vision.get("head_width", 64),
        mlp_width=int(width * vision.get("mlp_ratio", 4.0)),
        activation=activation(model),
        layer_norm_eps=layer_norm_eps(vision),
        image_size=side(vision.get("image_size", 224)),
        patch_size=side(vision.get("patch_size", 16)),
        embed_dim=model["embed_dim"],
    )
    return without_weights(VisionTower, config)


OPEN_CLIP_VIT = Family(
    name="OpenCLIP's ViTs",
    config_file=CONFIG_FILE,
    matches=lambda raw: True,  # every config that no other family recognises
    weight_formats=WEIGHT_FORMATS,
    small_files=SMALL_FILES,
    read=partial(read, build=build, vision_names=VISION_NAMES),
)
