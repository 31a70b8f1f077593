"""transformers' `MetaClip2Model`: CLIP's towers with a multilingual vocabulary."""

from pathlib import Path
from typing import Any

from fgvpl_jax.clip.families.hugging_face_clip import architecture
from fgvpl_jax.clip.families.transformers_files import (
    CONFIG_FILE,
    SMALL_FILES,
    not_described,
    parse_config,
    text_config,
    vision_config,
)
from fgvpl_jax.clip.family import Architecture, Family
from fgvpl_jax.clip.text_input import AutoTokenizer
from fgvpl_jax.clip.weights import TRANSFORMERS_FORMATS

CLASS_NAME = "MetaClip2Config"


def read(directory: Path, raw: dict[str, Any]) -> Architecture:
    """Reads the architecture; see `Family.read`."""
    file = directory / CONFIG_FILE
    config = parse_config(file, raw, CLASS_NAME)
    try:
        vision = vision_config(config.vision_config, config.projection_dim)
        # Unlike in CLIP's configs, an end-of-text id of 2 is the id of that token.
        text = text_config(
            config.text_config, config.projection_dim, config.text_config.eos_token_id
        )
    except Exception as error:  # values of unusable types raise different errors
        raise not_described(file, CLASS_NAME, error) from error
    return architecture(directory, vision, text, AutoTokenizer(directory, text))


METACLIP_2 = Family(
    name="transformers' MetaClip2Model (model_type 'metaclip_2')",
    config_file=CONFIG_FILE,
    matches=lambda raw: raw.get("model_type") == "metaclip_2",
    weight_formats=TRANSFORMERS_FORMATS,
    small_files=(*SMALL_FILES, "sentencepiece.bpe.model"),
    read=read,
)
