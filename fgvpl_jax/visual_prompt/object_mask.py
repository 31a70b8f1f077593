"""Object masks inside the compiled program: Otsu's threshold, then the largest connected area."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from fgvpl_jax.defaults import CONNECTIVITY
from fgvpl_jax.errors import UserError

NUM_BINS = 256  # the number that scikit-image's threshold_otsu uses
# With more values, the integers n·s1, at most n·255·n, overflow int32.
MAX_VALUES = 2_900


def object_mask(
    attention_map: Float[Array, "b n"],
    grid: tuple[int, int],
    connectivity: int = CONNECTIVITY,
) -> Bool[Array, "b n"]:
    """Returns the largest connected area of patches above Otsu's threshold.

    Args:
        attention_map: Scores in row-major patch order (Eq. 7).
        grid: (gh, gw) with gh · gw = n.
        connectivity: 2 joins patches that share an edge or a corner, 1 only those that share an
            edge.
    Returns:
        A mask of at least one patch per image. It keeps every patch of a map that is constant, and
        so has no threshold, or that is not finite.
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
    """Returns Otsu's threshold of each row: the bin centre of the largest between-class variance.

    There are 256 bins over [min, max]. With w1 values at or below a bin, s1 the sum of their bin
    numbers, and S that sum over all n values, the variance w1·w2·(mean1 - mean2)² is
    (n·s1 - w1·S)² / (w1·w2) up to a factor. Counts and sums are integers, so the scale and offset
    of the values cause no rounding error in them.

    Args:
        values: Finite values; converted to float32.
    Returns:
        The centre of the first of the best bins, or the value itself where a row is constant.
    Raises:
        UserError: If a row has more than 2,900 values.
    """
    if values.shape[1] > MAX_VALUES:
        raise UserError(
            f"Otsu's threshold of {values.shape[1]} patches: at most {MAX_VALUES} are counted "
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
    # The last bin always holds the largest value, so a threshold at an earlier bin always has
    # values above it.
    below, sum_below = below[:, :-1], sum_below[:, :-1]
    difference = (total * sum_below - below * total_sum).astype(jnp.float32)
    variance = jnp.square(difference) / (below * (total - below)).astype(jnp.float32)
    best = variance.argmax(axis=1).astype(jnp.float32)
    return jnp.where(span > 0, low + (best + 0.5) * (span / NUM_BINS), low)


def largest_component(
    mask: Bool[Array, "b gh gw"], connectivity: int = CONNECTIVITY
) -> Bool[Array, "b gh gw"]:
    """Returns the connected area with the most cells; in a tie, the first in row-major order.

    Every cell starts with its own index as its label. Each round replaces a cell's label by the
    smallest label among its neighbours, then by the label of the cell with that index. At the end,
    the label of every cell is the index of the first cell of its area.

    Args:
        mask: Cells to connect.
        connectivity: 2 joins a cell to its 8 neighbours, 1 to 4 of them.
    Returns:
        The cells of the area; no cell where the mask is empty.
    Raises:
        UserError: If the connectivity is neither 1 nor 2.
    """
    if connectivity not in (1, 2):
        raise UserError(f"connectivity is {connectivity}: give 2 (8 neighbours) or 1 (4)")
    batch, gh, gw = mask.shape
    size = gh * gw
    background = size  # a label larger than that of every cell

    def relabel(labels: Int[Array, "b gh gw"]) -> Int[Array, "b gh gw"]:
        padded = jnp.pad(labels, ((0, 0), (1, 1), (1, 1)), constant_values=background)
        vertical = _smallest_of_three(padded, axis=1)
        if connectivity == 2:
            smallest = _smallest_of_three(vertical, axis=2)
        else:
            smallest = jnp.minimum(vertical[:, :, 1:-1], _smallest_of_three(padded, 2)[:, 1:-1])
        smallest = jnp.where(mask, smallest, background).reshape(batch, size)
        label_of_cell = jnp.pad(smallest, ((0, 0), (0, 1)), constant_values=background)
        return jnp.take_along_axis(label_of_cell, smallest, axis=1).reshape(mask.shape)

    def step(
        state: tuple[Int[Array, "b gh gw"], Bool[Array, ""]],
    ) -> tuple[Int[Array, "b gh gw"], Bool[Array, ""]]:
        labels, _ = state
        new = relabel(labels)
        return new, jnp.any(new != labels)

    own = jnp.where(mask, jnp.arange(size).reshape(gh, gw), background)
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
    """Returns how often each of 0..size-1 occurs in each row."""
    return jax.vmap(lambda row: jnp.zeros(size, jnp.int32).at[row].add(1))(indices)
