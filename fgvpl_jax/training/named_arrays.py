"""The arrays of trees under readable names, as checkpoints hold them, and back into trees."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

# By a tree's name, then by the path of its leaves.
NamedArrays = dict[str, dict[str, np.ndarray]]


def content_hash(arrays: NamedArrays, metadata: dict[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes in alphabetical order, and the metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, leaves in sorted(arrays.items()):
        for path, leaf in sorted(leaves.items()):
            digest.update(json.dumps([name, path, str(leaf.dtype), leaf.shape]).encode())
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Copies of the leaves under readable names; orbax saves no empty one, such as no prompt."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # Copies: on a CPU the plain conversion looks into the very memory that a step may overwrite.
    return {_name(path): np.array(leaf, copy=True) for path, leaf in leaves if leaf.size}


def filled(tree: Any, leaves: dict[str, np.ndarray]) -> Any:
    """The tree with its leaves replaced by those of `by_path`.

    Raises:
        KeyError: If one is missing.
        ValueError: If one has another shape or type.
    """

    def fill(path: Any, leaf: jax.Array) -> jax.Array:
        if not leaf.size:
            return leaf
        saved = leaves[_name(path)]
        if (saved.shape, saved.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(f"{_name(path)} is {saved.dtype} {saved.shape}, not {leaf.shape}")
        return jax.device_put(saved, leaf.sharding)

    return jax.tree_util.tree_map_with_path(fill, tree)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
