"""Converts trees to arrays under readable names, as checkpoints hold them, and back."""

import hashlib
import json
from typing import Any

import jax
import numpy as np

# By the name of a tree, then by the path of a leaf.
NamedArrays = dict[str, dict[str, np.ndarray]]


def arrays_hash(arrays: NamedArrays, metadata: dict[str, Any]) -> str:
    """Returns the SHA-256 of names, types, shapes and bytes in alphabetical order, and metadata."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, leaves in sorted(arrays.items()):
        for path, leaf in sorted(leaves.items()):
            digest.update(json.dumps([name, path, str(leaf.dtype), leaf.shape]).encode())
            digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def by_path(tree: Any) -> dict[str, np.ndarray]:
    """Returns copies of the leaves under readable names.

    Empty leaves, such as no prompt, are left out because orbax does not save them.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # Copies: on a CPU a plain conversion shares the memory, which a step may overwrite.
    return {_name(path): np.array(leaf, copy=True) for path, leaf in leaves if leaf.size}


def filled(tree: Any, leaves: dict[str, np.ndarray]) -> Any:
    """Returns the tree with its leaves replaced by those of `by_path`.

    Raises:
        KeyError: If a leaf is missing.
        ValueError: If a leaf has another shape or type.
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
