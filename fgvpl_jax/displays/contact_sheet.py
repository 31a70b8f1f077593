"""One picture with a few photos of every class, to check the labels by eye."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageOps

from fgvpl_jax.displays.overlay import PAPER, write

PER_CLASS = 4
SIDE, GAP, CAPTION = 72, 4, 20  # pixels
CELL = PER_CLASS * (SIDE + GAP) + 3 * GAP, CAPTION + SIDE + 3 * GAP


def thumbnail(photo: Image.Image) -> Image.Image:
    """Returns the centred square of a photo at thumbnail size."""
    return ImageOps.fit(photo, (SIDE, SIDE))


def draw_contact_sheet(classes: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Draws every class's name above its thumbnails, on a roughly square sheet.

    Args:
        classes: Class names, each with at most PER_CLASS thumbnails.
    """
    width, height = CELL
    columns = math.ceil(math.sqrt(len(classes) * height / width))
    rows = math.ceil(len(classes) / columns)
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, (name, thumbnails) in enumerate(classes):
        left, top = place % columns * width + 2 * GAP, place // columns * height + GAP
        write(pen, (left, top), name, width - 3 * GAP, 13)
        for number, image in enumerate(thumbnails):
            sheet.paste(image, (left + number * (SIDE + GAP), top + CAPTION))
    return sheet
