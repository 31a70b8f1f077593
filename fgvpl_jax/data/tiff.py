"""TIFF files that Pillow opens but decodes to other pixels than viewers show."""

from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COMPRESSION,
    PHOTOMETRIC_INTERPRETATION,
    PLANAR_CONFIGURATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

NEW_SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags
UNCOMPRESSED, SEPARATE_PLANES, SIGNED, WHITE_IS_ZERO, REDUCED = 1, 2, 2, 0, 1  # their values


class UnusualTiff(ValueError):
    """A TIFF file that is not read; the message says why and what to do."""


def standard_tiff(image: TiffImageFile) -> Image.Image:
    """Returns the picture with 0 as black and, if it has over 8 bits, 65,535 as white.

    Raises:
        UnusualTiff: If Pillow would decode other pixels than viewers show.
    """
    tags = image.tag_v2
    depth = max(_integers(tags.get(BITSPERSAMPLE)), default=1)
    if SIGNED in _integers(tags.get(SAMPLEFORMAT)):
        raise UnusualTiff("signed pixels have no defined white: save it with 8 bits")
    if depth > 16 and image.mode != "F":
        raise UnusualTiff(f"{depth}-bit pixels have no defined white: save it with 8 bits")
    uncompressed = tags.get(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED
    if tags.get(PLANAR_CONFIGURATION) == SEPARATE_PLANES and (
        image.mode == "LA" or (depth > 8 and uncompressed)
    ):
        raise UnusualTiff(
            f"{depth}-bit {image.mode} in separate planes is not read: save it as PNG"
        )
    if DNG_VERSION in tags or tags.get(NEW_SUBFILE_TYPE) == REDUCED:
        raise UnusualTiff("a camera's raw photo, or its preview: convert it to JPEG")
    is_inverted = tags.get(PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO
    if not image.mode.startswith("I;16") or not (is_inverted or depth < 16):
        return image
    white = (1 << depth) - 1
    grey = np.asarray(image).astype(np.uint32)
    scaled = (grey * 65535 + white // 2) // white
    return Image.fromarray((65535 - scaled if is_inverted else scaled).astype(np.uint16))


def _integers(value: Any) -> tuple[int, ...]:
    """Returns the integers of a tag, which may be damaged."""
    values = value if isinstance(value, tuple) else (value,)
    return tuple(one for one in values if isinstance(one, int))
