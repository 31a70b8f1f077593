"""Image files to RGB photos, as a viewer shows them."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fgvpl_jax.errors import UserError

# Photos and drawings. Not all that Pillow opens: for EPS it would start another program. A build
# of Pillow may lack some of them.
Image.init()
FORMATS = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP"} & set(Image.OPEN)
WHITE = (255, 255, 255, 255)
# The shortest side is brought to CLIP's size before the crop, however long the other becomes.
MOST_ELONGATED = 100
# Twice what Pillow's limit of pixels takes in a file without any compression.
MOST_BYTES = 1 << 29


class UnreadableImage(UserError):
    """A file that cannot be decoded; names it and says why."""


def decode_image(source: Path | bytes, name: str | None = None) -> Image.Image:
    """Decodes one image to 8-bit RGB.

    As `as_photo` does; of an animation the first frame is taken.

    Args:
        source: A file, or its contents.
        name: What to call it in an error; the path by default.
    Raises:
        UnreadableImage: If it is missing, no plain file, empty, truncated, too large, or no image.
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
    """An image of any of Pillow's modes as 8-bit RGB; the given one is not changed.

    EXIF orientation is applied, 16-bit greys are scaled to 8 bits, transparency is laid on white.

    Args:
        image: Opened or made by Pillow; what is not decoded yet is so now.
        name: What to call it in an error.
    Raises:
        UnreadableImage: If it cannot be decoded, is too large, or has no fixed white.
    """
    with _errors_naming(name):
        return _upright_rgb(image)


def _content(file: Path) -> bytes:
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe or device might never end
        raise UnreadableImage("not a plain file")
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
    except Exception as error:  # decoders of strangers' files raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImage(f"{name}: {reason}") from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    # Pillow itself only doubts at this limit, and refuses at twice that.
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
    return _to_rgb(ImageOps.exif_transpose(image))  # a copy, also of an upright one


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion would clip them
        grey = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        levels = ((grey + 128) // 257).astype(np.uint8)  # to the nearest; 257 is odd: no ties
        levels[grey == image.info.get("transparency", -1)] = 255  # as on white
        return Image.fromarray(levels).convert("RGB")
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no fixed white: save it with 8 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", coloured.size, WHITE), coloured).convert(
            "RGB"
        )
    return image if image.mode == "RGB" else image.convert("RGB")
