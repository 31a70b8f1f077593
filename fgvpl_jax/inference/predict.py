"""Predictions for photo files and folders, as text, JSON lines and overlay pictures."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fgvpl_jax.data import UnreadableImage, decode_image, photos_at
from fgvpl_jax.displays.overlay import (
    boxes_layer,
    draw_overlay,
    evidence_layer,
    heat_layer,
    mask_layer,
    seen_square,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.evidence import ClassEvidence
from fgvpl_jax.inference.predictions import Prediction
from fgvpl_jax.inference.regions import Region, check_finds_objects, content_of_regions

# A file's name may have 255 bytes, and a character takes up to four.
LONGEST_STEM = 50
PREDICTED = "predicted"  # stands for each photo's most probable class


class PhotoResult(NamedTuple):
    """The result for one photo.

    Attributes:
        photo: File of the photo.
        result: The prediction, or the error if the photo cannot be read.
        overlay: File of the overlay picture, if one was drawn.
        evidence: Evidence for one class; None if it was not computed.
        regions: Regions of the photo; None if they were not computed.
        size: Width and height of the upright photo, if it was opened for evidence, regions or
            overlay.
    """

    photo: Path
    result: Prediction | UnreadableImage
    overlay: Path | None
    evidence: ClassEvidence | None = None
    regions: tuple[Region, ...] | None = None
    size: tuple[int, int] | None = None


def find_photos(arguments: Sequence[str]) -> list[Path]:
    """Returns the files named, and all images in the folders named.

    Raises:
        UserError: If nothing is named, or a path does not exist or holds no image.
    """
    if not arguments:
        raise UserError("no photo to predict: name at least one file or folder")
    return [photo for argument in arguments for photo in photos_at(argument)]


def predict_files(
    classifier: Classifier,
    photos: Sequence[Path],
    top_k: int,
    overlay_dir: str | None,
    evidence_for: str | None = None,
    *,
    with_regions: bool = False,
) -> Iterator[PhotoResult]:
    """Yields one result for each photo as soon as its batch is ready.

    Args:
        classifier: A trained run.
        photos: Files that `find_photos` returned.
        top_k: Number of classes to return.
        overlay_dir: Folder for one PNG picture for each photo; None draws no pictures.
        evidence_for: Class to compute the evidence for, `PREDICTED` for the most probable class of
            each photo; None computes none.
        with_regions: Whether to compute the regions of each photo; see `Classifier.regions`.
    Raises:
        UserError: If regions are wanted for a method that looks for no object, or there is no class
            `evidence_for`.
    """
    if evidence_for not in (None, PREDICTED, *classifier.class_names):
        raise UserError(
            f"evidence is {evidence_for!r}: give {PREDICTED!r}, or one of the classes "
            f"{', '.join(classifier.class_names)}"
        )
    if with_regions:
        check_finds_objects(classifier)
    folder = None if overlay_dir is None else expand_user(overlay_dir)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    results = classifier.predict_each(photos, top_k)
    for number, (photo, result) in enumerate(zip(photos, results, strict=True)):
        overlay = evidence = regions = size = None
        explained = evidence_for is not None or folder is not None or with_regions
        if explained and isinstance(result, Prediction):
            # Decoded again, because a batch of large photos might not fit into memory.
            image = decode_image(photo)
            size = image.size
            if evidence_for is not None:
                wanted = result.class_names[0] if evidence_for == PREDICTED else evidence_for
                evidence = classifier.evidence(image, wanted)
            if with_regions:
                regions = classifier.regions(image, top_k)
            if folder is not None:
                # Numbered, because photos from several folders may have the same name.
                overlay = folder / f"{number:04}_{photo.stem[:LONGEST_STEM]}.png"
                overlay_of(classifier, image, result, evidence, regions).save(overlay)
        yield PhotoResult(photo, result, overlay, evidence, regions, size)


def overlay_of(
    classifier: Classifier,
    image: Image.Image,
    prediction: Prediction,
    evidence: ClassEvidence | None = None,
    regions: Sequence[Region] | None = None,
) -> Image.Image:
    """Draws one prediction, with the similar training photos that still exist.

    A method that looks for no object has no panels of an attention map and a mask.
    """
    similar = []
    for found in prediction.similar:
        try:
            thumbnail = classifier.support.image(found.place)
        except UnreadableImage:
            thumbnail = None
        similar.append((thumbnail, found.class_name))
    classes = list(zip(prediction.class_names, prediction.probabilities, strict=True))
    panels, location = [], prediction.location
    if location is not None:
        caption = "object" if location.object_found else "no object stands out"
        panels = [
            ("attention", heat_layer(location.attention_map)),
            (caption, mask_layer(location.object_mask)),
        ]
    if evidence is not None:
        panels.append((f"evidence for {evidence.class_name}", evidence_layer(evidence.map)))
    if regions is not None:
        named = [(region.mask, region.label) for region in regions]
        panels.append(
            ("1 region" if len(named) == 1 else f"{len(named)} regions", boxes_layer(named))
        )
    square = seen_square(image, classifier.clip.image_processor.seen_box(*image.size))
    return draw_overlay(square, panels, classes, similar)


def as_text(prediction: Prediction, regions: Sequence[Region] | None = None) -> str:
    """Returns the prediction, and the regions if they were computed, as lines of text."""
    lines, belonging = [prediction.name], prediction.belonging
    if belonging is not None and belonging.none_of_these:
        lines.append("  none of these; the most probable would be")
    lines += [
        f"  {probability:6.1%}  {name}"
        for name, probability in zip(prediction.class_names, prediction.probabilities, strict=True)
    ]
    if belonging is not None:
        lines.append(f"  score {belonging.score:.2f}, threshold {belonging.threshold:.2f}")
    for number, region in enumerate(regions or (), start=1):
        left, top, width, height = (round(length) for length in region.box)
        place = f"{width} x {height} pixels at ({left}, {top})"
        best = f"{region.probabilities[0]:6.1%}  {region.class_names[0]}"
        unknown = "  none of these?" if region.none_of_these else ""
        lines.append(f"  region {number}, {place}:{best}{unknown}")
    return "\n".join(lines)


def as_json(result: PhotoResult) -> str:
    """Returns one JSON line, in ASCII whatever the encoding of the output."""
    prediction = result.result
    content: dict[str, Any] = {"image": str(result.photo)}
    if isinstance(prediction, UnreadableImage):
        return json.dumps(content | {"error": str(prediction)})
    content |= content_of(prediction)
    if result.evidence is not None:
        content["evidence"] = {
            "class": result.evidence.class_name,
            "map": result.evidence.map.astype(float).round(6).tolist(),
        }
    if result.regions is not None:
        content["regions"] = content_of_regions(result.regions)
    if result.overlay is not None:
        content["overlay"] = str(result.overlay)
    return json.dumps(content)


def content_of(prediction: Prediction) -> dict[str, Any]:
    """Returns a prediction as JSON content, without the photo's name, attention map and mask."""
    content: dict[str, Any] = {
        "classes": [
            {
                "name": name,
                "probability": round(prediction.probabilities[place], 6),
                "logit": round(prediction.logits[place], 6),
                "contributions": {
                    part: round(values[place], 6)
                    for part, values in prediction.contributions.items()
                },
            }
            for place, name in enumerate(prediction.class_names)
        ],
        "similar": [
            {"path": s.key, "class": s.class_name, "similarity": round(s.similarity, 6)}
            for s in prediction.similar
        ],
    }
    if prediction.belonging is not None:
        content |= prediction.belonging.content
    if prediction.location is not None:
        content["object_share"] = round(float(prediction.location.object_mask.mean()), 4)
        content["object_found"] = prediction.location.object_found
    return content
