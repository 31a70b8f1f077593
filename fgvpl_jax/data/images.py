"""Decodes image files to RGB photos, as an image viewer shows them."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from fgvpl_jax.data.file_kinds import HEAD_BYTES, Group, kind_of
from fgvpl_jax.data.tiff import UnusualTiff, standard_tiff
from fgvpl_jax.errors import UserError

# Photos and drawings, but not every format that Pillow opens: for EPS it would start another
# program. Some builds of Pillow lack some of these formats.
Image.init()
FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"} & set(Image.OPEN)
WHITE = (255, 255, 255, 255)
# The shortest side is resized to CLIP's size before the crop, however long the other becomes.
MOST_ELONGATED = 100
# Twice the size of an uncompressed file with as many pixels as Pillow's limit allows.
MOST_BYTES = 1 << 29
# How to turn a photo upright for each value of EXIF's orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks of texts and of the colour profile, none of which change the decoded pixels.
PNG_METADATA = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}
# 12 bits stored in 16 make no pixel brighter than this, and viewers show such a picture as black.
DARKEST_LEVEL = 16


class UnreadableImage(UserError):
    """An image that cannot be decoded; the message names the file and the reason."""


def decode_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Decodes one image to 8-bit RGB.

    Converts the image like `as_photo`. The first frame of an animation is used.

    Args:
        source: Path of a file, or the contents of a file.
        name: Name of the image in error messages; the path by default.
    Raises:
        UnreadableImage: If the file is missing, not a regular file, empty, truncated, too large,
            or not an image.
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    try:
        data = _content(source) if isinstance(source, Path) else source
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        if isinstance(source, Path) and source.is_symlink() and not source.exists():
            reason = f"a link to {os.readlink(source)}, which does not exist"
        raise UnreadableImage(f"{name}: {reason}") from error
    if not data:
        raise UnreadableImage(f"{name}: the file is empty")
    with _errors_naming(name, data[:HEAD_BYTES]):
        try:
            return _decoded(data)
        except UnreadableImage:
            raise
        except Exception:  # such as Pillow's limits of texts and profiles, which are not needed
            bare = _without_metadata(data)
            if bare == data:
                raise
            return _decoded(bare)


def _decoded(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data), formats=sorted(FORMATS)) as image:
        return _upright_rgb(image)


def _without_metadata(data: bytes) -> bytes:
    """Returns a PNG file without its texts and colour profile; other files are unchanged."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    kept, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])  # length, name, content, checksum
        if data[at + 4 : at + 8] not in PNG_METADATA:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def as_photo(image: Image.Image, name: str) -> Image.Image:
    """Converts an image of any Pillow mode to 8-bit RGB, without changing the original.

    EXIF orientation is applied, 16-bit greys are scaled to 8 bits, and transparent pixels are
    blended with white. Other EXIF entries are ignored, even if they are damaged.

    Args:
        image: Image opened or created by Pillow; it is decoded now if it has not been yet.
        name: Name of the image in error messages.
    Raises:
        UnreadableImage: If the image cannot be decoded, is too large, or has floating-point, signed
            or 32-bit pixels, whose value for white is not defined.
    """
    with _errors_naming(name):
        return _upright_rgb(image)


def _content(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or device might never end
        raise UnreadableImage("not a regular file")
    if status.st_size > MOST_BYTES:
        raise UnreadableImage(f"{status.st_size:,} bytes are more than {MOST_BYTES:,}")
    return file.read_bytes()


@contextmanager
def _errors_naming(name: str, head: bytes = b"") -> Iterator[None]:
    try:
        yield
    except (UnreadableImage, UnusualTiff) as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: {_why_unidentified(head)}") from error
    except Exception as error:  # for damaged files, decoders may raise any error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name}: {reason}") from error


def _why_unidentified(head: bytes) -> str:
    kind = kind_of(head)
    if kind is None:
        return "not an image that Pillow knows"
    if kind.group is Group.PHOTO:
        return f"{kind.name} of a sort that Pillow does not read: save it as JPEG or 8-bit PNG"
    return f"not an image that can be read, but {kind.name}: {kind.advice}"


def _upright_rgb(image: Image.Image) -> Image.Image:
    # Pillow itself only warns at this limit, and refuses at twice the limit.
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise UnreadableImage(
            f"{image.width} x {image.height} pixels are more than {Image.MAX_IMAGE_PIXELS:,}: "
            "make it smaller"
        )
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise UnreadableImage(
            f"{image.width} x {image.height} pixels are more than {MOST_ELONGATED} times as long "
            "as wide: crop it"
        )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        image = standard_tiff(image)
    # The tiles say how the decoder packs the pixels, and are gone after decoding.
    is_wide = any("16" in str(tile.args) for tile in getattr(image, "tile", ()))
    image.load()
    turn = TURNS.get(_orientation(image))
    upright = image.copy() if turn is None else image.transpose(turn)
    photo = _to_rgb(upright)
    if is_wide or image.mode.startswith("I"):
        _refuse_nearly_black(photo)
    return photo


def _refuse_nearly_black(photo: Image.Image) -> None:
    brightest = int(np.asarray(photo).max())
    if 0 < brightest <= DARKEST_LEVEL:
        raise UnreadableImage(
            f"no 16-bit pixel is brighter than {brightest / 255:.0%}, as if they held fewer bits: "
            "save it with 8 bits"
        )


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation; 1, which is upright, if EXIF cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers ignore damaged EXIF too; Pillow may raise any error for it
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        # Rounded to the nearest level; 257 is odd, so there are no ties.
        levels = ((grey + 128) // 257).astype(np.uint8)
        levels[grey == image.info.get("transparency", -1)] = 255  # blended with white
        return Image.fromarray(levels).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined white: save it with 8 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert(
            "RGB"
        )
    return image if image.mode == "RGB" else image.convert("RGB")
