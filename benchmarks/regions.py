"""Measures whether the regions of a trained run find and name several objects in one picture.

    python -m benchmarks.regions WORKDIR [--scenes=200]

WORKDIR is a run on the drawn scenes, such as that of `make demo`. Each picture has two or three
objects of different classes, which are at least four pixels apart: drawn scenes with their own
random numbers, of which all objects are pasted into the first. An object is found if the box of a
region has an IoU above 0.3 with its own box; the region with the highest IoU is its region. The
classes of these regions are compared with those of their objects:

- square: what `Classifier.regions` returns, the prediction of the square around the region;
- mask, object: the object's contributions when the region is the object mask of the whole picture;
- mask, all: all contributions with that mask;
- picture: the prediction of the whole picture.

Intervals are 95% percentile bootstraps over the pictures.
"""

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import numpy as np
from jaxtyping import Array, Bool
from PIL import Image
from scipy.ndimage import binary_dilation

from benchmarks.measuring import report
from fgvpl_jax import load_classifier
from fgvpl_jax.data.shapes import BENCHMARK_PAIRS, draw_scene
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.programs import Weights
from fgvpl_jax.inference.regions import MOST_REGIONS, Box, Region
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.recognition import total
from fgvpl_jax.reports.significance import interval_of_mean

FOUND_IOU = 0.3
GAP = 4  # pixels


class Picture(NamedTuple):
    """A picture of several objects, with the class and the box of each."""

    image: Image.Image
    labels: tuple[int, ...]
    boxes: tuple[Box, ...]


def draw_picture(labels: Sequence[int], rng: np.random.Generator) -> Picture:
    """Draws scenes of the classes until their objects are apart, then pastes them into one."""
    while True:
        scenes = [draw_scene(*BENCHMARK_PAIRS[label], rng) for label in labels]
        wide = [binary_dilation(scene.mask, iterations=GAP) for scene in scenes]
        shared = np.sum([scene.mask for scene in scenes], axis=0) + np.sum(wide, axis=0)
        if shared.max() <= 2:
            break
    picture = scenes[0].image
    for scene in scenes[1:]:
        picture = Image.composite(scene.image, picture, Image.fromarray(scene.mask))
    return Picture(picture, tuple(labels), tuple(box_of_mask(scene.mask) for scene in scenes))


def box_of_mask(mask: Bool[np.ndarray, "H W"]) -> Box:
    """Returns left, top, width and height of the smallest box around a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return float(left), float(top), float(right - left), float(bottom - top)


def box_iou(one: Box, other: Box) -> float:
    """Returns the intersection of two boxes over their union."""
    shared = 1.0
    for axis in (0, 1):
        end = min(one[axis] + one[axis + 2], other[axis] + other[axis + 2])
        shared *= max(0.0, end - max(one[axis], other[axis]))
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


class MaskedBranch:
    """FG-VPL with given object masks, in place of those that it finds."""

    def __init__(self, classifier: Classifier):
        self._classifier = classifier

        def contributions(weights: Weights, images: Array, masks: Array) -> dict[str, Array]:
            model = classifier.model
            assert isinstance(model, FGVPL)
            assert weights.cache is not None
            with patch("fgvpl_jax.visual_prompt.encoder.object_mask", lambda *_: masks):
                return model.contributions(model.features(images), weights.cache, **weights.choices)

        self._program = jax.jit(contributions)

    def __call__(self, picture: Image.Image, regions: Sequence[Region]) -> dict[str, Array]:
        """Returns the contributions with each region as the object mask, padded to 8."""
        crop = self._classifier.crop(picture, "picture")
        masks = np.stack([region.mask.ravel() for region in regions])
        masks = np.pad(masks, ((0, MOST_REGIONS - len(masks)), (0, 0)), mode="edge")
        crops = np.stack([crop] * MOST_REGIONS)
        return self._program(self._classifier.inference.weights, crops, masks)


def judge(classifier: Classifier, branch: MaskedBranch, picture: Picture) -> dict[str, float]:
    """Returns the share of the objects that are found, and of these that have the right class."""
    regions = classifier.regions(picture.image, top_k=1)
    parts = branch(picture.image, regions)
    of_object = {part: values for part, values in parts.items() if part.startswith("object_")}
    names, count = classifier.trained_names, len(regions)
    (prediction,) = classifier.predict(picture.image, top_k=1)
    named = {
        "square": [region.class_names[0] for region in regions],
        "mask, object": [names[label] for label in np.argmax(total(of_object), axis=1)],
        "mask, all": [names[label] for label in np.argmax(total(parts), axis=1)],
        "picture": [prediction.class_names[0]] * count,
    }
    right: dict[str, list[bool]] = {way: [] for way in named}
    for label, box in zip(picture.labels, picture.boxes, strict=True):
        overlaps = [box_iou(region.box, box) for region in regions]
        place = int(np.argmax(overlaps))
        if overlaps[place] > FOUND_IOU:
            for way, classes in named.items():
                right[way].append(classes[place] == names[label])
    found = len(right["square"])
    shares = {way: float(np.mean(values)) if found else np.nan for way, values in right.items()}
    return {"regions": count, "objects found": found / len(picture.labels), **shares}


def main(workdir: str, num_scenes: int) -> dict[str, Any]:
    """Returns means over the pictures with their intervals, for two and for three objects."""
    classifier, rng = load_classifier(workdir), np.random.default_rng(20)
    branch = MaskedBranch(classifier)
    result: dict[str, Any] = {"pictures": num_scenes}
    for count in (2, 3):
        rows = []
        for _ in range(num_scenes):
            labels = rng.choice(len(BENCHMARK_PAIRS), count, replace=False)
            rows.append(judge(classifier, branch, draw_picture(labels.tolist(), rng)))
        for name in rows[0]:
            values = np.array([row[name] for row in rows], np.float64)
            values = values[~np.isnan(values)]
            mean = (float(values.mean()), *interval_of_mean(values)) if len(values) else None
            result[f"{count} objects: {name}"] = mean
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--scenes", type=int, default=200, help="number of pictures of each kind")
    options = parser.parse_args()
    report(main(options.workdir, options.scenes))
