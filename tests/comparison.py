"""Helpers for comparisons with oracles: an error bound, conversion to float64, relative error."""

import jax
import jax.numpy as jnp
import numpy as np

BOUND = 1e-5


def as_float64(tree):
    """Returns the tree with its floating-point arrays in float64; needs x64 to be enabled."""

    def widen(x):
        x = np.asarray(x)
        # `jnp.asarray` would compile a program for each shape.
        return jax.device_put(x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x)

    return jax.tree.map(widen, tree)


def relative_error(ours, expected) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    expected = np.asarray(expected)
    return float(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())
