"""Writes tiny random checkpoints of every family but transformers' CLIP, without PyTorch.

The names and shapes of the tensors come from the package; that they are the published ones is
checked where the family's own library loads the same files.
"""

import json
import string
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from fgvpl_jax.clip.convert import LOGIT_SCALE
from fgvpl_jax.clip.families import family_of, pe_core
from fgvpl_jax.clip.family import source_of
from tests.tiny_clip import END, START, vocabulary

EMBED = 16
VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 77, "width": 24, "heads": 3, "layers": 2, "vocab_size": 514}
PREPARATION = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "resize_mode": "shortest"}


def open_clip_config(
    model: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    text: dict[str, Any] | None = None,
    preparation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the content of open_clip_config.json, with changes to each of its parts."""
    return {
        "model_cfg": {
            "embed_dim": EMBED,
            "vision_cfg": VISION | (vision or {}),
            "text_cfg": TEXT | (text or {}),
            **(model or {}),
        },
        "preprocess_cfg": PREPARATION | (preparation or {}),
    }


def write_open_clip(directory: Path, config: dict[str, Any]) -> None:
    """Writes the small files of an OpenCLIP checkpoint."""
    files = {
        "open_clip_config.json": config,
        "vocab.json": vocabulary(),
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "merges.txt").write_text("#version: 0.2\n")


# One config for each way in which the checkpoints of a family differ.
OPEN_CLIP_KINDS: dict[str, dict[str, Any]] = {
    "open_clip": open_clip_config(),
    "open_clip_quick_gelu": open_clip_config({"quick_gelu": True}),
    "open_clip_variant": open_clip_config(
        {"custom_text": True, "init_logit_bias": -3},
        {"image_size": 30, "patch_size": 7, "mlp_ratio": 3, "norm_kwargs": {"eps": 1e-3}},
        {"context_length": 32, "pool_type": "eos", "eos_id": 513, "norm_kwargs": {"eps": 1e-3}},
        {"resize_mode": "squash", "interpolation": "bilinear"},
    ),
}
OPEN_CLIP_KINDS |= {
    "resnet": open_clip_config(
        {"quick_gelu": True},
        {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "head_width": 64},
    ),
    "resnet_wide": open_clip_config(
        None,
        {"image_size": 160, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
    ),
}
# timm's smallest; its sizes follow from its name.
OPEN_CLIP_KINDS["pe_core"] = open_clip_config(
    {
        "custom_text": True,
        "vision_cfg": {
            "image_size": 384,
            "timm_model_name": "vit_pe_core_tiny_patch16_384",
            "timm_pool": "map",
            "timm_proj": None,
        },
    },
    text={"context_length": 32},
    preparation={"resize_mode": "squash", "interpolation": "bilinear"},
)
# model_type and changes of the vision config and text config.
SIGLIP_KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "siglip": ({}, {}),
    "siglip_variant": ({"image_size": 30, "patch_size": 7, "layer_norm_eps": 1e-3}, {}),
}
METACLIP_2_KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "metaclip_2": ({}, {}),
    "metaclip_2_gelu": ({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
}
TRANSFORMERS_KINDS = SIGLIP_KINDS | METACLIP_2_KINDS
KINDS = (*OPEN_CLIP_KINDS, *TRANSFORMERS_KINDS)
LETTERS = string.ascii_letters + string.digits + ".,!"


def gemma_like_tokenizer() -> Tokenizer:
    """Returns a tokenizer like SigLIP 2's: bytes for unknown letters, and an end of text."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=[], fuse_unk=True, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def xlm_like_tokenizer() -> Tokenizer:
    """Returns a tokenizer like MetaCLIP 2's, whose end of text is token 2."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [*((token, 0.0) for token in special), ("▁", -2.0), *((c, -3.0) for c in LETTERS)]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*special, "<mask>"])
    return tokenizer


def transformers_config(kind: str) -> dict[str, Any]:
    """Returns the content of config.json of a SigLIP or MetaCLIP 2."""
    changes = TRANSFORMERS_KINDS[kind]
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vision = layers | {"hidden_size": 32, "image_size": 32, "patch_size": 8}
    text = layers | {"max_position_embeddings": 64}
    if kind in SIGLIP_KINDS:
        text |= {"hidden_size": 24, "projection_size": 32, "vocab_size": 327}
        config: dict[str, Any] = {"model_type": "siglip"}
    else:
        text |= {"hidden_size": 24, "vocab_size": 71, "projection_dim": EMBED, "eos_token_id": 2}
        text |= {"bos_token_id": 0, "pad_token_id": 1}
        vision |= {"projection_dim": EMBED}
        config = {"model_type": "metaclip_2", "projection_dim": EMBED}
    return config | {"vision_config": vision | changes[0], "text_config": text | changes[1]}


def write_transformers(directory: Path, kind: str) -> None:
    """Writes the small files of a SigLIP or MetaCLIP 2 checkpoint."""
    config = transformers_config(kind)
    side = config["vision_config"]["image_size"]
    square = {"height": side, "width": side}
    if kind in SIGLIP_KINDS:
        tokenizer, special = gemma_like_tokenizer(), {"bos": "<bos>", "eos": "<eos>"}
        names = {"tokenizer_class": "GemmaTokenizer", "add_eos_token": True, "add_bos_token": False}
        processor = {"image_processor_type": "SiglipImageProcessor", "size": square, "resample": 2}
        processor |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    else:
        tokenizer, special = xlm_like_tokenizer(), {"bos": "<s>", "eos": "</s>", "sep": "</s>"}
        names = {"tokenizer_class": "XLMRobertaTokenizer", "cls_token": "<s>"}
        processor = {"image_processor_type": "CLIPImageProcessor", "crop_size": square}
        processor |= {"size": {"shortest_edge": side}}
    special |= {"pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    names |= {f"{name}_token": token for name, token in special.items()}
    files = {
        "config.json": config,
        "tokenizer_config.json": names | {"padding_side": "right"},
        "preprocessor_config.json": processor,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    tokenizer.save(str(directory / "tokenizer.json"))


def write_small_files(directory: Path, kind: str) -> None:
    """Writes a checkpoint without its weights."""
    directory.mkdir(parents=True, exist_ok=True)
    if kind in OPEN_CLIP_KINDS:
        write_open_clip(directory, OPEN_CLIP_KINDS[kind])
    else:
        write_transformers(directory, kind)


@contextmanager
def small_perception_encoder() -> Iterator[None]:
    """Shrinks timm's smallest Perception Encoder from 577 tokens to 17 within the block."""
    with pytest.MonkeyPatch.context() as patch:
        vision = OPEN_CLIP_KINDS["pe_core"]["model_cfg"]["vision_cfg"]
        patch.setitem(pe_core.SIZES, vision["timm_model_name"], (32, 8, 48, 2, 3))
        patch.setitem(vision, "image_size", 32)
        yield


def write_tiny_backbone(directory: Path, kind: str, seed: int = 0) -> None:
    """Writes a whole checkpoint directory."""
    write_small_files(directory, kind)
    save_file(random_tensors(directory, seed), directory / weights_name(directory))


def weights_name(directory: Path) -> str:
    """Returns the name of a checkpoint's file of safetensors."""
    return family_of(directory)[0].weight_formats[0]


def random_tensors(directory: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns every tensor of the checkpoint whose small files are in a folder."""
    family, config = family_of(directory)
    architecture = family.read(directory, config)
    scalar = (1,) if config.get("model_type") == "siglip" else ()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((LOGIT_SCALE, *architecture.unused), scalar)
    for tower, names in (
        (architecture.vision, architecture.vision_names),
        (architecture.text, architecture.text_names),
    ):
        for path, variable in nnx.to_flat_state(nnx.state(tower)):
            source = source_of(path, names)
            shapes[source.name] = source.layout.published_shape(variable.shape)
    rng = np.random.default_rng(seed)
    return {name: _random(rng, name, shape) for name, shape in sorted(shapes.items())}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name == LOGIT_SCALE:
        return np.full(shape, 2.3, np.float32)
    if name.endswith(("running_var", "weight")) and len(shape) == 1:  # of a norm
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    # Larger weights of wide layers would make features chaotic, so that rounding shows in them.
    scale = shape[-1] ** -0.5 if shape and shape[-1] >= 128 else 0.3
    return np.asarray(rng.normal(scale=scale, size=shape), np.float32)
