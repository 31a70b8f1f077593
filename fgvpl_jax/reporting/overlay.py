"""One picture per prediction: the photo, where the model looked, and what it is like."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

PANEL = 320  # pixels of each of the three squares
MARGIN = 14
THUMBNAIL = 92
INK, PAPER, FAINT = (24, 26, 30), (255, 255, 255), (226, 229, 235)
BAR, OUTLINE = (64, 110, 220), (255, 60, 60)
# Perceptual dark-to-bright ramp of the attention map: dark blue, purple, orange, yellow.
RAMP = np.array([(13, 8, 135), (156, 23, 158), (237, 121, 83), (240, 249, 33)], np.float64)


def draw_overlay(
    photo: Image.Image,
    attention_map: Float[np.ndarray, "gh gw"],
    object_mask: Bool[np.ndarray, "gh gw"],
    classes: Sequence[tuple[str, float]],
    similar: Sequence[tuple[Image.Image | None, str]],
) -> Image.Image:
    """Draws the crop that the model saw, its attention map and its object mask.

    Args:
        photo: The whole photo; only the centred square is shown, as only that was seen.
        attention_map: Scores of the patches.
        object_mask: The patches of the object.
        classes: Names and probabilities, best first.
        similar: Training photos (None where one is gone) and their captions.
    """
    square = centred_square(photo)
    panels = [
        square,
        Image.blend(square, heat(attention_map), 0.55),
        with_outline(square, object_mask),
    ]
    captions = ("what the model saw", "attention", "object")
    width = MARGIN + len(panels) * (PANEL + MARGIN)
    height = MARGIN + 20 + PANEL + MARGIN + max(26 * len(classes), THUMBNAIL + 24) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = MARGIN + column * (PANEL + MARGIN)
        pen.text((left, MARGIN - 4), caption, fill=INK, font=font)
        sheet.paste(panel, (left, MARGIN + 20))
    top = MARGIN + 20 + PANEL + MARGIN
    draw_bars(pen, classes, (MARGIN, top), PANEL + MARGIN + PANEL // 2)
    left = width - MARGIN - len(similar) * (THUMBNAIL + 8)
    for place, (image, caption) in enumerate(similar):
        corner = (left + place * (THUMBNAIL + 8), top)
        if image is None:
            pen.rectangle((*corner, corner[0] + THUMBNAIL, corner[1] + THUMBNAIL), fill=FAINT)
        else:
            thumbnail = centred_square(image).resize((THUMBNAIL, THUMBNAIL))
            sheet.paste(thumbnail, corner)
        text = shortened(caption, THUMBNAIL, ImageFont.load_default(12))
        pen.text((corner[0], top + THUMBNAIL + 4), text, fill=INK, font=ImageFont.load_default(12))
    return sheet


def centred_square(photo: Image.Image) -> Image.Image:
    """The largest centred square, at the panels' size."""
    side = min(photo.size)
    left, top = ((length - side) // 2 for length in photo.size)
    square = photo.convert("RGB").crop((left, top, left + side, top + side))
    return square.resize((PANEL, PANEL), Image.Resampling.BICUBIC)


def heat(attention_map: Float[np.ndarray, "gh gw"]) -> Image.Image:
    """The map in colours, smallest value dark, largest bright."""
    low, high = attention_map.min(), attention_map.max()
    level = (attention_map - low) / (high - low if high > low else 1)
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(level, stops, RAMP[:, c]) for c in range(3)], axis=-1)
    return Image.fromarray(colours.astype(np.uint8)).resize(
        (PANEL, PANEL), Image.Resampling.BICUBIC
    )


def with_outline(square: Image.Image, mask: Bool[np.ndarray, "gh gw"]) -> Image.Image:
    """The square with the mask's border drawn and everything outside it dimmed."""
    gh, gw = mask.shape
    keep = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        square.size, Image.Resampling.NEAREST
    )
    dimmed = Image.blend(square, Image.new("RGB", square.size, INK), 0.55)
    shown = Image.composite(square, dimmed, keep)
    pen = ImageDraw.Draw(shown)
    padded = np.pad(mask, 1)
    ys, xs = (np.linspace(0, PANEL, n + 1) for n in (gh, gw))
    for row, column in zip(*np.nonzero(mask), strict=True):
        left, right, top, bottom = xs[column], xs[column + 1], ys[row], ys[row + 1]
        sides = (
            (padded[row, column + 1], (left, top, right, top)),
            (padded[row + 2, column + 1], (left, bottom, right, bottom)),
            (padded[row + 1, column], (left, top, left, bottom)),
            (padded[row + 1, column + 2], (right, top, right, bottom)),
        )
        for neighbour, line in sides:
            if not neighbour:
                pen.line(line, fill=OUTLINE, width=3)
    return shown


def draw_bars(
    pen: ImageDraw.ImageDraw,
    classes: Sequence[tuple[str, float]],
    corner: tuple[int, int],
    width: int,
) -> None:
    """Class names with their probabilities as bars."""
    font = ImageFont.load_default(15)
    left, top = corner
    start = left + width // 2
    for place, (name, probability) in enumerate(classes):
        y = top + 26 * place
        pen.text((left, y), shortened(name, width // 2 - 8, font), fill=INK, font=font)
        pen.rectangle((start, y + 2, left + width - 60, y + 18), fill=FAINT)
        end = start + round((left + width - 60 - start) * probability)
        if end > start:
            pen.rectangle((start, y + 2, end, y + 18), fill=BAR)
        pen.text((left + width - 54, y), f"{probability:.1%}", fill=INK, font=font)


def shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
