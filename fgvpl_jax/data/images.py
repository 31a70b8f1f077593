"""Decodes image files to RGB photos, as an image viewer shows them."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

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
        raise UnreadableImage(f"{name}: {error.strerror or error}") from error
    if not data:
        raise UnreadableImage(f"{name}: the file is empty")
    with _errors_naming(name), Image.open(BytesIO(data), formats=sorted(FORMATS)) as image:
        return _upright_rgb(image)


def as_photo(image: Image.Image, name: str) -> Image.Image:
    """Converts an image of any Pillow mode to 8-bit RGB, without changing the original.

    EXIF orientation is applied, 16-bit greys are scaled to 8 bits, and transparent pixels are
    blended with white.

    Args:
        image: Image opened or created by Pillow; it is decoded now if it has not been yet.
        name: Name of the image in error messages.
    Raises:
        UnreadableImage: If the image cannot be decoded, is too large, or has floating-point
            pixels, whose value for white is not defined.
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
def _errors_naming(name: str) -> Iterator[None]:
    try:
        yield
    except UnreadableImage as error:
        raise UnreadableImage(f"{name}: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: not an image that Pillow knows") from error
    except Exception as error:  # for damaged files, decoders may raise any error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name}: {reason}") from error


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
    return _to_rgb(ImageOps.exif_transpose(image))  # a copy, even if the image is upright


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
