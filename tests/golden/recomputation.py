"""A second implementation of FG-VPL from the equations: float64, NumPy, one image at a time.

An oracle is useful only if it cannot share a mistake with the code that it checks. So this
module does not import fgvpl_jax, weights keep the names and layout of Hugging Face, and steps that
the package computes in a fast way are computed in the plain way: the roll-out multiplies whole
matrices, scikit-image finds threshold and areas, background tokens are removed, and sums loop over
images and shots.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np
from scipy.special import log_softmax, ndtr, softmax
from skimage.filters import threshold_otsu
from skimage.measure import label

from tests.tiny_clip import IMAGE_MEAN, IMAGE_STD

Tensors = Mapping[str, np.ndarray]
LEGACY_EOS_TOKEN_ID = 2

ACTIVATIONS = {
    "quick_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
    "gelu": lambda x: x * ndtr(x),
}


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def normalize_pixels(images: np.ndarray) -> np.ndarray:
    return (images / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)


def part(tensors: Tensors, prefix: str) -> dict[str, np.ndarray]:
    """Returns the tensors with a prefix, under their names without it, in float64."""
    return {
        name.removeprefix(prefix): value.astype(np.float64)
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def linear(x: np.ndarray, weights: Tensors, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: np.ndarray, weights: Tensors, name: str, eps: float) -> np.ndarray:
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return standard * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def transformer_layer(
    tokens: np.ndarray, weights: Tensors, sizes: dict[str, Any], causal: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Runs CLIP's pre-norm block on [t, d] tokens; also returns attention weights [h, t, t]."""
    length, heads, eps = len(tokens), sizes["num_attention_heads"], sizes["layer_norm_eps"]
    normed = layer_norm(tokens, weights, "layer_norm1", eps)
    query, key, value = (
        linear(normed, weights, f"self_attn.{x}_proj").reshape(length, heads, -1).swapaxes(0, 1)
        for x in "qkv"
    )
    scores = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    attention = softmax(scores, axis=-1)
    mixed = (attention @ value).swapaxes(0, 1).reshape(length, -1)
    tokens = tokens + linear(mixed, weights, "self_attn.out_proj")
    hidden = linear(layer_norm(tokens, weights, "layer_norm2", eps), weights, "mlp.fc1")
    hidden = ACTIVATIONS[sizes["hidden_act"]](hidden)
    return tokens + linear(hidden, weights, "mlp.fc2"), attention


class VisionTower:
    """Image tower of CLIP, split into the parts that plain CLIP and FG-VPL share."""

    def __init__(self, tensors: Tensors, config: dict[str, Any]):
        self.sizes = config["vision_config"]
        self.weights = part(tensors, "vision_model.")
        self.projection = tensors["visual_projection.weight"].astype(np.float64)
        self.layers = [
            part(self.weights, f"encoder.layers.{i}.")
            for i in range(self.sizes["num_hidden_layers"])
        ]
        self.side = self.sizes["image_size"] // self.sizes["patch_size"]

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Returns one image's class token and patches with positions, after the pre-LayerNorm."""
        size, kernel = self.sizes["patch_size"], self.weights["embeddings.patch_embedding.weight"]
        tokens = [self.weights["embeddings.class_embedding"]]
        for top in range(0, self.side * size, size):
            for left in range(0, self.side * size, size):
                patch = pixels[top : top + size, left : left + size]
                tokens.append(np.einsum("hwc,dchw->d", patch, kernel))
        tokens = np.stack(tokens) + self.weights["embeddings.position_embedding.weight"]
        return layer_norm(tokens, self.weights, "pre_layrnorm", self.sizes["layer_norm_eps"])

    def project(self, tokens: np.ndarray) -> np.ndarray:
        eps = self.sizes["layer_norm_eps"]
        return layer_norm(tokens, self.weights, "post_layernorm", eps) @ self.projection.T

    def plain_features(self, pixels: np.ndarray) -> np.ndarray:
        tokens = self.embed(pixels)
        for weights in self.layers:
            tokens, _ = transformer_layer(tokens, weights, self.sizes)
        return self.project(tokens[0])


def text_features(token_ids: np.ndarray, tensors: Tensors, config: dict[str, Any]) -> np.ndarray:
    """Returns the raw features of one text."""
    sizes, weights = config["text_config"], part(tensors, "text_model.")
    tokens = weights["embeddings.token_embedding.weight"][token_ids]
    tokens = tokens + weights["embeddings.position_embedding.weight"][: len(token_ids)]
    for i in range(sizes["num_hidden_layers"]):
        layer = part(weights, f"encoder.layers.{i}.")
        tokens, _ = transformer_layer(tokens, layer, sizes, causal=True)
    eos = sizes["eos_token_id"]
    legacy = eos == LEGACY_EOS_TOKEN_ID
    end = token_ids.argmax() if legacy else (token_ids == eos).argmax()
    pooled = layer_norm(tokens[end], weights, "final_layer_norm", sizes["layer_norm_eps"])
    return pooled @ tensors["text_projection.weight"].astype(np.float64).T


def class_text_features(
    token_ids: np.ndarray, tensors: Tensors, config: dict[str, Any]
) -> np.ndarray:
    """Returns the weights w [k, e] of token ids [k, templates, c]."""
    return unit(
        np.stack(
            [
                np.mean([unit(text_features(ids, tensors, config)) for ids in texts], axis=0)
                for texts in token_ids
            ]
        )
    )


def attention_map(attentions: list[np.ndarray], num_patches: int) -> np.ndarray:
    """Returns the patches' entries in the class row of A_{L-1} · … · A_1, summed over heads.

    These are Eqs. 6-7.
    """
    product = reduce(lambda below, above: above @ below, attentions)
    return product[:, 0, 1 : 1 + num_patches].sum(axis=0)


def object_mask(significance: np.ndarray, side: int, connectivity: int) -> np.ndarray:
    """Returns the largest area above Otsu's threshold; in a tie, the first in row-major order."""
    grid = significance.reshape(side, side)
    areas = label(grid > threshold_otsu(grid), connectivity=connectivity)
    largest = max(range(1, areas.max() + 1), key=lambda number: (areas == number).sum())
    return (areas == largest).ravel()


def encode_image(
    pixels: np.ndarray,
    tower: VisionTower,
    prompt: np.ndarray,
    fine_grained_layer: Tensors,
    connectivity: int,
) -> dict[str, np.ndarray]:
    """Returns one image's raw features, attention map and object mask (section 3.1)."""
    tokens = np.concatenate([tower.embed(pixels), prompt])  # Eq. 2
    attentions = []
    for weights in tower.layers[:-1]:
        tokens, attention = transformer_layer(tokens, weights, tower.sizes)
        attentions.append(attention)
    num_patches = tower.side**2
    significance = attention_map(attentions, num_patches)
    mask = object_mask(significance, tower.side, connectivity)

    original, _ = transformer_layer(tokens, tower.layers[-1], tower.sizes)  # Eq. 8
    patches = tower.project(original[1 : 1 + num_patches])

    kept = np.concatenate([[True], mask, np.ones(len(prompt), bool)])
    fine_grained, _ = transformer_layer(tokens[kept], fine_grained_layer, tower.sizes)  # Eq. 9
    return {
        "image": tower.project(original[0]),
        "object": tower.project(fine_grained[0]),
        "object_patches": patches[mask].mean(axis=0),
        "patches": patches.mean(axis=0),
        "attention_map": significance,
        "object_mask": mask,
    }


def adapt(
    features: np.ndarray, adapter: tuple[np.ndarray, np.ndarray], ratio: float = 1.0
) -> np.ndarray:
    """Normalises, applies adapter and residual, and normalises again (Eqs. 10, 13-16)."""
    kernel, bias = adapter
    x = unit(features)
    return unit(ratio * np.maximum(x @ kernel + bias, 0) + x)


def class_votes(affinity: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns each class's sum over its count, times the mean count (Eqs. 17-18)."""
    counts = np.bincount(labels, minlength=num_classes)
    votes = np.zeros((len(affinity), num_classes))
    for shot, k in enumerate(labels):
        votes[:, k] += np.exp(-(1 - affinity[:, shot])) / counts[k] * counts.mean()
    return votes


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return -log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean()


def two_pathway_logits(
    queries: dict[str, np.ndarray],
    object_query: str,
    support: dict[str, np.ndarray],
    support_labels: np.ndarray,
    text_weights: np.ndarray,
    text_adapter: tuple[np.ndarray, np.ndarray],
    visual_adapter: tuple[np.ndarray, np.ndarray],
    *,
    logit_scale: float,
    text_residual_ratio: float,
    object_logit_weight: float,
    cache_logit_weight: float,
) -> np.ndarray:
    """Returns the logits of stacked features (Eq. 19)."""
    new_weights = adapt(text_weights, text_adapter, text_residual_ratio)  # Eq. 10

    def path1(features):  # Eqs. 11-12
        return logit_scale * unit(features) @ new_weights.T

    def path2(query, keys):
        affinity = adapt(query, visual_adapter) @ adapt(keys, visual_adapter).T
        return class_votes(affinity, support_labels, len(text_weights))

    path2_object = queries["object" if object_query == "class_token" else "object_patches"]
    # The cache always holds the mean over object patches, whichever feature the query uses.
    image = path1(queries["image"]) + cache_logit_weight * path2(queries["image"], support["image"])
    object_ = path1(queries["object"]) + cache_logit_weight * path2(
        path2_object, support["object_patches"]
    )
    return image + object_logit_weight * object_
