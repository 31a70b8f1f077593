"""A picture of one prediction: photo, attention map, object mask, evidence, similar photos."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFont

PANEL = 320  # pixels of each square
MARGIN = 14
THUMBNAIL = 92
INK, PAPER, FAINT = (24, 26, 30), (255, 255, 255), (226, 229, 235)
BAR, OUTLINE = (64, 110, 220), (255, 60, 60)
LABEL = 19  # height of a box's label
DIMMING = 0.55  # outside the object
HEAT = 0.55  # opacity of the attention map
FOR, AGAINST = (230, 85, 13), (49, 100, 196)  # evidence for a class and against it
STRONGEST = 0.8  # opacity of the strongest evidence
# Perceptual dark-to-bright ramp of the attention map: dark blue, purple, orange, yellow.
RAMP = np.array([(13, 8, 135), (156, 23, 158), (237, 121, 83), (240, 249, 33)], np.float64)

# Pillow's own font draws a box for nearly every letter beyond ASCII. These fonts are found on
# Linux, macOS and Windows: the first tuple covers the alphabets, the second Chinese, Japanese and
# Korean as well.
ALPHABETIC_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
CJK_FONTS = ("NotoSansCJK-Regular.ttc", "Hiragino Sans GB.ttc", "msyh.ttc")

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_overlay(
    square: Image.Image,
    layers: Sequence[tuple[str, Image.Image]],
    classes: Sequence[tuple[str, float]],
    similar: Sequence[tuple[Image.Image | None, str]],
) -> Image.Image:
    """Draws the crop that the model saw, once for each layer over it, and its classes.

    Args:
        square: The part of the photo that the model saw, from `seen_square`.
        layers: Captions and transparent squares: of `heat_layer`, `mask_layer` or `evidence_layer`.
        classes: Names and probabilities, best first.
        similar: Training photos (None for a missing one) and their captions.
    """
    captions = ("what the model saw", *(caption for caption, _ in layers))
    panels = [square, *(laid_over(square, layer) for _, layer in layers)]
    bars, thumbnails = PANEL + MARGIN + PANEL // 2, len(similar) * (THUMBNAIL + 8)
    width = MARGIN + max(len(panels) * (PANEL + MARGIN), bars + MARGIN + thumbnails)
    height = MARGIN + 20 + PANEL + MARGIN + max(26 * len(classes), THUMBNAIL + 24) + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (panel, caption) in enumerate(zip(panels, captions, strict=True)):
        left = MARGIN + column * (PANEL + MARGIN)
        write(pen, (left, MARGIN - 4), caption, PANEL, 15)
        sheet.paste(panel, (left, MARGIN + 20))
    top = MARGIN + 20 + PANEL + MARGIN
    draw_bars(pen, classes, (MARGIN, top), bars)
    left = width - MARGIN - thumbnails
    for place, (image, caption) in enumerate(similar):
        corner = (left + place * (THUMBNAIL + 8), top)
        if image is None:
            pen.rectangle((*corner, corner[0] + THUMBNAIL, corner[1] + THUMBNAIL), fill=FAINT)
        else:
            thumbnail = centred_square(image).resize((THUMBNAIL, THUMBNAIL))
            sheet.paste(thumbnail, corner)
        write(pen, (corner[0], top + THUMBNAIL + 4), caption, THUMBNAIL, 12)
    return sheet


def centred_square(photo: Image.Image) -> Image.Image:
    """Returns the largest centred square, at the panels' size."""
    return seen_square(photo, None)


def seen_square(
    photo: Image.Image, box: tuple[float, float, float, float] | None, side: int = PANEL
) -> Image.Image:
    """Returns the part of a photo that the model sees, as a square.

    Args:
        photo: The whole photo.
        box: The part, from `ImageProcessor.seen_box`; None for the largest centred square.
        side: Side of the square in pixels.
    """
    if box is None:
        length = min(photo.size)
        left, top = ((whole - length) / 2 for whole in photo.size)
        box = (left, top, left + length, top + length)
    return photo.resize((side, side), Image.Resampling.BICUBIC, box)


def heat(attention_map: Float[np.ndarray, "gh gw"], side: int = PANEL) -> Image.Image:
    """Returns the map in colours: the smallest value is dark, the largest bright."""
    low, high = attention_map.min(), attention_map.max()
    level = (attention_map - low) / (high - low if high > low else 1)
    stops = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(level, stops, RAMP[:, c]) for c in range(3)], axis=-1)
    return Image.fromarray(colours.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)


def heat_layer(attention_map: Float[np.ndarray, "gh gw"]) -> Image.Image:
    """Returns the map in colours as an RGBA layer."""
    layer = heat(attention_map)
    layer.putalpha(round(255 * HEAT))
    return layer


def evidence_layer(evidence: Float[np.ndarray, "gh gw"]) -> Image.Image:
    """Returns evidence as an RGBA layer: orange for the class, blue against it, else clear."""
    largest = np.abs(evidence).max()
    strength = evidence / (largest if largest > 0 else 1)
    size = (PANEL, PANEL)
    smooth = np.asarray(
        Image.fromarray(strength.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    )
    colours = np.where((smooth > 0)[..., None], FOR, AGAINST).astype(np.uint8)
    layer = Image.fromarray(colours)
    opacity = 255 * STRONGEST * np.minimum(np.abs(smooth), 1)
    layer.putalpha(Image.fromarray(opacity.astype(np.uint8)))
    return layer


def laid_over(square: Image.Image, layer: Image.Image) -> Image.Image:
    """Returns the square with a transparent layer over it."""
    return Image.alpha_composite(square.convert("RGBA"), layer.convert("RGBA")).convert("RGB")


def with_outline(square: Image.Image, mask: Bool[np.ndarray, "gh gw"]) -> Image.Image:
    """Returns the square with the mask's border drawn and everything outside it dimmed."""
    return laid_over(square, mask_layer(mask))


def mask_layer(mask: Bool[np.ndarray, "gh gw"]) -> Image.Image:
    """Returns a layer that shows a mask on a square, transparent inside the border.

    It is clear where the mask is the whole square, because then no object was found. Its three
    colours are a palette with opacities: as RGBA, its PNG would take ten times as long to write.
    """
    gh, gw = mask.shape
    outside = Image.fromarray((~mask).astype(np.uint8))
    layer = outside.resize((PANEL, PANEL), Image.Resampling.NEAREST)
    layer.putpalette((*INK, 0, *INK, round(255 * DIMMING), *OUTLINE, 255), "RGBA")
    if mask.all():
        return layer
    pen = ImageDraw.Draw(layer)
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
                pen.line(line, fill=2, width=3)
    return layer


def boxes_layer(named: Sequence[tuple[Bool[np.ndarray, "gh gw"], str]]) -> Image.Image:
    """Returns an RGBA layer with a box around each mask and its class name at the top.

    A name that would cover another is written below its box.
    """
    layer = Image.new("RGBA", (PANEL, PANEL))
    pen = ImageDraw.Draw(layer)
    letters = font(15)
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[tuple[str, tuple[int, int], int]] = []
    for mask, name in named:
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        top, bottom = (round(PANEL * n / mask.shape[0]) for n in (rows[0], rows[-1] + 1))
        left, right = (round(PANEL * n / mask.shape[1]) for n in (columns[0], columns[-1] + 1))
        text = fitted(name, PANEL - 8, letters)
        width = round(letters.getlength(text)) + 8
        start, above = min(left, PANEL - width), max(top - LABEL, 0)
        if any(
            start <= other + length and other <= start + width and abs(above - y) <= LABEL
            for _, (other, y), length in labels
        ):
            above = min(bottom, PANEL - LABEL)
        boxes.append((left, top, right - 1, bottom - 1))
        labels.append((text, (start, above), width))
    for box in reversed(boxes):  # the first is drawn over the others
        pen.rectangle(box, outline=PAPER, width=5)  # seen on a red object too
        pen.rectangle(box, outline=OUTLINE, width=3)
    for text, (start, above), width in reversed(labels):
        pen.rectangle((start, above, start + width, above + LABEL), fill=OUTLINE)
        write(pen, (start + 4, above), text, width, 15)
    return layer


def draw_bars(
    pen: ImageDraw.ImageDraw,
    classes: Sequence[tuple[str, float]],
    corner: tuple[int, int],
    width: int,
) -> None:
    """Draws class names with their probabilities as bars."""
    left, top = corner
    start = left + width // 2
    for place, (name, probability) in enumerate(classes):
        y = top + 26 * place
        write(pen, (left, y), name, width // 2 - 8, 15)
        pen.rectangle((start, y + 2, left + width - 60, y + 18), fill=FAINT)
        end = start + round((left + width - 60 - start) * probability)
        if end > start:
            pen.rectangle((start, y + 2, end, y + 18), fill=BAR)
        write(pen, (left + width - 54, y), f"{probability:.1%}", PANEL // 4, 15)


def write(
    pen: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, width: int, size: int
) -> None:
    """Writes a line in a font that has its letters, cut to `width` pixels."""
    has_cjk = any("\u2e80" <= letter <= "\ud7a3" or letter >= "\U00020000" for letter in text)
    chosen = font(size, has_cjk)
    pen.text(corner, fitted(text, width, chosen), fill=INK, font=chosen)


@lru_cache
def font(size: int, has_cjk: bool = False) -> Font:
    """Returns the first installed font that has the letters; Pillow's own if there is none."""
    for name in (CJK_FONTS if has_cjk else ()) + ALPHABETIC_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:  # not installed
            continue
    return ImageFont.load_default(size)


def fitted(text: str, width: int, font: Font) -> str:
    """Returns the text, cut with an ellipsis if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
