"""Looks at every image of a data set once: can it be read, and is it in two splits?"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import grain
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
        problems: All that is wrong, one line each; empty for sound data.
    """

    counts: dict[str, Int[np.ndarray, "k"]]
    unreadable: dict[str, dict[int, str]]
    duplicates: list[list[str]]
    problems: list[str]


def check_dataset(dataset: Dataset, published: Mapping[str, int] | None = None) -> DataReport:
    """Decodes every image of every split.

    Args:
        dataset: From any source.
        published: Images per split ("train", "validation", "test"; 0 for no such split), as the
            benchmark's authors count them; None where nobody says.
    Returns:
        Equal images are found by their pixels, whatever their files' names and formats.
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
    duplicates = _in_several(splits, digests)
    problems = [
        f"{name} has {found:,} images, but {published[name]:,} are published"
        for name in everything
        if published and (found := int(counts.get(name, np.zeros(1)).sum())) != published[name]
    ]
    for name, per_class in counts.items():
        lacking = [dataset.class_names[label] for label in np.flatnonzero(per_class == 0)]
        if lacking:
            problems.append(f"{name} has no image of {len(lacking)} classes: {_some(lacking)}")
    for name, failures in unreadable.items():
        if failures:
            shown = _some(list(failures.values()))
            problems.append(f"{name} has {len(failures)} images that cannot be read: {shown}")
    if duplicates:
        shown = _some([" = ".join(group) for group in duplicates])
        problems.append(f"{len(duplicates)} images are in more than one split: {shown}")
    return DataReport(counts, unreadable, duplicates, problems)


def _digest_all(name: str, split: Split) -> tuple[np.ndarray, dict[int, str]]:
    """16 bytes for each image's pixels, and why some have none."""

    def digest(index: int) -> bytes | str:
        try:
            image = split.image(index)
        except UnreadableImage as error:
            return str(error)
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()[:16]

    results = in_threads(grain.MapDataset.range(len(split)).map(digest), PREFETCH)
    digests, unreadable = np.zeros(len(split), "S16"), {}
    progress = tqdm(results, desc=name, total=len(split), unit="image", mininterval=1.0)
    for index, result in enumerate(progress):
        if isinstance(result, str):
            unreadable[index] = result
        else:
            digests[index] = result
    return digests, unreadable


def _in_several(splits: dict[str, Split], digests: dict[str, np.ndarray]) -> list[list[str]]:
    keys = [f"{name}: {key}" for name, split in splits.items() for key in split.keys]
    owner = np.repeat(np.arange(len(splits)), [len(split) for split in splits.values()])
    values, group = np.unique(np.concatenate(list(digests.values())), return_inverse=True)
    seen_in = np.zeros((len(values), len(splits)), bool)
    seen_in[group, owner] = True
    crossing = (seen_in.sum(axis=1) > 1) & (values != b"")
    members = defaultdict(list)
    for place in np.flatnonzero(crossing[group]):
        members[int(group[place])].append(keys[place])
    return sorted(members.values())


def _some(items: list[str]) -> str:
    return "; ".join(items[:3]) + ("; …" if len(items) > 3 else "")
