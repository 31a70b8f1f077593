"""Writes tiny random CLIP checkpoints in Hugging Face's format, without PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers.pre_tokenizers import ByteLevel

START, END = "<|startoftext|>", "<|endoftext|>"
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

# Overrides of `tiny_config`, one for each way in which checkpoints differ.
KINDS: dict[str, dict[str, Any]] = {
    "openai": {},
    "legacy_eos": {"text_config": {"eos_token_id": 2}},
    "gelu": {"vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}},
    "gelu_new": {"vision_config": {"hidden_act": "gelu_new"}},
    "gelu_tanh": {"text_config": {"hidden_act": "gelu_pytorch_tanh"}},
    "context_32": {"text_config": {"max_position_embeddings": 32}},
    "patch_not_dividing": {"vision_config": {"image_size": 30, "patch_size": 7}},
    "eps": {"vision_config": {"layer_norm_eps": 1e-3}, "text_config": {"layer_norm_eps": 1e-3}},
    "wide_vision": {"vision_config": {"hidden_size": 64, "num_attention_heads": 4}},
}


def vocabulary() -> dict[str, int]:
    """Returns CLIP's byte-pair vocabulary before merges: each byte, also as the end of a word."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), START, END]
    return {token: number for number, token in enumerate(tokens)}


def tiny_config(**overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns the config.json of a model of about 50,000 parameters.

    Args:
        **overrides: Changes to `vision_config` and `text_config`, as dictionaries.
    """
    vocab = vocabulary()
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_attention_heads": 3,
        "num_hidden_layers": 2,
        "max_position_embeddings": 77,
        "vocab_size": len(vocab),
        "bos_token_id": vocab[START],
        "eos_token_id": vocab[END],
        "pad_token_id": vocab[END],
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 16,
        "vision_config": common | vision | overrides.get("vision_config", {}),
        "text_config": common | text | overrides.get("text_config", {}),
    }


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Returns every tensor of a CLIPModel of this config, under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    vision, text, embed = config["vision_config"], config["text_config"], config["projection_dim"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "visual_projection.weight": (embed, vision["hidden_size"]),
        "text_projection.weight": (embed, text["hidden_size"]),
        "vision_model.embeddings.class_embedding": (vision["hidden_size"],),
        "vision_model.embeddings.patch_embedding.weight": (
            vision["hidden_size"], 3, vision["patch_size"], vision["patch_size"],
        ),
        "vision_model.embeddings.position_embedding.weight": (1 + patches, vision["hidden_size"]),
        "text_model.embeddings.token_embedding.weight": (text["vocab_size"], text["hidden_size"]),
        "text_model.embeddings.position_embedding.weight": (
            text["max_position_embeddings"], text["hidden_size"],
        ),
    }  # fmt: skip
    norms = [
        ("vision_model.pre_layrnorm", vision["hidden_size"]),
        ("vision_model.post_layernorm", vision["hidden_size"]),
        ("text_model.final_layer_norm", text["hidden_size"]),
    ]
    for tower, sizes in (("vision_model", vision), ("text_model", text)):
        width, hidden = sizes["hidden_size"], sizes["intermediate_size"]
        for i in range(sizes["num_hidden_layers"]):
            layer = f"{tower}.encoder.layers.{i}"
            norms += [(f"{layer}.layer_norm{j}", width) for j in (1, 2)]
            linears = {f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")}
            linears |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
            for name, shape in linears.items():
                shapes[f"{layer}.{name}.weight"] = shape
                shapes[f"{layer}.{name}.bias"] = shape[:1]
    tensors = {
        name: rng.normal(scale=0.3, size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    for name, width in norms:
        tensors[f"{name}.weight"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
        tensors[f"{name}.bias"] = rng.normal(scale=0.1, size=width).astype(np.float32)
    tensors["logit_scale"] = np.asarray(2.3, np.float32)
    return {name: np.asarray(value) for name, value in tensors.items()}


def write_tiny_clip(directory: Path, seed: int = 0, **overrides: dict[str, Any]) -> dict[str, Any]:
    """Writes a whole checkpoint directory; returns its config."""
    directory.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**overrides)
    write_small_files(directory, config)
    save_file(random_tensors(config, seed), directory / "model.safetensors")
    return config


def write_small_files(directory: Path, config: dict[str, Any]) -> None:
    """Writes config.json and the files of tokenizer and image processor."""
    side = config["vision_config"]["image_size"]
    files = {
        "config.json": config,
        "vocab.json": vocabulary(),
        "tokenizer_config.json": {
            "tokenizer_class": "CLIPTokenizer",
            "bos_token": START,
            "eos_token": END,
            "pad_token": END,
            "unk_token": END,
            "model_max_length": config["text_config"]["max_position_embeddings"],
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
            "resample": 3,
            "image_mean": IMAGE_MEAN,
            "image_std": IMAGE_STD,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "merges.txt").write_text("#version: 0.2\n")
