"""The few-shot protocol: draws images by the run's seed alone."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fgvpl_jax.data.splits import Dataset, Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

# Validation images per class for choosing λ: min(shots, 4).
MOST_VALIDATION_SHOTS = 4


@dataclass(frozen=True)
class FewShot:
    """Images drawn for a run.

    Attributes:
        shots: Requested number of images per class; None for all images.
        seed: Seed of the draw.
        class_names: Class names in label order.
        support: Training images, class by class.
        validation: Validation images, min(shots, 4) per class; None if the data leave no image
            for validation.
    """

    shots: int | None
    seed: int
    class_names: tuple[str, ...]
    support: Split
    validation: Split | None


def draw_few_shot(
    dataset: Dataset, shots: int | None, seed: int, allow_fewer: bool = False
) -> FewShot:
    """Draws support and validation images per class.

    Each class's images, sorted by name, are shuffled once by (seed, label), and the first `shots`
    are taken: a draw of fewer shots is a subset of a draw of more, and depends neither on the
    order of the listing nor on any method. Without a validation split, validation images are the
    next ones in the same order.

    Args:
        dataset: Data set to draw from.
        shots: Number of images per class; None takes all images.
        seed: Non-negative seed.
        allow_fewer: Whether to accept classes with fewer images than shots and take all of them.
    Raises:
        UserError: If a class has too few images.
    """
    num_classes = len(dataset.class_names)
    orders = [_shuffled(dataset.train, label, (seed, label)) for label in range(num_classes)]
    fewest = 1 if shots is None or allow_fewer else shots
    short = [
        f"{name} ({len(order)})"
        for name, order in zip(dataset.class_names, orders, strict=True)
        if len(order) < fewest
    ]
    if short:
        remedy = "remove the class, or add some"
        if fewest > 1:
            remedy = "lower shots, set allow_fewer to True, or add some"
        raise UserError(
            f"fewer than {fewest} training images in {len(short)} of {num_classes} classes: "
            f"{', '.join(short[:5])}: {remedy}"
        )
    most = MOST_VALIDATION_SHOTS if shots is None else min(shots, MOST_VALIDATION_SHOTS)
    support = dataset.train.select([i for order in orders for i in order[:shots]])
    if dataset.validation is not None:
        source = dataset.validation
        drawn = [_shuffled(source, label, (seed, label, 1))[:most] for label in range(num_classes)]
    else:
        source = dataset.train
        drawn = [[] if shots is None else order[shots : shots + most] for order in orders]
    indices = [i for order in drawn for i in order]
    validation = source.select(indices) if indices else None
    return FewShot(shots, seed, dataset.class_names, support, validation)


def few_shot_record(draw: FewShot) -> dict[str, Any]:
    """Returns the content of `few_shot.json`: the drawn images of each class."""
    return {
        "shots": draw.shots,
        "seed": draw.seed,
        "train": _keys_by_class(draw.support, draw.class_names),
        "validation": None
        if draw.validation is None
        else _keys_by_class(draw.validation, draw.class_names),
    }


def read_few_shot(file: str, dataset: Dataset, shots: int | None) -> FewShot:
    """Reads the images that a `few_shot.json` names, written by this or any other program.

    Args:
        file: JSON file with the content that `few_shot_record` returns.
        dataset: Data set that must contain every image, in the class that the file puts it in.
        shots: The run's number of shots; the file must have the same number.
    Raises:
        UserError: If the file cannot be read, has other classes, shots or images, has a class
            without images, or names an image for both training and validation.
    """
    place = Path(file).expanduser()
    try:
        record = parse_json(place.read_text(encoding="utf-8"))
        train, validation = record["train"], record["validation"]
        found_shots, seed = record["shots"], int(record["seed"])
        both = [train] if validation is None else [train, validation]
        lists = [keys for drawn in both for keys in drawn.values()]
        seen = Counter(key for keys in lists for key in keys)
        if not all(isinstance(keys, list) for keys in lists) or not all(
            isinstance(key, str) for key in seen
        ):
            raise TypeError("each class needs a list of paths")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
            f"data.few_shot_file={file} is not a list of drawn images ({error!r}): name a "
            "few_shot.json"
        ) from error
    if found_shots != shots:
        raise UserError(
            f"{place} is a draw of {found_shots} shots, the run has {shots}: set shots to the "
            "number in the file, or use another draw"
        )
    twice = [key for key, count in seen.items() if count > 1]
    if twice:
        raise UserError(f"{place} names {twice[0]!r} twice: remove one of the two")
    support = _named_images(train, dataset.train, dataset.class_names, place)
    empty = [name for name, keys in train.items() if not keys]
    if empty:
        raise UserError(f"{place} has no training image of {empty[:5]}: add some")
    held_out = None
    if validation is not None:
        source = dataset.train if dataset.validation is None else dataset.validation
        held_out = _named_images(validation, source, dataset.class_names, place)
    return FewShot(shots, seed, dataset.class_names, support, held_out)


def _named_images(
    drawn: dict[str, list[str]], split: Split, class_names: tuple[str, ...], file: Path
) -> Split:
    """Selects the images of a split that a file names, each in its class."""
    expected = _record_names(class_names)
    if drawn.keys() != set(expected):
        strange = [name for name in drawn if name not in expected]
        lacking = [name for name in expected if name not in drawn]
        raise UserError(
            f"{file} has other classes than the data: not in the data {strange[:3]}, not in the "
            f"file {lacking[:3]}; use a draw from this benchmark"
        )
    places = {key: place for place, key in enumerate(split.keys)}
    wanted = [(key, label) for label, name in enumerate(expected) for key in drawn[name]]
    strange = [
        key for key, label in wanted if key not in places or split.labels[places[key]] != label
    ]
    if strange:
        raise UserError(
            f"{len(strange)} images that {file} names are not in this class and split of the data, "
            f"such as {strange[0]}: use a draw from this benchmark and source"
        )
    return split.select([places[key] for key, _ in wanted])


def _shuffled(split: Split, label: int, entropy: tuple[int, ...]) -> list[int]:
    members = sorted(np.flatnonzero(split.labels == label), key=lambda i: split.keys[i])
    order = np.random.default_rng(entropy).permutation(len(members))
    return [int(members[i]) for i in order]


def _keys_by_class(split: Split, class_names: tuple[str, ...]) -> dict[str, list[str]]:
    rows = [
        [split.keys[i] for i in np.flatnonzero(split.labels == label)]
        for label in range(len(class_names))
    ]
    return dict(zip(_record_names(class_names), rows, strict=True))


def _record_names(class_names: tuple[str, ...]) -> list[str]:
    """Returns the class names of a record; labels distinguish the names that ImageNet has twice."""
    twice = len(set(class_names)) < len(class_names)
    return [f"{label} {name}" if twice else name for label, name in enumerate(class_names)]
