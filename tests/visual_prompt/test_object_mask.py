"""Compares threshold and largest area with scikit-image."""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, zoom
from skimage.filters import threshold_otsu
from skimage.measure import label

from fgvpl_jax import largest_component, object_mask, otsu_threshold
from fgvpl_jax.errors import UserError
from fgvpl_jax.visual_prompt.object_mask import MAX_VALUES

mask_of = jax.jit(object_mask, static_argnames=("grid", "connectivity"))
component_of = jax.jit(largest_component, static_argnames="connectivity")
threshold_of = jax.jit(otsu_threshold)


def reference_components(masks, connectivity):
    """Returns scikit-image's largest area of each mask.

    Its labels are in row-major order of their first cell, so the smallest is the first in a tie.
    One call labels all masks, which empty planes keep apart.
    """
    apart = np.zeros((2 * len(masks), *masks.shape[1:]), bool)
    apart[::2] = masks
    labels = label(apart, connectivity=connectivity)[::2].reshape(len(masks), -1)
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    areas = areas[labels]
    largest = (areas == areas.max(axis=1, keepdims=True)) & (labels > 0)
    first = np.where(largest, labels, labels.max() + 1).min(axis=1, keepdims=True)
    return (labels == first).reshape(masks.shape)


def reference_masks(maps, connectivity=2):
    constant = (maps == maps[:, :1, :1]).all(axis=(1, 2))
    above = [
        np.ones(m.shape, bool) if c else m > threshold_otsu(m)
        for m, c in zip(maps, constant, strict=True)
    ]
    return reference_components(np.stack(above), connectivity)


def check_components(masks, connectivity):
    ours = component_of(masks, connectivity=connectivity)
    np.testing.assert_array_equal(ours, reference_components(masks, connectivity))


both = pytest.mark.parametrize("connectivity", [1, 2])


@both
def test_all_binary_4x4_grids(connectivity):
    bits = (np.arange(65536)[:, None] >> np.arange(16)) & 1
    check_components(bits.astype(bool).reshape(-1, 4, 4), connectivity)


@both
@pytest.mark.parametrize("shape", [(7, 7), (14, 14), (24, 24), (5, 17), (31, 2), (1, 9), (9, 1)])
def test_random_densities_and_oblong_grids(shape, connectivity):
    rng = np.random.default_rng(0)
    density = rng.uniform(0, 1, size=(300, 1, 1))
    check_components(rng.uniform(size=(300, *shape)) < density, connectivity)


def spiral(size):
    mask = np.zeros((size, size), bool)
    top, bottom, left, right = 0, size - 1, 0, size - 1
    while top <= bottom and left <= right:
        mask[top, left : right + 1] = True
        mask[top : bottom + 1, right] = True
        mask[bottom, left : right + 1] = True
        mask[top + 2 : bottom + 1, left] = True
        if left + 1 <= right and top + 2 <= bottom:
            mask[top + 2, left + 1] = True
        top, bottom, left, right = top + 2, bottom - 2, left + 2, right - 2
    return mask


def serpentine(size):
    mask = np.zeros((size, size), bool)
    mask[::2] = True
    mask[1::4, -1] = True
    mask[3::4, 0] = True
    return mask


@both
@pytest.mark.parametrize("make", [spiral, serpentine])
@pytest.mark.parametrize("size", [7, 14, 24])
def test_long_winding_areas(make, size, connectivity):
    mask = make(size)
    turned = [np.rot90(mask, k) for k in range(4)] + [np.rot90(mask.T, k) for k in range(4)]
    cut = []
    for row, column in zip(*np.nonzero(mask), strict=True):
        cut.append(mask.copy())
        cut[-1][row, column] = False
    check_components(np.stack(turned + cut), connectivity)


@both
def test_in_a_tie_the_first_area_in_row_major_order_wins(connectivity):
    rng = np.random.default_rng(1)
    masks = np.zeros((200, 14, 14), bool)
    for mask in masks:
        height, width = rng.integers(1, 4, size=2)
        for row in range(0, 14 - height, height + 1):
            for column in range(0, 14 - width, width + 1):
                if rng.random() < 0.4:
                    mask[row : row + height, column : column + width] = True
    check_components(masks, connectivity)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**64 - 1), st.sampled_from([1, 2]))
def test_a_component_is_one_area_inside_its_mask(bits, connectivity):
    mask = np.array([(bits >> i) & 1 for i in range(64)], bool).reshape(8, 8)
    ours = np.asarray(component_of(mask[None], connectivity=connectivity)[0])
    assert not (ours & ~mask).any()
    assert label(ours, connectivity=connectivity).max() == int(mask.any())
    again = component_of(ours[None], connectivity=connectivity)[0]
    np.testing.assert_array_equal(again, ours)


def smooth_maps(rng, count, side):
    return np.stack(
        [gaussian_filter(rng.normal(size=(side, side)), rng.uniform(0.3, 2)) for _ in range(count)]
    )


def heavy_tailed_maps(rng, count, side):
    return rng.lognormal(sigma=rng.uniform(0.3, 2.5, (count, 1, 1)), size=(count, side, side))


def disagreeing(maps, connectivity):
    maps = np.asarray(maps, np.float32)
    grid = maps.shape[1:]
    ours = mask_of(maps.reshape(len(maps), -1), grid=grid, connectivity=connectivity)
    expected = reference_masks(maps, connectivity).reshape(len(maps), -1)
    return int((np.asarray(ours) != expected).any(axis=1).sum())


@pytest.mark.parametrize("side", [7, 14, 24])
def test_masks_of_1000_maps(side):
    rng = np.random.default_rng(side)
    maps = np.concatenate([make(rng, 500, side) for make in (smooth_maps, heavy_tailed_maps)])
    assert disagreeing(maps, connectivity=2) <= 1


@pytest.mark.slow
@both
def test_masks_of_10000_maps(connectivity):
    """Checks smooth and heavy-tailed maps at the grids of B/32, B/16 and L/14@336."""
    rng = np.random.default_rng(connectivity)
    wrong = total = 0
    for side in (7, 14, 24):
        for make in (smooth_maps, heavy_tailed_maps):
            wrong += disagreeing(make(rng, 1667, side), connectivity)
            total += 1667
    print(f"connectivity {connectivity}: {wrong} of {total} masks differ from scikit-image's")
    assert wrong <= total // 1000


@pytest.mark.slow
def test_masks_of_real_attention_maps():
    """Checks maps of a trained CLIP on photographs, also resized to the three grids."""
    from fgvpl_jax import FGImageEncoder, load_clip
    from fgvpl_jax.data import decode_image

    places = [os.environ.get(name) for name in ("FGVPL_PHOTO_CLIP", "FGVPL_EUROSAT")]
    if None in places:
        pytest.skip("set FGVPL_PHOTO_CLIP to a CLIP directory and FGVPL_EUROSAT to the photos")
    from flax import nnx

    clip = load_clip(str(places[0]))
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(encoder)
    maps_of = jax.jit(lambda s, x: nnx.merge(graphdef, s)(x).attention_map)
    files = sorted(Path(str(places[1])).glob("2750/*/*.jpg"))[::11][:2400]
    maps = []
    for start in range(0, len(files), 200):
        chunk = [clip.preprocess(decode_image(f)) for f in files[start : start + 200]]
        maps.append(np.asarray(maps_of(state, jnp.asarray(np.stack(chunk)))))
    side = clip.vision.grid[0]
    native = np.concatenate(maps).reshape(-1, side, side)
    wrong, total = disagreeing(native, 2), len(native)
    for other in (7, 14, 24):
        resized = np.stack([zoom(m, other / side, order=1) for m in native])
        wrong, total = wrong + disagreeing(resized, 2), total + len(resized)
    print(f"{wrong} of {total} masks of real maps differ from scikit-image's")
    assert wrong <= total // 1000


def test_thresholds_are_scikit_images():
    maps = np.asarray(smooth_maps(np.random.default_rng(5), 200, 14), np.float32)
    expected = [threshold_otsu(m) for m in maps]
    ours = threshold_of(maps.reshape(200, -1))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_a_threshold_does_not_depend_on_scale_or_offset():
    values = np.random.default_rng(6).integers(0, 200, (50, 49)).astype(np.float32)
    plain = np.asarray(threshold_of(values))
    np.testing.assert_allclose(threshold_of(values * 2.0**-30), plain * 2.0**-30, rtol=1e-6)
    np.testing.assert_allclose(threshold_of(values + 64), plain + 64, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_a_constant_map_keeps_every_patch(value):
    values = np.full((2, 12), value, np.float32)
    np.testing.assert_array_equal(threshold_of(values), values[:, 0])
    assert np.asarray(mask_of(values, grid=(3, 4))).all()


def test_a_single_patch_is_the_object():
    assert np.asarray(mask_of(np.array([[0.3]], np.float32), grid=(1, 1))).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=9, max_size=9),
    st.sampled_from([1, 2]),
)
def test_a_mask_is_never_empty(values, connectivity):
    mask = mask_of(np.array([values], np.float32), grid=(3, 3), connectivity=connectivity)
    assert np.asarray(mask).any()


def test_a_map_of_nan_keeps_every_patch():
    assert np.asarray(mask_of(np.full((1, 4), np.nan, np.float32), grid=(2, 2))).all()


def test_one_trace_serves_all_values():
    traces = []

    @partial(jax.jit, static_argnames="grid")
    def counted(values, grid):
        traces.append(1)
        return object_mask(values, grid)

    for seed in range(3):
        counted(np.random.default_rng(seed).normal(size=(2, 9)).astype(np.float32), (3, 3))
    assert len(traces) == 1


def test_mistakes_name_the_values():
    with pytest.raises(UserError, match=r"12 patches.*3 x 5 has 15"):
        mask_of(np.zeros((1, 12), np.float32), grid=(3, 5))
    with pytest.raises(UserError, match="connectivity is 3"):
        component_of(np.zeros((1, 2, 2), bool), connectivity=3)


def test_more_patches_than_can_be_counted_exactly_are_refused():
    """Checks that the largest integers, with 2,900 values, still fit int32."""
    values = np.ones((1, MAX_VALUES), np.float32)
    values[0, 0] = 0
    assert 0 < float(threshold_of(values)[0]) < 1
    with pytest.raises(UserError, match="2901 patches"):
        threshold_of(np.zeros((1, MAX_VALUES + 1), np.float32))
