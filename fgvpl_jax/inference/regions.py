"""Several objects in a photo: a class and a box for each area that stands out, and COCO files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from fgvpl_jax.errors import UserError
from fgvpl_jax.version import __version__

if TYPE_CHECKING:
    from fgvpl_jax.inference.class_changes import ClassChanges
    from fgvpl_jax.inference.classifier import Classifier

Box = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Region:
    """A connected area of a photo's map above the threshold, and its class.

    Attributes:
        mask: True for its patches in the centred crop that the model saw; True for all patches
            where no object stands out.
        rectangles: Boxes of its patches, one for each run of patches in a row of the grid, in
            pixels of the photo as it is displayed, which EXIF may turn.
        class_names: The k most probable classes.
        probabilities: Probabilities of these classes; over all classes they sum to 1.
    """

    mask: Bool[np.ndarray, "gh gw"]
    rectangles: tuple[Box, ...]
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def box(self) -> Box:
        """The smallest box around it: left, top, width and height in pixels of the photo."""
        left, top = (min(r[axis] for r in self.rectangles) for axis in (0, 1))
        right, bottom = (max(r[axis] + r[axis + 2] for r in self.rectangles) for axis in (0, 1))
        return left, top, right - left, bottom - top

    @property
    def area(self) -> float:
        """Number of the photo's pixels that its patches cover."""
        return sum(width * height for _, _, width, height in self.rectangles)


def regions_of(
    classifier: "Classifier",
    crop: UInt8[np.ndarray, "H W 3"],
    size: tuple[int, int],
    top_k: int,
    changes: "ClassChanges | None" = None,
) -> tuple[Region, ...]:
    """Returns the regions of one photo; see `Classifier.regions`.

    Args:
        classifier: A trained run.
        crop: The crop that the model sees of the photo.
        size: Width and height of the photo.
        top_k: Number of classes to return.
        changes: The classes as a user changed them; None for the classifier's own.
    Raises:
        UserError: If the method looks for no object, or the backbone prepares photos in a way that
            boxes cannot be computed for.
    """
    if not classifier.finds_objects:
        raise UserError(
            f"{classifier.results.method} looks for no object, so it has no regions: use a method "
            "that looks for objects, such as fg_vpl"
        )
    changes = changes or classifier.changes
    vision = classifier.clip.vision
    left, top, right, bottom = classifier.clip.image_processor.seen_box(*size)
    side, patch_size = classifier.clip.image_size, vision.config.patch_size
    x, y = ((end - start) / side * patch_size for start, end in ((left, right), (top, bottom)))
    found = classifier.inference.recognise_regions(crop[None], changes.on_device)
    regions = []
    for mask, probabilities in zip(found.masks[0], found.probabilities[0], strict=True):
        if not mask.any():
            break
        grid_mask = np.asarray(mask).reshape(vision.grid)
        best = changes.most_probable(np.asarray(probabilities), top_k)
        regions.append(
            Region(
                grid_mask,
                tuple(
                    (left + start * x, top + row * y, (end - start) * x, y)
                    for row, start, end in runs(grid_mask)
                ),
                tuple(str(changes.names[label]) for label in best),
                tuple(float(probabilities[label]) for label in best),
            )
        )
    return tuple(regions)


def runs(mask: Bool[np.ndarray, "gh gw"]) -> list[tuple[int, int, int]]:
    """Returns row, first column and end of each run of True in the rows of a mask."""
    edges = np.diff(mask.astype(int), axis=1, prepend=0, append=0)
    starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
    return [
        (int(row), int(start), int(end))
        for (row, start), (_, end) in zip(starts, ends, strict=True)
    ]


def content_of_regions(regions: Sequence[Region]) -> list[dict[str, Any]]:
    """Returns regions as JSON content, without their masks."""
    return [
        {
            "box": rounded(region.box),
            "area": round(region.area, 2),
            "classes": [
                {"name": name, "probability": round(probability, 6)}
                for name, probability in zip(region.class_names, region.probabilities, strict=True)
            ],
        }
        for region in regions
    ]


def coco_content(
    photos: Iterable[tuple[Path, tuple[int, int], Sequence[Region]]], class_names: Sequence[str]
) -> dict[str, Any]:
    """Returns the regions of photos in the format of COCO's object detection.

    Numbers are counted from 1. Each region is an annotation of its most probable class, whose
    probability is its `score`.

    Args:
        photos: File, size (width, height) and regions of each photo.
        class_names: All classes that can be predicted, which become the categories.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = {name: number for number, name in enumerate(class_names, start=1)}
    for file, (width, height), regions in photos:
        number = len(images) + 1
        images.append({"id": number, "file_name": str(file), "width": width, "height": height})
        for region in regions:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": numbers[region.class_names[0]],
                    "bbox": rounded(region.box),
                    "area": round(region.area, 2),
                    "segmentation": [
                        rounded((x, y, x + w, y, x + w, y + h, x, y + h))
                        for x, y, w, h in region.rectangles
                    ],
                    "iscrowd": 0,
                    "score": round(region.probabilities[0], 6),
                }
            )
    return {
        "info": {"description": f"regions predicted by fgvpl_jax {__version__}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def rounded(pixels: Sequence[float]) -> list[float]:
    """Returns places in a photo, rounded to hundredths of a pixel."""
    return [round(float(place), 2) for place in pixels]
