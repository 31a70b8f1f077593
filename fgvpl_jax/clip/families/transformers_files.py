"""Files, sizes and tensor names that the families of transformers share."""

from pathlib import Path
from typing import Any

from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.clip.family import LINEAR, PATCHES, Source
from fgvpl_jax.clip.text_input import without_warnings
from fgvpl_jax.errors import UserError

CONFIG_FILE = "config.json"
# Listed by name, because a pattern such as *.json would also fetch small files of other formats.
SMALL_FILES = (
    CONFIG_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
)

LAYER_NAMES: dict[str, str | Source] = {
    "norm1": "layer_norm1",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "kernel": Source("weight", LINEAR),
    "scale": "weight",
}
VISION_NAMES: dict[str, str | Source] = {
    **LAYER_NAMES,
    "class_embedding": "vision_model.embeddings.class_embedding",
    "patch_embedding.kernel": Source("vision_model.embeddings.patch_embedding.weight", PATCHES),
    "position_embedding": "vision_model.embeddings.position_embedding.weight",
    "pre_norm": "vision_model.pre_layrnorm",  # Hugging Face's spelling
    "layers": "vision_model.encoder.layers",
    "post_norm": "vision_model.post_layernorm",
    "projection": "visual_projection",
}
TEXT_NAMES: dict[str, str | Source] = {
    **LAYER_NAMES,
    "token_embedding": "text_model.embeddings.token_embedding.weight",
    "position_embedding": "text_model.embeddings.position_embedding.weight",
    "layers": "text_model.encoder.layers",
    "final_norm": "text_model.final_layer_norm",
    "projection": "text_projection",
}


def parse_config(file: Path, raw: dict[str, Any], class_name: str) -> Any:
    """Returns transformers' config of a model, with its defaults for values that the file omits.

    Args:
        file: Path of the config file, for messages.
        raw: Content of the file.
        class_name: Name of the config's class in transformers.
    Raises:
        UserError: If the file does not describe such a model.
    """
    import transformers

    try:
        with without_warnings():
            config = getattr(transformers, class_name).from_dict(raw)
        channels = config.vision_config.num_channels
    except Exception as error:  # transformers' checks raise errors of no narrower common class
        raise not_described(file, class_name, error) from error
    if channels != 3:
        reason = f"it has {channels} image channels; only 3 are supported"
        raise not_described(file, class_name, reason)
    return config


def not_described(file: Path, class_name: str, reason: Any) -> UserError:
    """Returns the error for a config file whose values cannot be used."""
    model = class_name.removesuffix("Config")
    return UserError(f"{file} does not describe a {model}: {' '.join(str(reason).split())}")


def vision_config(config: Any, embed_dim: int) -> VisionConfig:
    """Returns the image tower's sizes from transformers' config of it."""
    return VisionConfig(
        **_transformer(config),
        image_size=_side(config.image_size),
        patch_size=_side(config.patch_size),
        embed_dim=embed_dim,
    )


def text_config(config: Any, embed_dim: int, eos_token_id: int | None) -> TextConfig:
    """Returns the text tower's sizes from transformers' config of it."""
    return TextConfig(
        **_transformer(config),
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        eos_token_id=eos_token_id,
        embed_dim=embed_dim,
    )


def _side(size: Any) -> Any:
    """Returns the side of a square written as two sides, and any other value unchanged.

    `TransformerConfig` then refuses values that are no whole number.
    """
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        return size[0]
    return size


def _transformer(config: Any) -> dict[str, Any]:
    return {
        "width": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "activation": config.hidden_act,
        "layer_norm_eps": config.layer_norm_eps,
    }
