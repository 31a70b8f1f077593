"""Compares the crops that the device computes with those of Pillow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data.transforms import random_box
from fgvpl_jax.training.augmentation import KERNELS, crop_resize_flip, resize_weights

SIZE = 32


def pillow(photo, box, flip, resample):
    crop = Image.fromarray(photo).crop(tuple(box)).resize((SIZE, SIZE), resample)
    if flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop)


@pytest.mark.parametrize("resample", KERNELS, ids=lambda resample: resample.name)
@pytest.mark.parametrize("kind", ["noise", "edges", "smooth"])
def test_crops_equal_those_of_pillow_within_one_grey_level(kind, resample):
    """Crops photos larger and smaller than the result; the rest of the canvas must not show."""
    rng = np.random.default_rng(0)
    canvases = np.full((24, 110, 110, 3), 255, np.uint8)
    boxes, flips, expected = [], [], []
    for canvas in canvases:
        height, width = int(rng.integers(12, 111)), int(rng.integers(12, 111))
        photo = {
            "noise": rng.integers(0, 256, (height, width, 3)),
            "edges": 255 * rng.integers(0, 2, (height, width, 3)),
            "smooth": np.add.outer(np.arange(height), np.arange(width))[..., None] % 256
            + np.zeros(3),
        }[kind].astype(np.uint8)
        canvas[:height, :width] = photo
        boxes.append(random_box(width, height, rng))
        flips.append(bool(rng.random() < 0.5))
        expected.append(pillow(photo, boxes[-1], flips[-1], resample))
    ours = jax.vmap(partial(crop_resize_flip, size=SIZE, resample=resample))(
        jnp.asarray(canvases), jnp.asarray(boxes, jnp.int32), jnp.asarray(flips)
    )
    difference = np.abs(np.asarray(ours, int) - np.stack(expected).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_a_box_of_the_output_size_is_copied():
    photo = np.random.default_rng(1).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    box = jnp.asarray([7, 3, 7 + SIZE, 3 + SIZE], jnp.int32)
    ours = crop_resize_flip(
        jnp.asarray(photo), box, jnp.array(False), SIZE, Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(ours, photo[3 : 3 + SIZE, 7 : 7 + SIZE])


def test_weights_sum_to_one_and_are_zero_outside_the_box():
    weights = jax.jit(resize_weights, static_argnums=(2, 3, 4))(
        5.0, 90.0, 120, SIZE, Image.Resampling.BICUBIC
    )
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    assert not np.asarray(weights)[:, :5].any()
    assert not np.asarray(weights)[:, 90:].any()
