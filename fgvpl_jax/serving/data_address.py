"""Pictures as data addresses, which are part of a page's HTML."""

import base64
from io import BytesIO

from PIL import Image

THUMBNAIL = (112, 112)  # pixels of a similar photo


def as_address(image: Image.Image, kind: str) -> str:
    """Encodes a picture as a data address."""
    stream = BytesIO()
    # The layers have few colours, so their PNGs are small at any compression level.
    image.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"compress_level": 1}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"


def thumbnail_of(square: Image.Image) -> str:
    """Returns the thumbnail of a square as a data address."""
    return as_address(square.resize(THUMBNAIL), "JPEG")
