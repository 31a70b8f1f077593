"""The picture of a prediction and its parts."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont, ImageOps

from fgvpl_jax.displays.overlay import (
    AGAINST,
    ALPHABETIC_FONTS,
    CJK_FONTS,
    FAINT,
    FOR,
    INK,
    LABEL,
    MARGIN,
    OUTLINE,
    PANEL,
    PAPER,
    THUMBNAIL,
    boxes_layer,
    centred_square,
    draw_overlay,
    evidence_layer,
    fitted,
    font,
    heat,
    heat_layer,
    mask_layer,
    seen_square,
    with_outline,
    write,
)


def test_the_square_is_the_centre():
    photo = Image.new("RGB", (300, 100), (255, 0, 0))
    photo.paste((0, 255, 0), (100, 0, 200, 100))
    square = np.asarray(centred_square(photo))
    assert square.shape == (PANEL, PANEL, 3)
    assert (square[:, 8:-8] == (0, 255, 0)).all()


def test_the_square_is_cut_from_the_resized_photo_like_the_models():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    whole = np.asarray(photo.resize((PANEL * 60 // 40, PANEL), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(centred_square(photo), whole[:, PANEL // 4 : -PANEL // 4])


def test_the_centre_is_exact_where_the_rest_is_odd():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    photo = Image.fromarray(pixels)
    mirrored = ImageOps.mirror(centred_square(ImageOps.mirror(photo)))
    difference = np.asarray(mirrored, int) - np.asarray(centred_square(photo), int)
    assert np.abs(difference).max() <= 1


def test_the_square_is_the_part_that_the_model_sees():
    photo = Image.new("RGB", (300, 100), (255, 0, 0))
    photo.paste((0, 255, 0), (100, 0, 200, 100))
    np.testing.assert_array_equal(seen_square(photo, None), centred_square(photo))
    np.testing.assert_array_equal(
        seen_square(photo, (100.0, 0.0, 200.0, 100.0)), seen_square(photo, None)
    )
    squashed = np.asarray(seen_square(photo, (0.0, 0.0, 300.0, 100.0)))  # as SigLIP sees it
    assert squashed.shape == (PANEL, PANEL, 3)
    third = PANEL // 3
    for start, colour in ((0, (255, 0, 0)), (third, (0, 255, 0)), (2 * third, (255, 0, 0))):
        assert (squashed[:, start + 8 : start + third - 8] == colour).all()


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
    assert (
        shown[side + side // 2, 2 * side] == 200
    ).all()  # no border between two patches of the object


@pytest.mark.parametrize("num_similar", [0, 3])
def test_a_whole_picture(num_similar):
    colours = [(255, 0, 255), (0, 255, 255)]  # no other part of the picture has these
    similar = [(None, "gone")]
    similar += [(Image.new("RGB", (50, 20), colour), "x" * 80) for colour in colours]
    classes = [("a very long name " * 9, 0.7), ("b", 0.3), ("c", 0.0)]
    sheet = draw_overlay(
        Image.new("RGB", (PANEL, PANEL), (1, 2, 3)),
        [
            ("attention", heat_layer(np.arange(16.0).reshape(4, 4))),
            ("object", mask_layer(np.eye(4, dtype=bool))),
        ],
        classes,
        similar[:num_similar],
    )
    assert sheet.width > 3 * PANEL
    top = 2 * MARGIN + 20 + PANEL
    corner = (sheet.width - MARGIN - 3 * (THUMBNAIL + 8), top)
    names = np.asarray(sheet.crop((0, top, corner[0], sheet.height)))
    assert number_of(INK, names) > 0
    photos = np.asarray(sheet.crop((*corner, sheet.width, top + THUMBNAIL + 1)))
    captions = np.asarray(sheet.crop((corner[0], top + THUMBNAIL + 4, *sheet.size)))
    if num_similar == 0:
        assert (photos == PAPER).all()
        assert (captions == PAPER).all()
        return
    assert number_of(FAINT, photos) == (THUMBNAIL + 1) ** 2
    for place, colour in enumerate(colours, start=1):
        left = place * (THUMBNAIL + 8)
        assert (photos[:THUMBNAIL, left : left + THUMBNAIL] == colour).all()
    for place in range(3):
        left = place * (THUMBNAIL + 8)
        assert (captions[:, left : left + THUMBNAIL] != PAPER).any()


def test_every_layer_has_a_square():
    layers = [("evidence", evidence_layer(np.eye(4)))]
    square = Image.new("RGB", (PANEL, PANEL))
    widths = [draw_overlay(square, layers * count, [], []).width for count in (1, 2, 3)]
    assert np.diff(widths).tolist() == [PANEL + MARGIN] * 2


@pytest.mark.parametrize("num_similar", [0, 3])
def test_a_picture_without_layers_has_room_for_bars_and_similar_photos(num_similar):
    square = Image.new("RGB", (PANEL, PANEL), INK)
    classes, similar = [("a", 0.9), ("b", 0.1)], [(square, "c")] * num_similar
    narrow = np.asarray(draw_overlay(square, [], classes, similar))
    wide = np.asarray(
        draw_overlay(square, [("mask", mask_layer(np.eye(4, dtype=bool)))], classes, similar)
    )
    below = slice(MARGIN + 20 + PANEL + MARGIN, None)
    bars = slice(0, PANEL + MARGIN + PANEL // 2 + MARGIN)
    np.testing.assert_array_equal(narrow[below, bars], wide[below, bars])
    if num_similar:
        thumbnails = slice(-num_similar * (THUMBNAIL + 8) - MARGIN, None)
        np.testing.assert_array_equal(narrow[below, thumbnails], wide[below, thumbnails])


def test_evidence_is_orange_for_the_class_and_blue_against_it():
    evidence = np.zeros((4, 4))
    evidence[0, 0], evidence[3, 3] = 2.0, -1.0
    layer = np.asarray(evidence_layer(evidence))
    side = PANEL // 4
    pro, contra = layer[side // 2, side // 2], layer[-side // 2, -side // 2]
    assert tuple(pro[:3]) == FOR
    assert tuple(contra[:3]) == AGAINST
    assert pro[3] > contra[3] > 0
    assert layer[2 * side, 2 * side, 3] < 3
    assert not np.asarray(evidence_layer(np.zeros((4, 4))))[..., 3].any()


def test_boxes_surround_their_masks_and_have_names():
    first, second = np.zeros((2, 4, 4), bool)
    first[1:3, 2:], second[0, 0] = True, True
    layer = np.asarray(boxes_layer([(first, "a"), (second, "a very long name " * 9)]))
    side, inside = PANEL // 4, layer[..., 3] > 0
    for row, column in ((side, 2 * side), (3 * side - 1, PANEL - 1), (side - 1, 0)):
        assert tuple(layer[row, column, :3]) == OUTLINE
    assert not inside[2 * side, 3 * side]
    assert not inside[3 * side + 5 :].any()
    assert (layer[:side, :, :3] == INK).all(axis=-1).any()  # letters


def test_names_of_boxes_do_not_cover_each_other():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 2:4, 3:5], masks[1, 2, 6] = True, True  # the names are wider than the gap
    layer = np.asarray(boxes_layer([(mask, "none of these?") for mask in masks]))
    side = PANEL // 8
    for top in (2 * side - LABEL, 3 * side):  # above the first box, below the second
        line = layer[top + 1, :, :3]
        assert number_of(OUTLINE, line) > 2 * side
    alone = np.asarray(boxes_layer([(masks[0], "none of these?")]))
    first = (slice(2 * side - LABEL, 2 * side), slice(3 * side, None))
    np.testing.assert_array_equal(layer[first], alone[first])


def test_a_mask_of_everything_is_clear():
    assert not np.asarray(mask_layer(np.ones((4, 4), bool))).any()


def number_of(colour, pixels):
    return (pixels == colour).all(axis=-1).sum()


def test_long_names_are_cut_to_the_width():
    chosen = font(15)
    assert fitted("short", 200, chosen) == "short"
    cut = fitted("x" * 100, 120, chosen)
    assert cut.endswith("…")
    assert chosen.getlength(cut) <= 120


@pytest.mark.parametrize(("letters", "has_cjk"), [("жщλß", False), ("狐鳥かな", True)])
def test_letters_beyond_ascii_are_no_boxes(letters, has_cjk):
    def drawn(letter):
        sheet = Image.new("RGB", (24, 24), PAPER)
        write(ImageDraw.Draw(sheet), (2, 2), letter, 24, 15)
        return sheet.tobytes()

    names = CJK_FONTS if has_cjk else ALPHABETIC_FONTS
    if font(15, has_cjk).path not in {path_of(name) for name in names}:
        pytest.skip(f"none of {', '.join(names)} is installed")
    assert len({drawn(letter) for letter in letters}) == len(letters)


def path_of(name):
    try:
        return ImageFont.truetype(name, 15).path
    except OSError:
        return None
