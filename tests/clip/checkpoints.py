"""Helpers for tests of checkpoints: the Flax layout, edits of JSON, comparison of models."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

WEIGHTS = "model.safetensors"


def parameters(clip):
    return jax.tree.leaves((nnx.state(clip.vision), nnx.state(clip.text)))


def same(a, b):
    pairs = zip(parameters(a), parameters(b), strict=True)
    return a.logit_scale == b.logit_scale and all(np.array_equal(x, y) for x, y in pairs)


def take_weights(directory: Path) -> dict[str, np.ndarray]:
    """Returns the tensors and removes their file, so that a test can write another format."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    return tensors


def edit_json(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def to_flax_layout(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Converts tensors to the layout of Hugging Face's Flax CLIP.

    Its kernels are transposed and its leaves have other names.
    """
    tree = {}
    for name, value in tensors.items():
        *modules, leaf = name.split(".")
        if leaf == "weight":
            if "norm" in modules[-1] or "layrnorm" in modules[-1]:
                leaf = "scale"
            elif modules[-1] in ("token_embedding", "position_embedding"):
                leaf = "embedding"
            else:
                leaf = "kernel"
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = np.ascontiguousarray(value)
    return tree
