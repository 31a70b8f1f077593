"""Conversion between Hugging Face's tensors and our modules, by one table of names."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.clip.towers import TextTower, VisionTower
from fgvpl_jax.clip.weights import Tensors
from fgvpl_jax.errors import UserError

LOGIT_SCALE = "logit_scale"

# Our name of a module or variable -> Hugging Face's, for each tower and for parts of a layer.
VISION_NAMES = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "patch_embedding": "vision_model.embeddings.patch_embedding",
    "position_embedding": "vision_model.embeddings.position_embedding.weight",
    "pre_norm": "vision_model.pre_layrnorm",  # Hugging Face's spelling
    "layers": "vision_model.encoder.layers",
    "post_norm": "vision_model.post_layernorm",
    "projection": "visual_projection",
}
TEXT_NAMES = {
    "token_embedding": "text_model.embeddings.token_embedding.weight",
    "position_embedding": "text_model.embeddings.position_embedding.weight",
    "layers": "text_model.encoder.layers",
    "final_norm": "text_model.final_layer_norm",
    "projection": "text_projection",
}
LAYER_NAMES = {
    "norm1": "layer_norm1",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "out_proj",
    "norm2": "layer_norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
    "kernel": "weight",
    "scale": "weight",
}


def build_towers(
    vision_config: VisionConfig, text_config: TextConfig, tensors: Tensors
) -> tuple[VisionTower, TextTower, float]:
    """Builds both towers from a checkpoint's tensors; also returns exp(logit_scale).

    Raises:
        UserError: If a tensor is missing, unknown or of another shape; the message names the
            tensors.
    """
    left = dict(tensors)
    towers, missing, misshaped = [], [], []
    for tower, names in (
        (nnx.eval_shape(lambda: VisionTower(vision_config, rngs=nnx.Rngs(0))), VISION_NAMES),
        (nnx.eval_shape(lambda: TextTower(text_config, rngs=nnx.Rngs(0))), TEXT_NAMES),
    ):
        graphdef, state = nnx.split(tower)
        filled = []
        for path, variable in nnx.to_flat_state(state):
            name = _hugging_face_name(path, names)
            tensor = left.pop(name, None)
            if tensor is None:
                missing.append(name)
                continue
            # Compared before any transposition, which could make a wrong layout fit.
            expected = _hugging_face_shape(path, variable.shape, vision_config.patch_size)
            if tensor.shape != expected:
                misshaped.append(f"{name} {tensor.shape}, expected {expected}")
                continue
            filled.append((path, variable.replace(jnp.asarray(_to_our_layout(tensor, path)))))
        towers.append((graphdef, filled))
    logit_scale = left.pop(LOGIT_SCALE, None)
    if logit_scale is None:
        missing.append(LOGIT_SCALE)
    elif logit_scale.size != 1:  # checkpoints have shape () or (1,)
        misshaped.append(f"{LOGIT_SCALE} {logit_scale.shape}, expected ()")
    for problem, names_found in (
        ("lacks tensors", missing),
        ("has tensors that this config has no place for", list(left)),
        ("has tensors of shapes that do not fit the config", misshaped),
    ):
        if names_found:
            raise UserError(
                f"the checkpoint {problem} ({len(names_found)}): {_first(names_found)}; "
                "check that config.json and the weights belong together"
            )
    assert logit_scale is not None
    vision, text = (nnx.merge(graphdef, nnx.from_flat_state(filled)) for graphdef, filled in towers)
    assert isinstance(vision, VisionTower)
    assert isinstance(text, TextTower)
    return vision, text, float(np.exp(logit_scale.astype(np.float64).reshape(())))


def hugging_face_tensors(vision: VisionTower, text: TextTower) -> Tensors:
    """Returns the towers' variables under Hugging Face's names, in PyTorch's layout."""
    tensors: Tensors = {}
    for tower, names in ((vision, VISION_NAMES), (text, TEXT_NAMES)):
        for path, variable in nnx.to_flat_state(nnx.state(tower)):
            value = np.asarray(variable[...])
            if path[-1] == "kernel":
                value = value.T
            if path[0] == "patch_embedding":
                side = vision.config.patch_size
                value = value.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
            tensors[_hugging_face_name(path, names)] = np.ascontiguousarray(value)
    return tensors


def _hugging_face_name(path: tuple, names: dict[str, str]) -> str:
    head, *rest = path
    return ".".join([names[head], *(LAYER_NAMES.get(part, str(part)) for part in rest)])


def _hugging_face_shape(path: tuple, shape: tuple[int, ...], patch_size: int) -> tuple[int, ...]:
    if path[0] == "patch_embedding":
        return (shape[1], 3, patch_size, patch_size)
    return shape[::-1] if path[-1] == "kernel" else shape


def _to_our_layout(tensor: np.ndarray, path: tuple) -> np.ndarray:
    if path[-1] != "kernel":
        return tensor
    if tensor.ndim == 4:  # the convolution over patches, [out, in, h, w] -> [h · w · in, out]
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
    return tensor.T


def _first(names: Iterable[str], count: int = 5) -> str:
    names = sorted(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
