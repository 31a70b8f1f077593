"""`--mode=predict`: photos or folders in; text, JSON lines and overlay pictures out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from fgvpl_jax.data import Split, UnreadableImage, decode_image, photos_at
from fgvpl_jax.displays.overlay import draw_overlay
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.classifier import Classifier, Prediction

# A file's name may have 255 bytes, a character four of them.
LONGEST_STEM = 50


class Answer(NamedTuple):
    """What came of one photo.

    Attributes:
        photo: Its file.
        result: The prediction, or why it cannot be read.
        overlay: The picture of it, if one was drawn.
    """

    photo: Path
    result: Prediction | UnreadableImage
    overlay: Path | None


def find_photos(arguments: Sequence[str]) -> list[Path]:
    """The files named, and all images in the folders named.

    Raises:
        UserError: If nothing is named, or something named is not there or holds no image.
    """
    if not arguments:
        raise UserError("no photo: name files or folders after the flags")
    return [photo for argument in arguments for photo in photos_at(argument)]


def predict_files(
    classifier: Classifier, photos: Sequence[Path], top_k: int, overlay_dir: str | None
) -> Iterator[Answer]:
    """One answer a photo, as batches are ready.

    Args:
        classifier: A trained run.
        photos: From `find_photos`.
        top_k: Classes to name.
        overlay_dir: Where to write one PNG a photo; None for none.
    Raises:
        UserError: If pictures are wanted of a method that looks for no object.
    """
    if overlay_dir is not None and not classifier.finds_objects:
        raise UserError(
            f"--overlay_dir={overlay_dir}: {classifier.results.method} looks for no object that "
            "could be drawn: leave the flag out"
        )
    folder = None if overlay_dir is None else Path(overlay_dir).expanduser()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    results = classifier.predict_each(photos, top_k)
    for number, (photo, result) in enumerate(zip(photos, results, strict=True)):
        overlay = None
        if folder is not None and isinstance(result, Prediction):
            # Numbered: photos of several folders may bear one name.
            overlay = folder / f"{number:04}_{photo.stem[:LONGEST_STEM]}.png"
            # Decoded once more, for a batch of large photos would not fit into memory.
            overlay_of(decode_image(photo), result, classifier.support).save(overlay)
        yield Answer(photo, result, overlay)


def overlay_of(image: Image.Image, prediction: Prediction, support: Split) -> Image.Image:
    """The picture of one prediction, with the similar training photos that are still there."""
    assert prediction.attention_map is not None
    assert prediction.object_mask is not None
    similar = []
    for found in prediction.similar:
        try:
            thumbnail = support.image(found.place)
        except UnreadableImage:
            thumbnail = None
        similar.append((thumbnail, found.class_name))
    classes = list(zip(prediction.class_names, prediction.probabilities, strict=True))
    return draw_overlay(image, prediction.attention_map, prediction.object_mask, classes, similar)


def as_text(prediction: Prediction) -> str:
    """Lines for a person."""
    lines = [prediction.name]
    lines += [
        f"  {probability:6.1%}  {name}"
        for name, probability in zip(prediction.class_names, prediction.probabilities, strict=True)
    ]
    return "\n".join(lines)


def as_json(answer: Answer) -> str:
    """One JSON line for a program; ASCII, whatever the encoding of the output."""
    result = answer.result
    content: dict[str, Any] = {"image": str(answer.photo)}
    if isinstance(result, UnreadableImage):
        return json.dumps(content | {"error": str(result)})
    content |= content_of(result)
    if answer.overlay is not None:
        content["overlay"] = str(answer.overlay)
    return json.dumps(content)


def content_of(prediction: Prediction) -> dict[str, Any]:
    """A prediction for a program, but for the photo's name, the attention map and the mask."""
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
    if prediction.object_mask is not None:
        content["object_share"] = round(float(prediction.object_mask.mean()), 4)
    return content
