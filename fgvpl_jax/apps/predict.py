"""`--mode=predict`: photos or folders in; text, JSON lines and overlay pictures out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fgvpl_jax.apps.classifier import Classifier, Prediction
from fgvpl_jax.data import Split, UnreadableImage, decode_image, image_files
from fgvpl_jax.errors import UserError
from fgvpl_jax.reporting.overlay import draw_overlay


def find_photos(arguments: Sequence[str]) -> list[Path]:
    """The files named, and all images in the folders named.

    Raises:
        UserError: If nothing is named, or something named is not there or holds no image.
    """
    if not arguments:
        raise UserError("no photo: name files or folders after the flags")
    photos = []
    for argument in arguments:
        path = Path(argument).expanduser()
        if not path.exists():
            raise UserError(f"there is no file or folder {argument}")
        found = image_files(path) if path.is_dir() else [path]
        if not found:
            raise UserError(f"the folder {argument} holds no image")
        photos += found
    return photos


def predict_files(
    classifier: Classifier, photos: Sequence[Path], top_k: int, overlay_dir: str | None
) -> Iterator[Prediction | UnreadableImage]:
    """One prediction a photo, as it is ready; an unreadable photo yields its error.

    Args:
        classifier: A trained run.
        photos: From `find_photos`.
        top_k: Classes to name.
        overlay_dir: Where to write one PNG a photo; None for none.
    """
    if overlay_dir is not None:
        Path(overlay_dir).mkdir(parents=True, exist_ok=True)
    for number, photo in enumerate(photos):
        try:
            image = decode_image(photo)
        except UnreadableImage as error:
            yield error
            continue
        (prediction,) = classifier.predict(image, top_k)
        prediction = Prediction(**{**vars(prediction), "name": str(photo)})
        if overlay_dir is not None:
            # Numbered: photos of several folders may bear one name.
            file = Path(overlay_dir) / f"{number:04}_{photo.stem}.png"
            overlay_of(image, prediction, classifier.support).save(file)
        yield prediction


def overlay_of(image: Image.Image, prediction: Prediction, support: Split) -> Image.Image:
    """The picture of one prediction, with the similar training photos that are still there."""
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


def as_json(prediction: Prediction) -> str:
    """One JSON line for a program."""
    content: dict[str, Any] = {
        "image": prediction.name,
        "classes": [
            {"name": name, "probability": round(probability, 6)}
            for name, probability in zip(
                prediction.class_names, prediction.probabilities, strict=True
            )
        ],
        "similar": [
            {"path": s.key, "class": s.class_name, "similarity": round(s.similarity, 6)}
            for s in prediction.similar
        ],
        "object_share": round(float(prediction.object_mask.mean()), 4),
    }
    return json.dumps(content, ensure_ascii=False)
