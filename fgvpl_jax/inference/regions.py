"""Several objects in a photo: a class and a box for each area that stands out, and COCO files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy.ndimage import label

from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.predictions import Belonging, ObjectLocation
from fgvpl_jax.version import __version__
from fgvpl_jax.visual_prompt import otsu_threshold

if TYPE_CHECKING:
    from fgvpl_jax.inference.class_changes import ClassChanges
    from fgvpl_jax.inference.classifier import Classifier

MOST_REGIONS = 8
# Side of the square that is recognised, in lengths of the box's longer side; see docs/ablations.md.
CONTEXT = 2.0
_thresholds = jax.jit(otsu_threshold)  # eagerly, each of its 44 operations is compiled

Box = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Region:
    """A connected area of a photo's map above the threshold, and its classes.

    Attributes:
        mask: True for its patches in the centred crop that the model saw; True for all patches
            where no object stands out.
        rectangles: Boxes of its patches, one for each stretch of patches in a row of the grid, in
            pixels of the photo as it is displayed, which EXIF may turn.
        class_names: The k most probable classes of the square around it.
        probabilities: Calibrated probabilities of these classes; over all classes they sum to 1.
        belonging: How well the square fits the classes together; see `Prediction.belonging`.
    """

    mask: Bool[np.ndarray, "gh gw"]
    rectangles: tuple[Box, ...]
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    belonging: Belonging | None = None

    @property
    def label(self) -> str:
        """The most probable class, or "none of these?" if it probably belongs to no class."""
        return "none of these?" if self.none_of_these else self.class_names[0]

    @property
    def none_of_these(self) -> bool:
        """Whether its square has a score of belonging that is below the threshold."""
        return self.belonging is not None and self.belonging.none_of_these

    @property
    def box(self) -> Box:
        """The smallest box around it: left, top, width and height in pixels of the photo."""
        return box_around(self.rectangles)

    @property
    def area(self) -> float:
        """Number of the photo's pixels that its patches cover."""
        return sum(width * height for _, _, width, height in self.rectangles)


def regions_of(
    classifier: "Classifier",
    photo: Image.Image,
    top_k: int,
    changes: "ClassChanges | None" = None,
) -> tuple[Region, ...]:
    """Returns the regions of one photo; see `Classifier.regions`.

    Args:
        classifier: A trained run.
        photo: The upright RGB photo.
        top_k: Number of classes to return.
        changes: The classes as a user changed them; None for the classifier's own.
    Raises:
        UserError: If the method looks for no object, the backbone prepares photos in a way that
            boxes cannot be computed for, or top_k is below 1.
    """
    check_finds_objects(classifier)
    clip = classifier.clip
    seen = clip.image_processor.seen_box(*photo.size)
    if seen is None:
        raise UserError(
            "this checkpoint prepares photos in a way of its own, so no box can be given in "
            "pixels of the photo: use another checkpoint"
        )
    left, top, right, bottom = seen
    patch_size = clip.vision.config.patch_size
    x, y = (n / clip.image_size * patch_size for n in (right - left, bottom - top))
    whole = classifier.predict_crops([("", clip.resize_and_crop(photo))], top_k, changes)
    assert whole[0].location is not None
    masks = areas(whole[0].location, classifier.connectivity)
    places = [
        tuple(
            (left + start * x, top + row * y, (end - start) * x, y)
            for row, start, end in row_stretches(mask)
        )
        for mask in masks
    ]
    predictions = whole
    if len(masks) > 1:
        squares = [photo.crop(square_around(box_around(place), photo.size)) for place in places]
        crops = [("", clip.resize_and_crop(square)) for square in squares]
        predictions = classifier.predict_crops(crops, top_k, changes)
    return tuple(
        Region(mask, place, one.class_names, one.probabilities, one.belonging)
        for mask, place, one in zip(masks, places, predictions, strict=True)
    )


def check_finds_objects(classifier: "Classifier") -> None:
    """Checks that a run's predictions have attention maps.

    Raises:
        UserError: If they have not.
    """
    if not classifier.finds_objects:
        raise UserError(
            f"{classifier.results.trained_method} looks for no object, so it has no regions: train "
            "a run with a method that looks for objects, such as gda_pool or fg_vpl"
        )


def areas(location: ObjectLocation, connectivity: int) -> list[Bool[np.ndarray, "gh gw"]]:
    """Returns the connected areas of patches above Otsu's threshold, largest first, at most 8.

    The first is the object mask. It is the only one where it keeps every patch, because no object
    stands out. Of equal areas, the one met first in row-major order comes first.

    Args:
        location: Map and object mask.
        connectivity: 2 joins patches that share an edge or a corner, 1 only those that share an
            edge; as for the object mask.
    """
    mask, values = location.object_mask, location.attention_map
    if not location.object_found:
        return [mask]
    others = (values > threshold_of(values)) & ~mask
    labels, count = label(others, structure=np.ones((3, 3)) if connectivity == 2 else None)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    largest = np.argsort(-sizes, kind="stable")[: MOST_REGIONS - 1]
    return [mask, *(labels == 1 + place for place in largest)]


def threshold_of(attention_map: Float[np.ndarray, "gh gw"]) -> float:
    """Returns Otsu's threshold of a map, computed like that of the object mask."""
    return float(_thresholds(jnp.asarray(attention_map.reshape(1, -1)))[0])


def square_around(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns a square around a box as left, top, right and bottom, within the photo.

    Its side is a pixel or more, because the box may be a fraction of a pixel.

    Args:
        box: The box.
        size: Width and height of the photo.
    """
    side = max(1, min(round(CONTEXT * max(box[2:])), *size))
    left, top = (
        min(max(round(start + length / 2 - side / 2), 0), end - side)
        for start, length, end in zip(box[:2], box[2:], size, strict=True)
    )
    return left, top, left + side, top + side


def box_around(rectangles: Sequence[Box]) -> Box:
    """Returns the smallest box around rectangles."""
    left, top = (min(r[axis] for r in rectangles) for axis in (0, 1))
    right, bottom = (max(r[axis] + r[axis + 2] for r in rectangles) for axis in (0, 1))
    return left, top, right - left, bottom - top


def row_stretches(mask: Bool[np.ndarray, "gh gw"]) -> list[tuple[int, int, int]]:
    """Returns row, first column and end of each stretch of True in the rows of a mask."""
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
            **(region.belonging.content if region.belonging else {}),
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
                    **({"none_of_these": region.none_of_these} if region.belonging else {}),
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
