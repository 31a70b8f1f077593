"""Drawn scenes with known object masks: the built-in benchmark, which needs no download.

Each scene shows one coloured shape at a uniformly random place, on a background of soft colour with
clutter of all colours. A class is a pair of colour and shape, such as "yellow square". The tiny
CLIP of the demonstration was trained on other pairs, and its training texts did not contain two of
the benchmark's words for colours.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from fgvpl_jax.data.splits import Dataset, Split

SIDE = 64  # pixels
SUPERSAMPLING = 2  # scenes are drawn larger and then shrunk, for smooth edges
OBJECT_RADIUS = (0.16, 0.26)  # fraction of the side
CLUTTER_RADIUS = (0.02, 0.06)
CLUTTER_COUNT = (14, 26)
COLOUR_NOISE = 26  # largest change of each channel of a colour
PIXEL_NOISE = 8.0

COLOURS = {
    "red": (214, 45, 45),
    "orange": (235, 135, 35),
    "yellow": (235, 215, 60),
    "green": (55, 160, 70),
    "cyan": (70, 200, 210),
    "blue": (50, 90, 215),
    "purple": (135, 65, 190),
    "pink": (240, 130, 180),
    "brown": (125, 80, 45),
    "white": (240, 240, 240),
}
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "cross",
    "ring",
    "crescent",
    "arrow",
    "diamond",
    "hexagon",
)
# Neither colour nor shape alone distinguishes these classes.
BENCHMARK_PAIRS = (
    ("red", "circle"),
    ("red", "hexagon"),
    ("yellow", "square"),
    ("yellow", "diamond"),
    ("green", "star"),
    ("green", "cross"),
    ("blue", "ring"),
    ("blue", "crescent"),
    ("purple", "triangle"),
    ("purple", "arrow"),
)
# The benchmark's words for two colours are not in the tiny CLIP's training texts: it recognises the
# colour but does not know the name, just as CLIP does not know the class names of many benchmarks.
UNREAD_WORDS = {"red": "crimson", "green": "emerald"}
SPLIT_SIZES = {"train": 40, "validation": 10, "test": 60}  # images per class


@dataclass(frozen=True)
class Scene:
    """A drawn image and the mask of its object.

    Attributes:
        image: RGB image of SIDE × SIDE pixels.
        mask: Object mask, True on the object's pixels.
    """

    image: Image.Image
    mask: Bool[np.ndarray, "H W"]


def pretraining_pairs() -> list[tuple[str, str]]:
    """Returns the pairs outside the benchmark, on which the tiny CLIP was trained."""
    return [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in BENCHMARK_PAIRS]


def draw_scene(colour: str, shape: str, rng: np.random.Generator) -> Scene:
    """Draws one scene of a class."""
    side = SIDE * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), _vary(rng, rng.integers(40, 216, 3)))
    pen = ImageDraw.Draw(canvas)
    palette = list(COLOURS.values())
    for _ in range(rng.integers(*CLUTTER_COUNT)):
        outline = shape_outline(
            SHAPES[rng.integers(len(SHAPES))],
            rng.uniform(0, side, 2),
            side * rng.uniform(*CLUTTER_RADIUS),
            rng.uniform(0, 2 * np.pi),
        )
        pen.polygon(outline, fill=_vary(rng, np.array(palette[rng.integers(len(palette))])))
    radius = side * rng.uniform(*OBJECT_RADIUS)
    centre = rng.uniform(radius, side - radius, 2)
    outline = shape_outline(shape, centre, radius, rng.uniform(0, 2 * np.pi))
    pen.polygon(outline, fill=_vary(rng, np.array(COLOURS[colour])))
    stencil = Image.new("L", (side, side))
    ImageDraw.Draw(stencil).polygon(outline, fill=255)
    pixels = np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)
    pixels = np.clip(pixels + rng.normal(scale=PIXEL_NOISE, size=pixels.shape), 0, 255)
    mask = np.asarray(stencil.resize((SIDE, SIDE), Image.Resampling.BOX)) > 127
    return Scene(Image.fromarray(pixels.astype(np.uint8)), mask)


def shape_outline(
    shape: str, centre: np.ndarray, radius: float, angle: float
) -> list[tuple[float, float]]:
    """Returns a polygon of the shape, turned by `angle`, with tips about `radius` from `centre`."""
    points = _corners()[shape] * (radius * np.exp(1j * angle)) + complex(*centre)
    return list(zip(points.real.tolist(), points.imag.tolist(), strict=True))


@cache  # without arguments, so it holds one value
def _corners() -> dict[str, np.ndarray]:
    """Returns the corners of each shape in the unit circle, as complex numbers."""
    turn = np.exp(2j * np.pi * np.arange(40) / 40)
    tips = np.exp(2j * np.pi * np.arange(10) / 10)
    bay = 0.45 - 0.68 * np.exp(1j * np.pi * np.linspace(-0.72, 0.72, 30)[::-1])
    arm = 0.3
    quarter = np.array([arm + arm * 1j, arm + 1j, -arm + 1j])
    return {
        "circle": turn,
        "square": np.exp(2j * np.pi * (np.arange(4) + 0.5) / 4),
        "triangle": np.exp(2j * np.pi * np.arange(3) / 3),
        "star": tips * np.where(np.arange(10) % 2, 0.42, 1.0),
        "cross": np.concatenate([quarter * 1j**k for k in range(4)]) / abs(1 + arm * 1j),
        "ring": np.concatenate([turn, [1.0], 0.55 * turn[::-1], [0.55]]),
        "crescent": np.concatenate([turn[4:37], bay]),
        "arrow": np.array([1, 0.9j, 0.35j, -1 + 0.35j, -1 - 0.35j, -0.35j, -0.9j]),
        "diamond": np.array([1, 0.55j, -1, -0.55j]),
        "hexagon": np.exp(2j * np.pi * np.arange(6) / 6),
    }


def _vary(rng: np.random.Generator, colour: np.ndarray) -> tuple[int, ...]:
    varied = colour + rng.integers(-COLOUR_NOISE, COLOUR_NOISE + 1, 3)
    return tuple(int(v) for v in np.clip(varied, 0, 255))


@dataclass(frozen=True, eq=False)
class ShapesSplit(Split):
    """Scenes drawn on access; the key determines the scene."""

    def scene(self, index: int) -> Scene:
        """Draws scene `index`."""
        split, _, number = self.keys[index].split("/")
        label = int(self.labels[index])
        entropy = (list(SPLIT_SIZES).index(split), label, int(number))
        return draw_scene(*BENCHMARK_PAIRS[label], np.random.default_rng(entropy))

    def image(self, index: int) -> Image.Image:
        """Draws the image of scene `index`."""
        return self.scene(index).image


def load_shapes() -> Dataset:
    """Returns the benchmark: 10 classes, 400 / 100 / 600 scenes."""
    names = [f"{UNREAD_WORDS.get(colour, colour)} {shape}" for colour, shape in BENCHMARK_PAIRS]
    train, validation, test = (
        ShapesSplit(
            Path(),
            tuple(f"{split}/{name}/{i:03}" for name in names for i in range(size)),
            np.repeat(np.arange(len(names), dtype=np.int32), size),
        )
        for split, size in SPLIT_SIZES.items()
    )
    return Dataset(tuple(names), train, validation, test, "drawn, see data/shapes.py")
