"""Measures where a CLIP's attention looks, on photos whose objects are known.

    python -m benchmarks.localisation CLIP PHOTOS ANNOTATIONS [--sheet=FILE.jpg] [--kind=product]

PHOTOS is a folder of photos. ANNOTATIONS is a folder of Pascal VOC XML files (boxes) or of PNG
masks, each with the path of its photo but for the suffix, or a COCO JSON file (boxes). Everything
is measured in the centred square that the model sees, and the model is frozen and has no prompt.
Each kind of map becomes a mask by the package's own `object_mask`. A photo that cannot be used is
left out, counted and named.

- IoU of the mask with the true mask, compared with a mask of everything, and with a centred box and
  random patches (20 draws) that have the area of the mask.
- Share of the mask inside the true mask; a random mask has the share of the photo that is true.
- Peak inside: how often the centre of the patch with the largest value is in the true mask (the
  "pointing game").
- AUC of the map's values as a score for true pixels; 0.5 is chance. It is undefined for a photo
  whose objects fill the square.

Intervals are 95% percentile bootstraps over the photos.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.annotations import Annotations, truth_in_crop
from benchmarks.measuring import report
from fgvpl_jax import attention_map, object_mask
from fgvpl_jax.clip import CLIP, load_clip
from fgvpl_jax.data.folder import image_files
from fgvpl_jax.data.images import decode_image
from fgvpl_jax.displays.contact_sheet import draw_contact_sheet, thumbnail
from fgvpl_jax.displays.overlay import PANEL, heat_layer, laid_over, with_outline
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation.mask_iou import centred_box, iou, mask_iou_of, to_pixels
from fgvpl_jax.reports.significance import interval_of_mean

BATCH = 32
TOP_LAYERS = 3

Attentions = Sequence[Float[Array, "b h t t"]]
Interval = tuple[float, float, float]  # mean, low end, high end


def product(attentions: Attentions) -> Float[Array, "b n"]:
    """Returns Eq. 6 as printed: the class row of the product of all layers' attention."""
    return attention_map(attentions, num_prompts=0)


def residual(attentions: Attentions) -> Float[Array, "b n"]:
    """Returns the class row of the product of the layers' 0.5·A + 0.5·I."""
    tokens = jnp.arange(attentions[0].shape[-1])
    row = jnp.broadcast_to((tokens == 0).astype(jnp.float32), attentions[0][:, :, 0].shape)
    for weights in reversed(attentions):
        below = jnp.sum(row[..., None] * weights.astype(jnp.float32), axis=2)
        row = 0.5 * below + 0.5 * row
    return row[..., 1:].sum(axis=1)


def last(attentions: Attentions) -> Float[Array, "b n"]:
    """Returns the class row of the last of the layers."""
    return attentions[-1][:, :, 0, 1:].astype(jnp.float32).sum(axis=1)


def last_3_residual(attentions: Attentions) -> Float[Array, "b n"]:
    """Returns `residual` over the last three of the layers."""
    return residual(attentions[-TOP_LAYERS:])


KINDS: dict[str, Callable[[Attentions], Float[Array, "b n"]]] = {
    "product": product,
    "residual": residual,
    "last": last,
    "last_3_residual": last_3_residual,
}


class Located(NamedTuple):
    """Maps and object masks of photos, of one kind.

    Attributes:
        maps: Significance of each patch, row-major.
        masks: True for the patches of the object.
    """

    maps: Float[np.ndarray, "N n"]
    masks: Bool[np.ndarray, "N n"]


class Example(NamedTuple):
    """One photo that is measured.

    Attributes:
        name: Path relative to the folder of photos.
        crop: The square that the model sees.
        truth: True for the pixels of the objects in that square.
        rescaled: Whether the annotation was drawn on a photo of another size.
    """

    name: str
    crop: UInt8[np.ndarray, "H W 3"]
    truth: Bool[np.ndarray, "H W"]
    rescaled: bool


class Examples(NamedTuple):
    """Photos of a folder with their true masks.

    Attributes:
        used: Photos that are measured.
        left_out: Reason by name of each other photo.
    """

    used: list[Example]
    left_out: dict[str, str]


def read_examples(clip: CLIP, photos: Path, annotations: Path) -> Examples:
    """Reads all photos of a folder, in name order.

    Raises:
        UserError: If there is no such folder, or no photo can be used.
    """
    if not photos.is_dir():
        raise UserError(f"there is no folder {photos}: give the folder that holds the photos")
    known = Annotations(annotations)
    used: list[Example] = []
    left_out: dict[str, str] = {}
    for file in sorted(image_files(photos)):
        name = file.relative_to(photos)
        try:
            annotation = known.of(name)
            photo = decode_image(file, name.as_posix())
        except UserError as error:
            left_out[name.as_posix()] = str(error)
            continue
        truth = truth_in_crop(clip, photo, file, annotation)
        if not truth.crop.any():
            left_out[name.as_posix()] = "no object in the centred square"
            continue
        crop = clip.resize_and_crop(photo)
        used.append(Example(name.as_posix(), crop, truth.crop, truth.rescaled))
    if not used:
        raise UserError(f"no photo in {photos} can be measured: {left_out or 'it has no photo'}")
    return Examples(used, left_out)


def locate(clip: CLIP, crops: Sequence[UInt8[np.ndarray, "H W 3"]]) -> dict[str, Located]:
    """Returns the maps and masks of every kind."""
    program = partial(_locate, *nnx.split(clip.image_encoder))
    batches = [program(np.stack(crops[i : i + BATCH])) for i in range(0, len(crops), BATCH)]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    return {kind: Located(*pair) for kind, pair in joined.items()}


@partial(jax.jit, static_argnums=0)
def _locate(
    graphdef: nnx.GraphDef, state: nnx.State, images: UInt8[Array, "b H W 3"]
) -> dict[str, tuple[Array, Array]]:
    encoder = nnx.merge(graphdef, state)
    tokens = encoder.vision.embed(encoder.normalize_pixels(images))
    attentions = []
    for layer in list(encoder.vision.layers)[:-1]:
        tokens, weights = layer(tokens)
        attentions.append(weights)
    maps = {kind: map_of(attentions) for kind, map_of in KINDS.items()}
    return {kind: (one, object_mask(one, encoder.vision.grid)) for kind, one in maps.items()}


def measure(
    located: Located, truths: Sequence[Bool[np.ndarray, "H W"]], grid: tuple[int, int]
) -> dict[str, Float[np.ndarray, "N"]]:
    """Returns every measure of each photo; AUC is nan where the objects fill the square."""
    rng = np.random.default_rng(0)
    rows = [
        _measure_one(values, mask, truth, grid, rng)
        for values, mask, truth in zip(*located, truths, strict=True)
    ]
    return {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}


def _measure_one(
    values: Float[np.ndarray, "n"],
    mask: Bool[np.ndarray, "n"],
    truth: Bool[np.ndarray, "H W"],
    grid: tuple[int, int],
    rng: np.random.Generator,
) -> dict[str, float]:
    side = (truth.shape[0], truth.shape[1])
    pixels = to_pixels(mask, grid, side)
    overlap = mask_iou_of(mask, truth, grid, rng)
    box = centred_box(mask.mean(), side)
    row, column = np.divmod(int(values.argmax()), grid[1])
    peak = ((2 * row + 1) * side[0] // (2 * grid[0]), (2 * column + 1) * side[1] // (2 * grid[1]))
    auc = (
        np.nan
        if truth.all()
        else roc_auc_score(truth.ravel(), to_pixels(values, grid, side).ravel())
    )
    return {
        "iou": overlap.object_mask,
        "everything_iou": overlap.everything,
        "box_iou": overlap.centred_box,
        "random_iou": overlap.random,
        "inside": float(truth[pixels].mean()),
        "box_inside": float(truth[box].mean()) if box.any() else float(truth.mean()),
        "peak": float(truth[peak]),
        "auc": float(auc),
        "area": float(pixels.mean()),
    }


def summarise(measures: dict[str, Float[np.ndarray, "N"]]) -> dict[str, Interval | None]:
    """Returns the interval of each measure over the photos for which it is defined.

    The interval of a measure that is undefined for every photo is None.
    """
    summary: dict[str, Interval | None] = {}
    for name, values in measures.items():
        defined = values[~np.isnan(values)]
        summary[name] = (
            (float(defined.mean()), *interval_of_mean(defined)) if len(defined) else None
        )
    return summary


def draw_sheet(examples: Sequence[Example], located: Located, grid: tuple[int, int]) -> Image.Image:
    """Draws three squares of each photo: the true mask, the map and the object mask."""
    cells = []
    for example, values, mask in zip(examples, *located, strict=True):
        square = Image.fromarray(example.crop).resize((PANEL, PANEL), Image.Resampling.BICUBIC)
        panels = (
            with_outline(square, example.truth),
            laid_over(square, heat_layer(values.reshape(grid))),
            with_outline(square, mask.reshape(grid)),
        )
        score = iou(to_pixels(mask, grid, example.truth.shape[:2]), example.truth)
        cells.append((f"{score:.2f}  {example.name}", [thumbnail(panel) for panel in panels]))
    return draw_contact_sheet(cells)


def main(
    clip_path: str, photos: Path, annotations: Path, sheet: Path | None, kind: str
) -> dict[str, Any]:
    """Measures every kind of map and returns the means with their intervals."""
    clip = load_clip(clip_path)
    grid = clip.vision.grid
    examples = read_examples(clip, photos, annotations)
    located = locate(clip, [example.crop for example in examples.used])
    truths = [example.truth for example in examples.used]
    if sheet is not None:
        draw_sheet(examples.used, located[kind], grid).save(sheet)
    result: dict[str, Any] = {
        "clip": clip.identity.sha256,
        "photos": len(examples.used),
        "photos_with_an_auc": sum(not truth.all() for truth in truths),
        "rescaled_annotations": sum(example.rescaled for example in examples.used),
        "left_out": examples.left_out,
    }
    for name, one in located.items():
        result[name] = summarise(measure(one, truths, grid))
    return result


def table(result: dict[str, Any]) -> str:
    """Returns a Markdown table of the kinds of map: means with their 95% intervals."""
    columns = tuple(result[next(iter(KINDS))])
    lines = [f"| map | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for kind in KINDS:
        cells = (_cell(result[kind][name]) for name in columns)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(interval: Interval | None) -> str:
    return "undefined" if interval is None else "{:.3f} [{:.3f}, {:.3f}]".format(*interval)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", help="a CLIP's folder or hub id")
    parser.add_argument("photos", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--sheet", type=Path, help="file of the contact sheet")
    parser.add_argument("--kind", choices=KINDS, default="product", help="the sheet's map")
    options = parser.parse_args()
    measured = main(options.clip, options.photos, options.annotations, options.sheet, options.kind)
    print(table(measured))
    report(measured)
