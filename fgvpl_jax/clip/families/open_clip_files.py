"""Config, text tower and preparation of photos that the families of OpenCLIP share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fgvpl_jax.clip.config import TextConfig
from fgvpl_jax.clip.families.transformers_files import SMALL_FILES as TRANSFORMERS_SMALL_FILES
from fgvpl_jax.clip.family import AS_IS, LINEAR, Architecture, Names, Source, stacked
from fgvpl_jax.clip.image_input import Geometry, ImageProcessor
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import ImageTower, TextTower, without_weights
from fgvpl_jax.errors import UserError

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FORMATS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
# May be next to the others, but describe timm's image tower or transformers' model.
_NO_TOKENIZER_FILES = ("config.json", "preprocessor_config.json", "processor_config.json")
SMALL_FILES = (
    CONFIG_FILE,
    *(name for name in TRANSFORMERS_SMALL_FILES if name not in _NO_TOKENIZER_FILES),
)
# CLIP's own normalisation, for configs without one.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GEOMETRIES = {"shortest": Geometry.CROP_TO_EVEN, "squash": Geometry.SQUASH}
# OpenCLIP draws "random" in its own training only.
FILTERS = {"bicubic": "BICUBIC", "bilinear": "BILINEAR", "random": "BICUBIC"}

# Settings of features that this package does not compute, and the values that switch them off.
_OFF: dict[str, tuple[Any, ...]] = {
    "act_kwargs": (None, {}),
    "block_type": (None, "default"),
    "ls_init_value": (None,),
    **dict.fromkeys(
        ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn"),
        (None, False),
    ),
    "scale_fc": (None, False),
}
MODEL_OFF = {"multimodal_cfg": (None,)}
VISION_OFF = _OFF | {
    "attentional_pool": (None, False),
    "no_ln_pre": (None, False),
    "pool_type": (None, "tok"),
    "timm_model_name": (None,),
}
TEXT_OFF = _OFF | {
    "embed_cls": (None, False),
    "hf_model_name": (None,),
    "no_causal_mask": (None, False),
    "pool_type": (None, "argmax", "eos"),
    "proj_bias": (None, False),
    "proj_type": (None, "linear"),
    "tokenizer_kwargs": (None, {}),
}
# Settings that are used, or that change no feature.
MODEL_KNOWN = {
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "output_dict"),
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "cast_dtype"),
}
VISION_KNOWN = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"),
    *("patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type"),
    *("final_ln_after_pool", "output_tokens", "timm_model_pretrained", "timm_pool", "timm_proj"),
    *("timm_proj_bias", "timm_drop", "timm_drop_path"),
}
TEXT_KNOWN = {
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs"),
    *("hf_tokenizer_name", "tokenizer_mode", "pad_id", "eos_id", "final_ln_after_pool"),
    *("output_tokens", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}

_STACK = {
    f"attention.{ours}.{leaf}": Source(f"attn.in_proj_{published}", stacked(place, 3, layout))
    for place, ours in enumerate(("query", "key", "value"))
    for leaf, published, layout in (("kernel", "weight", LINEAR), ("bias", "bias", AS_IS))
}
LAYER_NAMES: dict[str, str | Source] = {
    **_STACK,
    "norm1": "ln_1",
    "attention.out": "attn.out_proj",
    "norm2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "kernel": Source("weight", LINEAR),
    "scale": "weight",
}


def text_names(prefix: str) -> Names:
    """Returns the names of the text tower's tensors; OpenCLIP's newer models prefix them."""
    return LAYER_NAMES | {
        "token_embedding": f"{prefix}token_embedding.weight",
        "position_embedding": f"{prefix}positional_embedding",
        "layers": f"{prefix}transformer.resblocks",
        "final_norm": f"{prefix}ln_final",
        "projection.kernel": Source(f"{prefix}text_projection", AS_IS),
    }


def read(
    directory: Path,
    raw: dict[str, Any],
    build: Callable[[dict[str, Any], dict[str, Any]], ImageTower],
    vision_names: Names,
    vision_off: Mapping[str, tuple[Any, ...]] = VISION_OFF,
) -> Architecture:
    """Reads the architecture; see `Family.read`.

    Args:
        directory: Folder of the checkpoint.
        raw: Content of the config file.
        build: Returns the image tower without weights, from `model_cfg` and its `vision_cfg`.
        vision_names: Published names of the image tower's tensors.
        vision_off: Settings of `vision_cfg`, each with the only values that it may have.
    """
    file = directory / CONFIG_FILE
    try:
        model = _section(raw, "model_cfg", MODEL_KNOWN, MODEL_OFF)
        vision = _section(model, "vision_cfg", VISION_KNOWN, vision_off)
        text = text_config(model, _section(model, "text_cfg", TEXT_KNOWN, TEXT_OFF))
        tower = build(model, vision)  # refuses sizes that do not fit each other
        preparation = raw.get("preprocess_cfg") or {}
        processor = OpenClipProcessor(file, preparation, tower.config.image_size)
    except UserError as error:
        raise UserError(f"{file} cannot be used: {error}") from error
    except Exception as error:  # values of unusable types raise different errors
        reason = " ".join(f"{type(error).__name__} {error}".split())
        raise UserError(f"{file} does not describe a CLIP: {reason}") from error
    return Architecture(
        vision=tower,
        text=without_weights(TextTower, text),
        vision_names=vision_names,
        text_names=text_names("text." if model.get("custom_text") else ""),
        tokenizer=Tokenizer(directory, text),
        image_processor=processor,
        unused=() if model.get("init_logit_bias") is None else ("logit_bias",),
    )


def text_config(model: dict[str, Any], text: dict[str, Any]) -> TextConfig:
    """Returns the text tower's sizes, with OpenCLIP's defaults for values that are omitted."""
    width = text.get("width", 512)
    return TextConfig(
        width=width,
        num_layers=text.get("layers", 12),
        num_heads=text.get("heads", 8),
        mlp_width=int(width * text.get("mlp_ratio", 4.0)),
        activation=activation(model),
        layer_norm_eps=layer_norm_eps(text),
        vocab_size=text.get("vocab_size", 49408),
        context_length=text.get("context_length", 77),
        eos_token_id=text.get("eos_id", 2) if text.get("pool_type") == "eos" else None,
        embed_dim=model["embed_dim"],
    )


def activation(model: dict[str, Any]) -> str:
    """Returns the name of both transformers' activation."""
    return "quick_gelu" if model.get("quick_gelu") else "gelu"


def layer_norm_eps(sizes: dict[str, Any]) -> float:
    """Returns the epsilon of a tower's LayerNorms."""
    given = dict(sizes.get("norm_kwargs") or {})
    eps = given.pop("eps", 1e-5)
    if given:
        raise UserError(f"norm_kwargs has {sorted(given)}: only eps is supported")
    return eps


def side(size: Any) -> Any:
    """Returns the side of a square, which may be written as two sides.

    Raises:
        UserError: If it is not a square.
    """
    if isinstance(size, (list, tuple)):
        if len(size) != 2 or size[0] != size[1]:
            raise UserError(f"{list(size)} is not the size of a square")
        return size[0]
    return size


def _section(
    config: dict[str, Any], name: str, known: set[str], off: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """Returns a part of the config, all of whose settings are supported.

    Raises:
        UserError: If the part is missing, or a setting is not supported.
    """
    section = config.get(name)
    if not isinstance(section, dict):
        raise UserError(f"it has no {name}")
    for key, value in section.items():
        if key not in known and value not in off.get(key, ()):
            raise UserError(f"{name} sets {key} to {value!r}, which is not supported")
    return section


class OpenClipProcessor(ImageProcessor):
    """The preparation that `preprocess_cfg` describes.

    Args:
        file: Path of the config file, for messages.
        config: Content of `preprocess_cfg`.
        side: Side of the tower's images; OpenCLIP ignores the size in `preprocess_cfg` too.
    Raises:
        UserError: If a setting is not supported.
    """

    def __init__(self, file: Path, config: dict[str, Any], side: int):
        mode = config.get("resize_mode") or "shortest"
        interpolation = config.get("interpolation") or "bicubic"
        if mode not in GEOMETRIES or interpolation not in FILTERS:
            raise UserError(
                f"preprocess_cfg has resize_mode {mode!r} and interpolation {interpolation!r}: "
                f"only {sorted(GEOMETRIES)} and {sorted(FILTERS)} are supported"
            )
        self.side = side
        self.geometry = GEOMETRIES[mode]
        self.resample = Image.Resampling[FILTERS[interpolation]]
        self.mean = np.broadcast_to(np.asarray(config.get("mean") or MEAN, np.float32), 3)
        self.std = np.broadcast_to(np.asarray(config.get("std") or STD, np.float32), 3)
        self.rescale_factor = np.float32(1 / 255)
        self._check(file)
