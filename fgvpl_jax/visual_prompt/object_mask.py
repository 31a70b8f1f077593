"""Where the object is: Otsu's threshold, then the largest connected area, inside the program."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgvpl_jax.errors import UserError

NUM_BINS = 256  # as scikit-image's threshold_otsu
# Beyond it the integers n·s1, at most n·255·n, leave int32.
MOST_VALUES = 2_900


def object_mask(
    attention_map: Float[Array, "b n"], grid: tuple[int, int], connectivity: int = 2
) -> Bool[Array, "b n"]:
    """The largest connected area of patches above Otsu's threshold.

    Args:
        attention_map: Scores in row-major patch order (Eq. 7).
        grid: (gh, gw) with gh · gw = n.
        connectivity: 2 joins patches that share an edge or a corner, 1 an edge only.
    Returns:
        At least one patch an image; every patch where the map is constant and so has no
        threshold, or is not finite.
    Raises:
        UserError: If the grid does not hold n patches, or the connectivity is neither 1 nor 2.
    """
    gh, gw = grid
    num_patches = attention_map.shape[1]
    if gh * gw != num_patches:
        raise UserError(
            f"the attention map has {num_patches} patches, the grid {gh} x {gw} has {gh * gw}: "
            "pass the grid that the map was made on"
        )
    foreground = attention_map > otsu_threshold(attention_map)[:, None]
    largest = largest_component(foreground.reshape(-1, gh, gw), connectivity)
    largest = largest.reshape(foreground.shape)
    return largest | ~largest.any(axis=1, keepdims=True)


def otsu_threshold(values: Float[Array, "b n"]) -> Float[Array, "b"]:
    """Otsu's threshold of each row: the bin centre with the largest between-class variance.

    256 bins over [min, max]. With w1 values at or below a bin, s1 the sum of their bin numbers,
    and S that sum over all n, the variance w1·w2·(mean1 - mean2)² is (n·s1 - w1·S)² / (w1·w2) up
    to a factor. Counts and sums are integers, so scale and offset of the values do not blur it.

    Args:
        values: Finite; computed in float32.
    Returns:
        The first best centre; the value itself of a constant row.
    Raises:
        UserError: If a row has more than 2,900 values.
    """
    if values.shape[1] > MOST_VALUES:
        raise UserError(
            f"Otsu's threshold of {values.shape[1]} patches: at most {MOST_VALUES} are counted "
            "exactly; choose a backbone with larger patches or smaller images"
        )
    values = values.astype(jnp.float32)
    low, high = values.min(axis=1), values.max(axis=1)
    span = high - low
    position = (values - low[:, None]) / jnp.where(span > 0, span, 1)[:, None] * NUM_BINS
    bins = jnp.clip(position.astype(jnp.int32), 0, NUM_BINS - 1)
    counts = _count(bins, NUM_BINS)
    below = jnp.cumsum(counts, axis=1)
    sum_below = jnp.cumsum(counts * jnp.arange(NUM_BINS), axis=1)
    total, total_sum = below[:, -1:], sum_below[:, -1:]
    # The last bin always holds the largest value, so the earlier ones leave some above.
    below, sum_below = below[:, :-1], sum_below[:, :-1]
    difference = (total * sum_below - below * total_sum).astype(jnp.float32)
    variance = jnp.square(difference) / (below * (total - below)).astype(jnp.float32)
    best = variance.argmax(axis=1).astype(jnp.float32)
    return jnp.where(span > 0, low + (best + 0.5) * (span / NUM_BINS), low)


def largest_component(
    mask: Bool[Array, "b gh gw"], connectivity: int = 2
) -> Bool[Array, "b gh gw"]:
    """The connected area with the most cells; of equal ones, the first met in row-major order.

    Every cell starts with its own index as label. Rounds of taking the smallest label among the
    neighbours, then the label of the cell that the label names, end with each area labelled by
    its first cell.

    Args:
        mask: Cells to connect.
        connectivity: 2 joins the 8 neighbours, 1 the 4.
    Returns:
        The chosen cells; none where the mask is empty.
    Raises:
        UserError: If the connectivity is neither 1 nor 2.
    """
    if connectivity not in (1, 2):
        raise UserError(f"connectivity is {connectivity}: give 2 (8 neighbours) or 1 (4)")
    batch, gh, gw = mask.shape
    size = gh * gw
    nobody = size  # label of the background, larger than every other

    def relabel(labels: Int[Array, "b gh gw"]) -> Int[Array, "b gh gw"]:
        padded = jnp.pad(labels, ((0, 0), (1, 1), (1, 1)), constant_values=nobody)
        vertical = _smallest_of_three(padded, axis=1)
        if connectivity == 2:
            smallest = _smallest_of_three(vertical, axis=2)
        else:
            smallest = jnp.minimum(vertical[:, :, 1:-1], _smallest_of_three(padded, 2)[:, 1:-1])
        smallest = jnp.where(mask, smallest, nobody).reshape(batch, size)
        named = jnp.pad(smallest, ((0, 0), (0, 1)), constant_values=nobody)
        return jnp.take_along_axis(named, smallest, axis=1).reshape(mask.shape)

    def step(state):
        labels, _ = state
        new = relabel(labels)
        return new, jnp.any(new != labels)

    own = jnp.where(mask, jnp.arange(size).reshape(gh, gw), nobody)
    labels, _ = jax.lax.while_loop(lambda state: state[1], step, (own, jnp.any(mask)))
    labels = labels.reshape(batch, size)
    areas = _count(labels, size + 1)[:, :size]
    largest = areas.argmax(axis=1)
    return (labels == largest[:, None]).reshape(mask.shape) & mask


def _smallest_of_three(labels: Int[Array, "b p q"], axis: int) -> Int[Array, "b r s"]:
    length = labels.shape[axis]
    before, here, after = (
        jax.lax.slice_in_dim(labels, start, length - 2 + start, axis=axis) for start in range(3)
    )
    return jnp.minimum(jnp.minimum(before, here), after)


def _count(indices: Int[Array, "b n"], size: int) -> Int[Array, "b m"]:
    """How often each of 0..size-1 occurs in each row."""
    rows = jnp.arange(indices.shape[0])[:, None]
    return jnp.zeros((indices.shape[0], size), jnp.int32).at[rows, indices].add(1)
