"""TIFF files of every layout come out as the numbers say, or are refused with a reason.

tifffile, which decodes no picture with Pillow, writes them.
"""

import io
import itertools
import struct

import numpy as np
import pytest
import tifffile

from fgvpl_jax.data import UnreadableImage, decode_image

ROWS, COLUMNS = 40, 48
DOWN, RIGHT = np.mgrid[0:ROWS, 0:COLUMNS] / np.array([ROWS, COLUMNS]).reshape(2, 1, 1)
COLOUR = np.stack([DOWN, RIGHT, (DOWN + RIGHT) / 2], axis=-1)  # from 0 to 1
OPAQUE = np.concatenate([COLOUR, np.ones((ROWS, COLUMNS, 1))], axis=-1)


def written(pixels, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


def decoded(data):
    return np.asarray(decode_image(data)).astype(float)


def quantised(fractions, bits, order="<"):
    return (fractions * (2**bits - 1)).astype(np.dtype(f"u{bits // 8}").newbyteorder(order))


@pytest.mark.parametrize(
    ("bits", "compression", "order"), list(itertools.product((8, 16), (None, "zlib"), "<>"))
)
@pytest.mark.parametrize("layout", ["rgb", "rgba", "grey", "white is zero", "tiles", "cmyk"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_every_layout_is_read_right_or_refused(layout, bits, compression, order, planes):
    options = {"compression": compression, "byteorder": order}
    fractions, expected = COLOUR, COLOUR
    if layout in ("grey", "white is zero"):
        fractions = COLOUR[..., 0]
        expected = np.repeat(fractions[..., None], 3, axis=-1)
        options |= {"photometric": "minisblack" if layout == "grey" else "miniswhite"}
        expected = expected if layout == "grey" else 1 - expected
    else:
        if layout == "rgba":
            fractions, options = OPAQUE, options | {"extrasamples": ["unassalpha"]}
        elif layout == "cmyk":
            fractions, expected = np.concatenate([COLOUR, 0 * COLOUR[..., :1]], -1), 1 - COLOUR
        elif layout == "tiles":
            options |= {"tile": (16, 16)}
        kind = "separated" if layout == "cmyk" else "rgb"
        options |= {"photometric": kind, "planarconfig": planes}
    pixels = quantised(fractions, bits, order)
    if "planarconfig" in options and planes == "separate":
        pixels = np.moveaxis(pixels, -1, 0).copy()
    try:
        found = decoded(written(pixels, **options))
    except UnreadableImage as error:
        assert bits == 16 or planes == "separate"
        assert "save it as" in str(error)
        return
    np.testing.assert_allclose(found, expected * 255, atol=1.01)


def test_the_common_layouts_are_not_refused():
    for bits in (8, 16):
        decoded(written(quantised(COLOUR, bits), photometric="rgb"))
        decoded(written(quantised(COLOUR[..., 0], bits), photometric="minisblack"))
        decoded(written(quantised(COLOUR[..., 0], bits), photometric="miniswhite"))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_grey_with_transparency_in_planes_is_refused(compression):
    pixels = quantised(np.stack([DOWN, np.ones_like(DOWN)]), 8)
    options = {"photometric": "minisblack", "planarconfig": "separate", "compression": compression}
    with pytest.raises(UnreadableImage, match="separate planes is not read: save it as PNG"):
        decode_image(written(pixels, extrasamples=["unassalpha"], **options))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ((DOWN * 2**32 - 1).clip(0).astype(np.uint32), "32-bit pixels have no defined white"),
        ((DOWN * 65535 - 32768).astype(np.int16), "signed pixels have no defined white"),
        ((DOWN * 255 - 128).astype(np.int8), "signed pixels have no defined white"),
        (DOWN.astype(np.float32), "floating-point pixels have no defined white"),
        (DOWN.astype(np.float64), "a TIFF photo of a sort that Pillow does not read"),
        ((DOWN * 4095).astype(np.uint16), "no 16-bit pixel is brighter than 6%"),
        ((DOWN * 1023).astype(np.uint16), "no 16-bit pixel is brighter than 2%"),
        ((COLOUR * 4095).astype(np.uint16), "no 16-bit pixel is brighter than 6%"),
    ],
)
def test_pixels_without_a_defined_white_are_refused(pixels, message):
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    with pytest.raises(UnreadableImage, match=message):
        decode_image(written(pixels, photometric=photometric))


def test_black_is_no_sign_of_another_depth():
    assert not decoded(written(np.zeros((8, 8), np.uint16), photometric="minisblack")).any()


def test_twelve_bits_fill_the_whole_range():
    """Two pixels of 12 bits, 0xABC and 0xFFF, packed into three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1)]
    tags.append((279, 3))
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    assert len(data) == 122
    found = decoded(data + b"\xab\xcf\xff")
    np.testing.assert_allclose(found[0, :, 0], [0xABC / 4095 * 255, 255], atol=0.5)


@pytest.mark.parametrize("tags", [{"subfiletype": 1}, {"extratags": [(50706, 1, 4, b"\1\4\0\0")]}])
def test_previews_of_raw_photos_are_refused(tags):
    with pytest.raises(UnreadableImage, match="camera's raw photo, or its preview: convert it"):
        decode_image(written(quantised(COLOUR, 8), photometric="rgb", **tags))
