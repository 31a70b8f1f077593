"""Checks that every image of a data set can be read and occurs only once."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from fgvpl_jax.data.batches import in_threads
from fgvpl_jax.data.images import UnreadableImage
from fgvpl_jax.data.near_copies import (
    MOST_PHOTOS,
    SIGNATURE,
    first_copies,
    groups_of_copies,
    signature,
)
from fgvpl_jax.data.splits import Dataset, Split

PREFETCH = 64
MOST_JOINED = 5  # images of a group that a message names


class DataReport(NamedTuple):
    """Result of checking a data set.

    Attributes:
        counts: Maps each split's name to the number of images per class, in label order.
        unreadable: Maps each split's name to its unreadable images: index in the split to
            "path: reason".
        duplicates: Groups of equal images ("split: key") that are in more than one split.
        repeats: Groups of equal images within one split.
        near_copies: Groups of images that are near-copies of one another, such as resized copies;
            empty for a benchmark with published counts.
        problems: One line per problem; empty if the data are sound.
        notes: One line per fact that users should know but need not fix.
    """

    counts: dict[str, Int[np.ndarray, "k"]]
    unreadable: dict[str, dict[int, str]]
    duplicates: list[list[str]]
    repeats: list[list[str]]
    near_copies: list[list[str]]
    problems: list[str]
    notes: list[str]


def check_dataset(dataset: Dataset, published: Mapping[str, int] | None = None) -> DataReport:
    """Decodes every image of every split and reports what is wrong.

    Images are equal if their pixels are, whatever their file names and formats. If the data have
    the published counts, equal images are reported as notes even across splits: they were
    published so, and results without them could not be compared with anyone else's.

    Args:
        dataset: Data set of any source.
        published: Number of images in each split ("train", "validation", "test"; 0 if the
            benchmark has no such split) according to its authors; None if it is not known.
    """
    roles = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    splits = {name: split for name, split in roles.items() if split is not None}
    num_classes = len(dataset.class_names)
    counts = {
        name: np.bincount(split.labels, minlength=num_classes) for name, split in splits.items()
    }
    digests, signatures, unreadable = {}, {}, {}
    for name, split in splits.items():
        digests[name], signatures[name], unreadable[name] = _digest_all(name, split)
    duplicates, repeats = _equal(splits, digests)
    problems, notes = _count_differences(dataset, counts, published)
    near_copies: list[list[str]] = []
    if published is None:
        near_copies, lines = _near_copies(splits, digests, signatures)
        notes += lines
        problems += _contradictions(splits, digests, dataset.class_names)
    as_published = published is not None and not problems
    for name, per_class in counts.items():
        lacking = [dataset.class_names[label] for label in np.flatnonzero(per_class == 0)]
        if lacking:
            problems.append(f"{name} has no image of {len(lacking)} classes: {_some(lacking)}")
    for name, failures in unreadable.items():
        if failures:
            shown = _some(list(failures.values()))
            problems.append(f"{name} has {len(failures)} images that cannot be read: {shown}")
    if dataset.other is not None:
        *_, failures = _digest_all("other", dataset.other)
        notes.append(f"{len(dataset.other):,} photos in folders named other belong to no class")
        if failures:
            shown = _some(list(failures.values()))
            problems.append(f"other has {len(failures)} images that cannot be read: {shown}")
    if duplicates:
        line = f"{len(duplicates)} images are in more than one split: {_some_groups(duplicates)}"
        if as_published:
            notes.append(f"{line} (published so; keep them, or results cannot be compared)")
        else:
            problems.append(line)
    if repeats:
        notes.append(f"{len(repeats)} images are in one split twice: {_some_groups(repeats)}")
    return DataReport(counts, unreadable, duplicates, repeats, near_copies, problems, notes)


def _count_differences(
    dataset: Dataset, counts: Mapping[str, np.ndarray], published: Mapping[str, int] | None
) -> tuple[list[str], list[str]]:
    """Compares counts with the published ones; returns problems and notes.

    Differences are notes if the images that the source leaves out explain them.
    """
    lacking = {
        name: number - (int(counts[name].sum()) if name in counts else 0)
        for name, number in (published or {}).items()
    }
    lines = [
        f"{name} has {number - lacking[name]:,} images, but {number:,} are published"
        for name, number in (published or {}).items()
        if lacking[name]
    ]
    if min(lacking.values(), default=0) < 0 or sum(lacking.values()) > len(dataset.left_out):
        return lines, []
    return [], [f"{line}: the source leaves out {_some(list(dataset.left_out))}" for line in lines]


def _digest_all(name: str, split: Split) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Decodes all images of a split.

    Returns:
        A 16-byte digest of each image's pixels, each image's signature for finding near-copies, and
        the unreadable images with reasons.
    """

    def digest(index: int) -> tuple[bytes, np.ndarray] | str:
        try:
            image = split.image(index)
        except UnreadableImage as error:
            return str(error)
        pixels = repr(image.size).encode() + image.tobytes()
        return hashlib.sha256(pixels).digest()[:16], signature(image)

    results = in_threads(digest, range(len(split)), PREFETCH)
    digests, unreadable = np.zeros(len(split), "S16"), {}
    signatures = np.zeros((len(split), SIGNATURE), np.float32)
    progress = tqdm(results, desc=name, total=len(split), unit="image", mininterval=1.0)
    for index, result in enumerate(progress):
        if isinstance(result, str):
            unreadable[index] = result
        else:
            digests[index], signatures[index] = result
    return digests, signatures, unreadable


def _equal(
    splits: dict[str, Split], digests: dict[str, np.ndarray]
) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the groups of equal images across splits, and those within one split."""
    keys, owner = _keys(splits), _owner(splits)
    across: list[list[str]] = []
    within: list[list[str]] = []
    for places in _equal_places(digests):
        kind = across if len(set(owner[places])) > 1 else within
        kind.append([keys[place] for place in places])
    return sorted(across), sorted(within)


def _keys(splits: dict[str, Split]) -> list[str]:
    return [f"{name}: {key}" for name, split in splits.items() for key in split.keys]


def _owner(splits: dict[str, Split]) -> np.ndarray:
    return np.repeat(np.arange(len(splits)), [len(split) for split in splits.values()])


def _equal_places(digests: dict[str, np.ndarray]) -> list[list[int]]:
    """Returns the places of each group of equal images, counted over all splits."""
    values, group, sizes = np.unique(
        np.concatenate(list(digests.values())), return_inverse=True, return_counts=True
    )
    members: dict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(((sizes > 1) & (values != b""))[group]):
        members[int(group[place])].append(int(place))
    return list(members.values())


def _contradictions(
    splits: dict[str, Split], digests: dict[str, np.ndarray], class_names: tuple[str, ...]
) -> list[str]:
    """Returns a problem that names equal images with different labels, if there are any."""
    keys = _keys(splits)
    labels = np.concatenate([split.labels for split in splits.values()])
    groups = [
        [f"{keys[place]} ({class_names[labels[place]]})" for place in places]
        for places in _equal_places(digests)
        if len(set(labels[places])) > 1
    ]
    return [f"{len(groups)} images are in two classes: {_some_groups(groups)}"] if groups else []


def _near_copies(
    splits: dict[str, Split], digests: dict[str, np.ndarray], signatures: dict[str, np.ndarray]
) -> tuple[list[list[str]], list[str]]:
    """Returns the groups of near-copies that are not all equal, and notes about them."""
    keys, owner = _keys(splits), _owner(splits)
    if len(keys) > MOST_PHOTOS:
        return [], [f"near-copies are looked for among at most {MOST_PHOTOS:,} images, not here"]
    pixels = np.concatenate(list(digests.values()))
    across: list[list[str]] = []
    within: list[list[str]] = []
    for places in groups_of_copies(first_copies(np.concatenate(list(signatures.values())))):
        if len(set(pixels[places])) > 1:
            kind = across if len(set(owner[places])) > 1 else within
            kind.append([keys[place] for place in places])
    notes = []
    if across:
        notes.append(
            f"{len(across)} groups of images that look alike are in more than one split, and "
            f"accuracy on copies is too high: {_some_groups(across, ' ~ ')}"
        )
    if within:
        notes.append(
            f"{len(within)} groups of images in one split look alike (cross-validation keeps each "
            f"group in one fold): {_some_groups(within, ' ~ ')}"
        )
    return across + within, notes


def _some_groups(groups: list[list[str]], sign: str = " = ") -> str:
    return _some([sign.join(group[:MOST_JOINED]) for group in groups])


def _some(items: list[str]) -> str:
    return "; ".join(items[:3]) + ("; …" if len(items) > 3 else "")
