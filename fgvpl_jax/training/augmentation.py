"""The training augmentation on the device: Pillow's resize of a crop, in JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import PIL
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

CUBIC = -0.5  # Pillow's coefficient of the bicubic kernel
# From version 13 on Pillow resizes columns first if they lose over twice as many pixels as rows.
MAY_BEGIN_DOWN = int(PIL.__version__.split(".")[0]) >= 13
EXACT = jax.lax.Precision.HIGHEST  # lower precisions round the products on GPUs and TPUs


def bicubic(distance: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the weight of pixels at this distance, in pixels of the coarser image."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
    far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, 0.0))


def bilinear(distance: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns the weight of pixels at this distance, in pixels of the coarser image."""
    return jnp.maximum(1 - distance, 0.0)


# The filters of all published checkpoints.
KERNELS: dict[Image.Resampling, Callable[[Array], Array]] = {
    Image.Resampling.BICUBIC: bicubic,
    Image.Resampling.BILINEAR: bilinear,
}


def crop_resize_flip(
    image: UInt8[Array, "H H 3"],
    box: Int[Array, "4"],
    flip: Bool[Array, ""],
    size: int,
    resample: Image.Resampling,
) -> UInt8[Array, "size size 3"]:
    """Computes `Image.crop(box).resize((size, size), resample)` within 1 of 255, then the flip.

    It follows the installed Pillow: antialiased, rounded to bytes between the two passes, and
    without a look at pixels outside the box.

    Args:
        image: A photo in the upper left corner of a square canvas.
        box: (left, top, right, bottom) in pixels, inside the photo.
        flip: True if left and right change places.
        size: Side of the result in pixels.
        resample: Pillow's filter, one of `KERNELS`.
    """
    left, top, right, bottom = box
    columns_first = bottom - top - size > 2 * jnp.maximum(right - left - size, 0)
    columns_first &= MAY_BEGIN_DOWN

    def turned(canvas: Array) -> Array:
        return jnp.where(columns_first, canvas.swapaxes(0, 1), canvas)

    def weights(start: Array, stop: Array) -> Array:
        edges = start.astype(jnp.float32), stop.astype(jnp.float32)
        return resize_weights(*edges, image.shape[0], size=size, resample=resample)

    across = weights(jnp.where(columns_first, top, left), jnp.where(columns_first, bottom, right))
    down = weights(jnp.where(columns_first, left, top), jnp.where(columns_first, right, bottom))
    resized = _as_bytes(
        jnp.einsum("ow,hwc->hoc", across, turned(image).astype(jnp.float32), precision=EXACT)
    )
    resized = _as_bytes(jnp.einsum("oh,hwc->owc", down, resized, precision=EXACT))
    upright = turned(resized.astype(jnp.uint8))
    return jnp.where(flip, upright[:, ::-1], upright)


def resize_weights(
    start: Float[Array, ""],
    stop: Float[Array, ""],
    length: int,
    size: int,
    resample: Image.Resampling,
) -> Float[Array, "size length"]:
    """Returns the weight of each of `length` pixels in each of `size` pixels over [start, stop).

    The kernel is as wide as the pixels of the coarser image; rows sum to 1.
    """
    scale = (stop - start) / size
    pixels = jnp.arange(length) + 0.5
    centres = start + (jnp.arange(size) + 0.5) * scale
    distance = jnp.abs(pixels - centres[:, None]) / jnp.maximum(scale, 1.0)
    weights = KERNELS[resample](distance)
    weights = jnp.where((pixels > start) & (pixels < stop), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _as_bytes(values: Float[Array, "*s"]) -> Float[Array, "*s"]:
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)
