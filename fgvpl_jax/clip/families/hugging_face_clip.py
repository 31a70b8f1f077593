"""transformers' `CLIPModel`: OpenAI's CLIP and the models converted to its form."""

from pathlib import Path
from typing import Any

from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.clip.families.transformers_files import (
    CONFIG_FILE,
    SMALL_FILES,
    TEXT_NAMES,
    VISION_NAMES,
    not_described,
    parse_config,
    text_config,
    vision_config,
)
from fgvpl_jax.clip.family import Architecture, Family
from fgvpl_jax.clip.image_input import TransformersProcessor
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import TextTower, VisionTower, without_weights
from fgvpl_jax.clip.weights import TRANSFORMERS_FORMATS

CLASS_NAME = "CLIPConfig"
# Configs from before transformers pooled at the end-of-text token have this id. Features are pooled
# at the largest id, which is the end of the text in CLIP's vocabulary.
LEGACY_EOS_TOKEN_ID = 2


def read_sizes(file: Path, raw: dict[str, Any]) -> tuple[VisionConfig, TextConfig]:
    """Returns both towers' configs.

    Args:
        file: Path of config.json, for messages.
        raw: Content of the file.
    Raises:
        UserError: If it does not describe a CLIP.
    """
    config = parse_config(file, raw, CLASS_NAME)
    eos = config.text_config.eos_token_id
    try:
        return (
            vision_config(config.vision_config, config.projection_dim),
            text_config(
                config.text_config,
                config.projection_dim,
                None if eos == LEGACY_EOS_TOKEN_ID else eos,
            ),
        )
    except Exception as error:  # values of unusable types raise different errors
        raise not_described(file, CLASS_NAME, error) from error


def read(directory: Path, raw: dict[str, Any]) -> Architecture:
    """Reads the architecture; see `Family.read`."""
    vision, text = read_sizes(directory / CONFIG_FILE, raw)
    return architecture(directory, vision, text, Tokenizer(directory, text))


def architecture(
    directory: Path, vision: VisionConfig, text: TextConfig, tokenizer: Tokenizer
) -> Architecture:
    """Returns CLIP's two towers with a tokenizer."""
    return Architecture(
        vision=without_weights(VisionTower, vision),
        text=without_weights(TextTower, text),
        vision_names=VISION_NAMES,
        text_names=TEXT_NAMES,
        tokenizer=tokenizer,
        image_processor=TransformersProcessor(directory, vision.image_size),
    )


HUGGING_FACE_CLIP = Family(
    name="transformers' CLIPModel (model_type 'clip')",
    config_file=CONFIG_FILE,
    matches=lambda raw: raw.get("model_type") == "clip",
    weight_formats=TRANSFORMERS_FORMATS,
    small_files=SMALL_FILES,
    read=read,
)
