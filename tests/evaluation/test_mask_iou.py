"""Compares the overlap with true masks with values computed by hand and in expectation."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import mask_iou
from fgvpl_jax.evaluation.mask_iou import centred_box, iou, to_pixels


def test_iou_equals_that_computed_by_hand():
    a = np.array([[1, 1, 0, 0]], bool)
    b = np.array([[0, 1, 1, 0]], bool)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, a) == 1
    assert iou(~(a | ~a), ~(a | ~a)) == 0


def test_a_patch_covers_its_pixels():
    mask = np.array([0, 1, 0, 0, 0, 1], bool)
    pixels = to_pixels(mask, (2, 3), (4, 9))
    assert pixels.shape == (4, 9)
    np.testing.assert_array_equal(np.argwhere(pixels).min(axis=0), [0, 3])
    assert pixels[:2, 3:6].all()
    assert pixels[2:, 6:].all()
    assert pixels.sum() == 12


def test_the_grid_need_not_divide_the_sides_of_the_image():
    pixels = to_pixels(np.arange(9) == 4, (3, 3), (64, 64))
    np.testing.assert_array_equal(np.argwhere(pixels).min(axis=0), [22, 22])
    np.testing.assert_array_equal(np.argwhere(pixels).max(axis=0), [42, 42])
    assert to_pixels(np.ones(9, bool), (3, 3), (64, 64)).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_the_centred_box_has_the_requested_area(share):
    box = centred_box(share, (64, 64))
    assert box.mean() == pytest.approx(share, abs=0.02)
    np.testing.assert_array_equal(box, box.T)


def test_a_mask_that_is_found_exactly_has_these_four_scores():
    """The true mask has 2 × 2 patches in a corner of 8 × 8."""
    truth = np.zeros((1, 64, 64), bool)
    truth[0, :16, :16] = True
    mask = np.zeros((8, 8), bool)
    mask[:2, :2] = True
    result = mask_iou(mask.reshape(1, 64), truth, (8, 8))
    assert result.object_mask == 1
    assert result.everything == pytest.approx(1 / 16)
    assert result.centred_box == 0
    # Four random patches of 64 cover a quarter of a true patch on average.
    assert 0 < result.random < 0.15
