"""The picture of a prediction: what it shows where."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from fgvpl_jax.reporting.overlay import (
    INK,
    OUTLINE,
    PANEL,
    centred_square,
    draw_overlay,
    heat,
    shortened,
    with_outline,
)


def test_the_square_is_the_centre():
    photo = Image.new("RGB", (300, 100), (255, 0, 0))
    photo.paste((0, 255, 0), (100, 0, 200, 100))
    square = np.asarray(centred_square(photo))
    assert square.shape == (PANEL, PANEL, 3)
    assert (square == (0, 255, 0)).all()


def test_the_map_is_bright_where_attention_is():
    level = np.zeros((4, 4))
    level[0, 3] = 2.0
    pixels = np.asarray(heat(level), float).sum(axis=-1)
    brightest = np.unravel_index(pixels.argmax(), pixels.shape)
    assert brightest[0] < PANEL / 4
    assert brightest[1] >= 3 * PANEL / 4


def test_a_constant_map_is_drawn():
    assert np.unique(np.asarray(heat(np.ones((4, 4)))).reshape(-1, 3), axis=0).shape[0] == 1


def test_the_outline_surrounds_the_mask_and_the_rest_is_dimmed():
    square = Image.new("RGB", (PANEL, PANEL), (200, 200, 200))
    mask = np.zeros((4, 4), bool)
    mask[1, 1:3] = True
    shown = np.asarray(with_outline(square, mask))
    side = PANEL // 4
    assert (shown[side + side // 2, side + side // 2] == 200).all()  # inside
    assert (shown[side // 2, side // 2] < 200).all()  # outside
    assert (shown[side + side // 2, side] == OUTLINE).all()  # the left border
    assert (shown[side + side // 2, 2 * side] == 200).all()  # none between two of the object


@pytest.mark.parametrize("num_similar", [0, 3])
def test_a_whole_picture(num_similar):
    similar = [(None, "gone")] + [(Image.new("RGB", (50, 20)), "x" * 80)] * 2
    classes = [("a very long name " * 9, 0.7), ("b", 0.3), ("c", 0.0)]
    sheet = draw_overlay(
        Image.new("RGB", (90, 60), (1, 2, 3)),
        np.arange(16.0).reshape(4, 4),
        np.eye(4, dtype=bool),
        classes,
        similar[:num_similar],
    )
    assert sheet.width > 3 * PANEL
    assert (np.asarray(sheet) == INK).all(axis=-1).any()


def test_long_names_are_cut_to_the_width():
    font = ImageFont.load_default(15)
    assert shortened("short", 200, font) == "short"
    cut = shortened("x" * 100, 120, font)
    assert cut.endswith("…")
    assert font.getlength(cut) <= 120
