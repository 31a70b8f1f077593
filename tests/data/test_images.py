"""Images of every kind are decoded as a viewer shows them; damage of every kind is named."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fgvpl_jax.data import UnreadableImage, decode_image, random_crop_and_flip

RED = (200, 30, 40)


def photo(size=(8, 6), colour=RED):
    return Image.new("RGB", size, colour)


def decoded(path):
    image = decode_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_plain_and_palette_and_grey(tmp_path):
    photo().save(tmp_path / "a.png")
    photo().quantize(4).save(tmp_path / "p.png")
    Image.new("L", (3, 3), 77).save(tmp_path / "l.png")
    Image.new("1", (3, 3), 1).save(tmp_path / "one.png")
    assert (decoded(tmp_path / "a.png") == RED).all()
    assert (decoded(tmp_path / "p.png") == RED).all()
    assert (decoded(tmp_path / "l.png") == 77).all()
    assert (decoded(tmp_path / "one.png") == 255).all()


def test_cmyk_keeps_its_colours(tmp_path):
    photo().convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    np.testing.assert_allclose(decoded(tmp_path / "c.jpg").mean(axis=(0, 1)), RED, atol=6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    levels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(decoded(tmp_path / f"x.{suffix}")[0, :, 0], [0, 1, 128, 255])


def test_transparency_is_blended_with_white(tmp_path):
    half = Image.new("RGBA", (2, 2), (*RED, 128))
    half.save(tmp_path / "rgba.png")
    expected = np.round(np.array(RED) * 128 / 255 + 255 * 127 / 255)
    np.testing.assert_allclose(decoded(tmp_path / "rgba.png")[0, 0], expected, atol=1)
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    assert (decoded(tmp_path / "la.png") == 255).all()
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, *RED])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(decoded(tmp_path / "p.png")[0], [(255, 255, 255), RED])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = photo((4, 2), (0, 0, 0))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    shown = decoded(tmp_path / "x.png")[..., 0]
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0)}
    corner |= {5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert shown.shape == ((2, 4) if orientation < 5 else (4, 2))
    assert shown[corner[orientation]] == 255
    assert (shown == 255).sum() == 1


def test_the_first_frame_of_an_animation_is_used(tmp_path):
    photo().save(tmp_path / "x.gif", save_all=True, append_images=[photo(colour=(0, 255, 0))])
    np.testing.assert_allclose(decoded(tmp_path / "x.gif")[0, 0], RED, atol=2)


def test_damage_is_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    cases = {
        "empty.jpg": (b"", "is empty"),
        "cut.jpg": (whole.read_bytes()[:900], "truncated"),
        "text.jpg": (b"not an image at all", "not an image"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableImage, match=rf"{name}.*{reason}"):
            decode_image(tmp_path / name)
    with pytest.raises(UnreadableImage, match=r"gone\.jpg.*No such file"):
        decode_image(tmp_path / "gone.jpg")


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    photo((50, 50)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(UnreadableImage, match=r"big\.png.*50 x 50 pixels"):
        decode_image(tmp_path / "big.png")


def test_pipes_and_too_large_files_are_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")  # reading it would never end
    with pytest.raises(UnreadableImage, match="pipe: not a regular file"):
        decode_image(tmp_path / "pipe")
    photo().save(tmp_path / "big.png")
    monkeypatch.setattr("fgvpl_jax.data.images.MOST_BYTES", 20)
    with pytest.raises(UnreadableImage, match=r"big\.png: \d+ bytes are more than 20"):
        decode_image(tmp_path / "big.png")


def test_very_wide_images_are_read(tmp_path):
    photo((10_000, 100)).save(tmp_path / "wide.jpg")
    image = decode_image(tmp_path / "wide.jpg")
    assert image.size == (10_000, 100)
    crop = random_crop_and_flip(64, Image.Resampling.BICUBIC)(image, np.random.default_rng(0))
    np.testing.assert_allclose(crop.mean(axis=(0, 1)), RED, atol=6)


def test_floating_point_images_are_refused_with_advice(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UnreadableImage, match="8 bits"):
        decode_image(tmp_path / "f.tif")


def test_sixteen_bit_transparency_is_blended_with_white(tmp_path):
    grey = np.array([[0, 1000], [65535, 30000]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=1000)
    pixels = np.asarray(decode_image(tmp_path / "a.png"))
    assert pixels[..., 0].tolist() == [[0, 255], [255, 117]]


def test_very_elongated_images_are_refused(tmp_path):
    Image.new("RGB", (1, 101)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png: 1 x 101 pixels.*crop it"):
        decode_image(tmp_path / "a.png")
    Image.new("RGB", (100, 1)).save(tmp_path / "b.png")
    assert decode_image(tmp_path / "b.png").size == (100, 1)


def entry(tag, kind, count, value):
    """Returns an entry of EXIF, whose value has four bytes."""
    return struct.pack("<HHI4s", tag, kind, count, value)


TURNED = entry(0x0112, 3, 1, b"\6\0\0\0")
BEHIND = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # place after a directory of two entries


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize(
    ("odd", "extra"),
    [
        (entry(0x011A, 10, 1, BEHIND), struct.pack("<ii", -1, 0)),  # -1/0 as a resolution
        (entry(0x011A, 2, 3, b"72\0\0"), b""),  # a text as a resolution
        (entry(0x010F, 2, 1000, b"\xff\xff\0\0"), b""),  # beyond the end
        (entry(0x010F, 99, 1, b"\0\0\0\0"), b""),  # no such type
        (entry(0x8825, 4, 1, b"\xff\xff\0\0"), b""),  # GPS beyond the end
        (entry(0x8769, 4, 1, b"\x08\0\0\0"), b""),  # a directory that contains itself
        (entry(0x010F, 2, 6, BEHIND), "Größ".encode()),
    ],
)
def test_an_odd_exif_entry_does_not_hinder_turning_a_photo(file_format, odd, extra):
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + TURNED + odd + bytes(4) + extra
    stream = io.BytesIO()
    options = {"save_all": True, "append_images": [photo()]} if file_format == "MPO" else {}
    photo((8, 4)).save(stream, file_format, exif=exif, **options)
    assert decode_image(stream.getvalue()).size == (4, 8)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(40),
        bytes(range(50)),
        b"II*\0" + struct.pack("<IH", 8, 1) + entry(0x0112, 2, 2, b"6\0\0\0") + bytes(4),
        b"II*\0" + struct.pack("<IH", 8, 1) + entry(0x0112, 3, 1, b"\x09\0\0\0") + bytes(4),
    ],
)
def test_exif_that_is_none_leaves_a_photo_as_it_is(file_format, content):
    stream = io.BytesIO()
    photo((8, 4)).save(stream, file_format, exif=b"Exif\0\0" + content)
    assert decode_image(stream.getvalue()).size == (8, 4)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_large_colour_profile_is_no_hindrance(file_format):
    stream = io.BytesIO()
    photo().save(stream, file_format, icc_profile=bytes(2_500_000))
    np.testing.assert_allclose(np.asarray(decode_image(stream.getvalue()))[0, 0], RED, atol=6)


@pytest.mark.parametrize("count", [1, 80])
@pytest.mark.parametrize("is_international", [False, True])
def test_much_text_in_a_png_is_no_hindrance(count, is_international):
    texts = PngInfo()
    for number in range(count):
        add = texts.add_itxt if is_international else texts.add_text
        add(f"text {number}", "step " * (400_000 if count == 1 else 180_000), zip=True)
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo((8, 4)).save(stream, "PNG", pnginfo=texts, exif=exif)
    image = decode_image(stream.getvalue())
    assert image.size == (4, 8)
    assert (np.asarray(image) == RED).all()
    with pytest.raises(UnreadableImage):
        decode_image(stream.getvalue()[:-30])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photo: convert it to JPEG"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heixmiaf", "a HEIC photo: convert it to JPEG"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1miaf", "a HEIF photo"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41isom", "a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL photo"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\n <!DOCTYPE HTML>", "a web page, perhaps of a failed download: fetch the file again"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg>", "an SVG drawing"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer.*git lfs pull"),
        (b"/annex/objects/SHA256E-s1--0.jpg\n", "a git-annex pointer.*git annex get"),
        (b"PK\3\4", "an archive: unpack it"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's raw photo"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X", "a resource fork of macOS"),
        (b"MM\0*\0\0\0\x08\0\0", "a TIFF photo of a sort that Pillow does not read"),
    ],
)
def test_a_file_that_is_no_photo_is_named(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content + bytes(30))
    with pytest.raises(UnreadableImage, match=rf"a\.jpg: .*{reason}"):
        decode_image(tmp_path / "a.jpg")


def test_twelve_bits_in_a_sixteen_bit_png_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 4095, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png: no 16-bit pixel is brighter than 6%"):
        decode_image(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4), 5000, np.uint16)).save(tmp_path / "b.png")
    assert (np.asarray(decode_image(tmp_path / "b.png")) == 19).all()


def test_wide_jpeg_2000_is_scaled(tmp_path):
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.jp2")
    np.testing.assert_allclose(decoded(tmp_path / "a.jp2")[..., 0], levels / 257, atol=0.51)
