r"""Measures where a CLIP's attention looks, on photos whose objects are known.

    python -m benchmarks.localisation CLIP PHOTOS ANNOTATIONS [--sheet=FILE.jpg] \
      [--kind=border_contrast] [--class_name=raccoon] [--off_centre]

PHOTOS is a folder of photos. ANNOTATIONS is a folder of Pascal VOC XML files (boxes) or of PNG
masks, each with the path of its photo but for the suffix, or a COCO JSON file. Everything
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8
from PIL import Image
from sklearn.metrics import roc_auc_score

from benchmarks.annotations import Annotations, off_centre_window, paint, truth_in_crop
from benchmarks.localisation_maps import (
    PROBE_FOLDS,
    THRESHOLDS,
    contrast_less_mean,
    maps_of,
    masks_above,
    probe,
)
from benchmarks.measuring import report
from fgvpl_jax import object_mask
from fgvpl_jax.clip import CLIP, ImageEncoder, load_clip
from fgvpl_jax.data.folder import image_files
from fgvpl_jax.data.images import decode_image
from fgvpl_jax.displays.contact_sheet import draw_contact_sheet, thumbnail
from fgvpl_jax.displays.overlay import PANEL, heat_layer, laid_over, with_outline
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation.mask_iou import centred_box, iou, mask_iou_of, to_pixels
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.reports.significance import interval_of_mean

BATCH = 32
TEMPLATE = "a photo of a {}."

Interval = tuple[float, float, float]  # mean, low end, high end


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


def read_examples(
    clip: CLIP, photos: Path, annotations: Path, off_centre: bool = False
) -> Examples:
    """Reads all photos of a folder, in name order.

    Args:
        clip: Model whose crop is used.
        photos: Folder of the photos.
        annotations: See `Annotations`.
        off_centre: Whether to take an `off_centre_window` of each photo instead of all of it.
    Raises:
        UserError: If there is no such folder, or no photo can be used.
    """
    if not photos.is_dir():
        raise UserError(f"there is no folder {photos}: give the folder that holds the photos")
    known = Annotations(annotations)
    rng = np.random.default_rng(0)
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
        painted, rescaled = paint(photo, file, annotation)
        if off_centre:
            window = off_centre_window(painted, rng)
            if window is None:
                left_out[name.as_posix()] = "objects cover 15% to 45% of no window"
                continue
            photo, painted = photo.crop(window), painted.crop(window)
        truth = truth_in_crop(clip, painted)
        if not truth.any():
            left_out[name.as_posix()] = "no object in the centred square"
            continue
        used.append(Example(name.as_posix(), clip.resize_and_crop(photo), truth, rescaled))
    if not used:
        raise UserError(f"no photo in {photos} can be measured: {left_out or 'it has no photo'}")
    return Examples(used, left_out)


def locate(
    encoder: ImageEncoder,
    examples: Sequence[Example],
    class_feature: Float[Array, "e"] | None = None,
) -> dict[str, Located]:
    """Returns the maps and masks of every kind; see `maps_of`."""
    graphdef, state = nnx.split(encoder)
    program = jax.jit(
        lambda state, images, feature: maps_of(nnx.merge(graphdef, state), images, feature)
    )
    crops = [example.crop for example in examples]
    batches = [
        program(state, np.stack(crops[i : i + BATCH]), class_feature)
        for i in range(0, len(crops), BATCH)
    ]
    seen = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    located = {kind: Located(seen.maps[kind], seen.masks[kind]) for kind in seen.maps}
    grid = encoder.vision.grid
    further = {"border_contrast_less_mean": contrast_less_mean(seen.middle_tokens, grid)}
    if len(examples) >= PROBE_FOLDS:
        covered = np.stack([covered_patches(example.truth, grid) for example in examples])
        further["probe"] = probe(seen.middle_tokens, covered)
    for kind, maps in further.items():
        located[kind] = Located(maps, np.asarray(object_mask(jnp.asarray(maps, jnp.float32), grid)))
    return located


def covered_patches(
    truth: Bool[np.ndarray, "H W"], grid: tuple[int, int]
) -> Float[np.ndarray, "n"]:
    """Returns the share of each patch that the true mask covers."""
    count = to_pixels(np.arange(grid[0] * grid[1]), grid, (truth.shape[0], truth.shape[1]))
    pixels = np.bincount(count.ravel(), minlength=grid[0] * grid[1])
    return np.bincount(count.ravel(), truth.ravel(), minlength=grid[0] * grid[1]) / pixels


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
    clip_path: str,
    photos: Path,
    annotations: Path,
    sheet: Path | None,
    kind: str,
    class_name: str | None = None,
    off_centre: bool = False,
) -> dict[str, Any]:
    """Measures every kind of map and returns the means with their intervals."""
    clip = load_clip(clip_path)
    grid = clip.vision.grid
    examples = read_examples(clip, photos, annotations, off_centre)
    class_feature = None
    if class_name is not None:
        class_feature = class_text_features(clip, [class_name], [TEMPLATE])[0]
    located = locate(clip.image_encoder, examples.used, class_feature)
    if kind not in located:
        raise UserError(f"kind is {kind!r}: choose one of {', '.join(located)}")
    truths = [example.truth for example in examples.used]
    if sheet is not None:
        draw_sheet(examples.used, located[kind], grid).save(sheet)
    result: dict[str, Any] = {
        "clip": clip.identity.sha256,
        "photos": len(examples.used),
        "photos_with_an_auc": sum(not truth.all() for truth in truths),
        "rescaled_annotations": sum(example.rescaled for example in examples.used),
        "left_out": examples.left_out,
        "kinds": {name: summarise(measure(one, truths, grid)) for name, one in located.items()},
        "thresholds": {},
    }
    maps = located[kind].maps
    for name in THRESHOLDS:
        one = Located(maps, masks_above(maps, name, grid))
        result["thresholds"][name] = summarise(measure(one, truths, grid))
    return result


def table(rows: dict[str, dict[str, Interval | None]], title: str) -> str:
    """Returns a Markdown table: means with their 95% intervals."""
    columns = tuple(next(iter(rows.values())))
    lines = [f"| {title} | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
    for kind, row in rows.items():
        lines.append(f"| {kind} | {' | '.join(_cell(row[name]) for name in columns)} |")
    return "\n".join(lines)


def _cell(interval: Interval | None) -> str:
    return "undefined" if interval is None else "{:.3f} [{:.3f}, {:.3f}]".format(*interval)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", help="a CLIP's folder or hub id")
    parser.add_argument("photos", type=Path)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--sheet", type=Path, help="file of the contact sheet")
    parser.add_argument("--kind", default="border_contrast", help="map of sheet and thresholds")
    parser.add_argument("--class_name", help="class of the photos, for two more maps")
    parser.add_argument(
        "--off_centre", action="store_true", help="measure windows with the object near an edge"
    )
    options = parser.parse_args()
    measured = main(
        options.clip,
        options.photos,
        options.annotations,
        options.sheet,
        options.kind,
        options.class_name,
        options.off_centre,
    )
    print(table(measured["kinds"], "map"))
    print()
    print(table(measured["thresholds"], f"threshold of {options.kind}"))
    report(measured)
