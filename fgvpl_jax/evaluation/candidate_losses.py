"""Losses of a method's candidates at their best temperatures, computed on the devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fgvpl_jax.methods.held_out import TEMPERATURES

COARSE_POINTS, FINE_POINTS = 65, 17


def tempered_losses(
    logits: Float[Array, "N k"], labels: Int[Array, "N"], weights: Float[Array, "N"]
) -> Float[Array, "N"]:
    """Returns each image's smoothed loss at the temperature with the lowest sum of losses.

    The same as `smoothed_losses` and `best_temperature`, with a temperature from a grid: first a
    coarse one, then a fine one around its best point.

    Args:
        logits: Logits of all images.
        labels: True classes.
        weights: 1 for a real image, 0 for padding.
    """
    count, num_classes = weights.sum(), logits.shape[1]
    is_true = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    rest = 1 / (count + 2) / max(num_classes - 1, 1)
    targets = jnp.where(is_true > 0, (count + 1) / (count + 2), rest)

    def losses(log_temperature: Float[Array, ""]) -> Float[Array, "N"]:
        return -(targets * jax.nn.log_softmax(logits * jnp.exp(-log_temperature))).sum(axis=1)

    def best(grid: Float[Array, "p"]) -> Float[Array, ""]:
        sums = jax.lax.map(lambda point: jnp.sum(losses(point) * weights), grid)
        return grid[sums.argmin()]

    low, high = jnp.log(jnp.asarray(TEMPERATURES, logits.dtype))
    step = (high - low) / (COARSE_POINTS - 1)
    coarse = best(low + step * jnp.arange(COARSE_POINTS))
    return losses(best(coarse + step * jnp.linspace(-1.0, 1.0, FINE_POINTS)))
