"""Looks at every image of a data set once: can it be read, and is it there twice?"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from fgvpl_jax.data.batches import in_threads
from fgvpl_jax.data.images import UnreadableImage
from fgvpl_jax.data.splits import Dataset, Split

PREFETCH = 64


class DataReport(NamedTuple):
    """What was found.

    Attributes:
        counts: Split name to images of each class, in label order.
        unreadable: Split name to "path: reason" by the image's place in the split.
        duplicates: Groups of equal images ("split: key") that are in more than one split.
        repeats: Groups of equal images that are in one split.
        problems: All that is wrong, one line each; empty for sound data.
        notes: What should be known and is not the user's to mend, one line each.
    """

    counts: dict[str, Int[np.ndarray, "k"]]
    unreadable: dict[str, dict[int, str]]
    duplicates: list[list[str]]
    repeats: list[list[str]]
    problems: list[str]
    notes: list[str]


def check_dataset(dataset: Dataset, published: Mapping[str, int] | None = None) -> DataReport:
    """Decodes every image of every split.

    Args:
        dataset: From any source.
        published: Images per split ("train", "validation", "test"; 0 for no such split), as the
            benchmark's authors count them; None where nobody says.
    Returns:
        Equal images are found by their pixels, whatever their files' names and formats. In data
        whose counts are the published ones they are a note even across splits: they were
        published so, and without them figures would compare with no one's.
    """
    everything = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    splits = {name: split for name, split in everything.items() if split is not None}
    num_classes = len(dataset.class_names)
    counts = {
        name: np.bincount(split.labels, minlength=num_classes) for name, split in splits.items()
    }
    digests, unreadable = {}, {}
    for name, split in splits.items():
        digests[name], unreadable[name] = _digest_all(name, split)
    duplicates, repeats = _equal(splits, digests)
    problems, notes = _count_differences(dataset, counts, published)
    as_published = published is not None and not problems
    for name, per_class in counts.items():
        lacking = [dataset.class_names[label] for label in np.flatnonzero(per_class == 0)]
        if lacking:
            problems.append(f"{name} has no image of {len(lacking)} classes: {_some(lacking)}")
    for name, failures in unreadable.items():
        if failures:
            shown = _some(list(failures.values()))
            problems.append(f"{name} has {len(failures)} images that cannot be read: {shown}")
    if duplicates:
        line = f"{len(duplicates)} images are in more than one split: {_some_groups(duplicates)}"
        if as_published:
            notes.append(f"{line} (published so; leave them, or figures would not compare)")
        else:
            problems.append(line)
    if repeats:
        notes.append(f"{len(repeats)} images are in one split twice: {_some_groups(repeats)}")
    return DataReport(counts, unreadable, duplicates, repeats, problems, notes)


def _count_differences(
    dataset: Dataset, counts: Mapping[str, np.ndarray], published: Mapping[str, int] | None
) -> tuple[list[str], list[str]]:
    """Problems, or notes where what the source leaves out explains them."""
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


def _digest_all(name: str, split: Split) -> tuple[np.ndarray, dict[int, str]]:
    """16 bytes for each image's pixels, and why some have none."""

    def digest(index: int) -> bytes | str:
        try:
            image = split.image(index)
        except UnreadableImage as error:
            return str(error)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()[:16]

    results = in_threads(digest, range(len(split)), PREFETCH)
    digests, unreadable = np.zeros(len(split), "S16"), {}
    progress = tqdm(results, desc=name, total=len(split), unit="image", mininterval=1.0)
    for index, result in enumerate(progress):
        if isinstance(result, str):
            unreadable[index] = result
        else:
            digests[index] = result
    return digests, unreadable


def _equal(
    splits: dict[str, Split], digests: dict[str, np.ndarray]
) -> tuple[list[list[str]], list[list[str]]]:
    """Groups of equal images across splits, and within one."""
    keys = [f"{name}: {key}" for name, split in splits.items() for key in split.keys]
    owner = np.repeat(np.arange(len(splits)), [len(split) for split in splits.values()])
    values, group, sizes = np.unique(
        np.concatenate(list(digests.values())), return_inverse=True, return_counts=True
    )
    members = defaultdict(list)
    for place in np.flatnonzero(((sizes > 1) & (values != b""))[group]):
        members[int(group[place])].append(place)
    across: list[list[str]] = []
    within: list[list[str]] = []
    for places in members.values():
        kind = across if len(set(owner[places])) > 1 else within
        kind.append([keys[place] for place in places])
    return sorted(across), sorted(within)


def _some_groups(groups: list[list[str]]) -> str:
    return _some([" = ".join(group) for group in groups])


def _some(items: list[str]) -> str:
    return "; ".join(items[:3]) + ("; …" if len(items) > 3 else "")
