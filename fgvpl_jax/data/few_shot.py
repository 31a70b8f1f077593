"""The few-shot protocol: who is drawn, by the run's seed alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from fgvpl_jax.data.splits import Dataset, Split
from fgvpl_jax.errors import UserError

# Validation images per class for choosing λ: min(shots, 4).
MOST_VALIDATION_SHOTS = 4


@dataclass(frozen=True)
class FewShot:
    """One draw.

    Attributes:
        shots: Images per class asked for; None for all.
        seed: Of the draw.
        class_names: In label order.
        support: The training images, class by class.
        validation: min(shots, 4) per class; None where the data leaves none.
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
    are taken: the draw of fewer shots lies within that of more, and depends neither on the
    listing's order nor on any method. Without a validation split, validation images are the next
    ones of the same order.

    Args:
        dataset: Where to draw from.
        shots: Images per class; None takes all.
        seed: Not negative.
        allow_fewer: Take all of a class that has fewer images than shots.
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
        mend = "remove the class, or " if fewest == 1 else "lower --config.shots, set "
        mend += "add some" if fewest == 1 else "--config.allow_fewer=True, or add some"
        raise UserError(
            f"fewer than {fewest} training images in {len(short)} of {num_classes} classes: "
            f"{', '.join(short[:5])}: {mend}"
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
    """What `few_shot.json` holds: every drawn image under its class."""
    return {
        "shots": draw.shots,
        "seed": draw.seed,
        "train": _keys_by_class(draw.support, draw.class_names),
        "validation": None
        if draw.validation is None
        else _keys_by_class(draw.validation, draw.class_names),
    }


def _shuffled(split: Split, label: int, entropy: tuple[int, ...]) -> list[int]:
    members = sorted(np.flatnonzero(split.labels == label), key=lambda i: split.keys[i])
    order = np.random.default_rng(entropy).permutation(len(members))
    return [int(members[i]) for i in order]


def _keys_by_class(split: Split, class_names: tuple[str, ...]) -> dict[str, list[str]]:
    rows = [
        [split.keys[i] for i in np.flatnonzero(split.labels == label)]
        for label in range(len(class_names))
    ]
    # ImageNet has two names twice.
    twice = len(set(class_names)) < len(class_names)
    return {
        f"{label} {name}" if twice else name: keys
        for label, (name, keys) in enumerate(zip(class_names, rows, strict=True))
    }
