"""Border contrast: how much each patch differs from the border of its photo."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fgvpl_jax.clip import VisionTower

LEAST_SHARE = 0.4  # of the test card's contrast; docs/ablations.md has the measurement
CARD_RADIUS = 0.22  # of the test card's side


def border_contrast(
    patch_tokens: Float[Array, "b n d"], grid: tuple[int, int]
) -> Float[Array, "b n"]:
    """Returns 1 - cos(patch, mean of the border's patches) for each patch.

    The border of a photo shows background more often than the object. A patch like the border has
    a contrast near 0, a patch unlike it one near 1, and at most 2.

    Args:
        patch_tokens: Patch tokens in row-major order, after the LayerNorm of the layer that reads
            them.
        grid: (gh, gw) with gh · gw = n.
    Returns:
        The contrasts in float32; no gradient flows through them.
    """
    tokens = jax.lax.stop_gradient(patch_tokens).astype(jnp.float32)
    border = tokens[:, _border(grid)].mean(axis=1, keepdims=True)
    return 1 - jnp.sum(_unit(tokens) * _unit(border), axis=-1)


def middle_contrast(vision: VisionTower, tokens: Float[Array, "b t d"]) -> Float[Array, "b n"]:
    """Returns the border contrast of the tokens that enter layer L/2 + 1 (rounded down).

    Tokens of the last layers have mixed with those of other patches, which blurs the object's edge.

    Args:
        vision: Tower of L layers.
        tokens: Class token, patches and any prompts, as they enter that layer.
    """
    gh, gw = vision.grid
    normed = vision.layers[middle(vision)].norm1(tokens)
    return border_contrast(normed[:, 1 : 1 + gh * gw], vision.grid)


def middle(vision: VisionTower) -> int:
    """Returns the index of the layer whose input the contrast is computed from."""
    return len(vision.layers) // 2


def least_contrast(vision: VisionTower) -> Float[Array, ""]:
    """Returns the contrast that a photo's most different patch needs for an object to stand out.

    Cosines between tokens differ from one backbone to another, so the limit is a share of the
    contrast in a test card: a white disc on black.
    """
    tokens = vision.embed(test_card(vision.config.image_size))
    for layer in list(vision.layers)[: middle(vision)]:
        tokens, _ = layer(tokens)
    return LEAST_SHARE * middle_contrast(vision, tokens).max()


def test_card(side: int) -> Float[Array, "1 side side 3"]:
    """Returns normalised pixels of a white disc on black."""
    along = (np.arange(side) + 0.5) / side - 0.5
    disc = np.square(along)[:, None] + np.square(along) < CARD_RADIUS**2
    card = np.where(disc[None, :, :, None], 1.0, -1.0) * np.ones(3)
    return jnp.asarray(card, jnp.float32)


def _border(grid: tuple[int, int]) -> np.ndarray:
    """Returns the row-major indices of the patches at the edge of the grid."""
    inside = np.zeros(grid, bool)
    inside[1:-1, 1:-1] = True
    return np.flatnonzero(~inside)


def _unit(tokens: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
    return tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
