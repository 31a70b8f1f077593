"""From a benchmark's own parts to the splits of the CoOp protocol, where there is no split file."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np

from fgvpl_jax.errors import UserError

# Names in split files and lists, in the order of Dataset's fields.
SPLITS = ("train", "val", "test")
# Shares of all images, and of the official training images that become validation.
TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.2
# Not the run's seed: every run must be tested on the same images.
SPLIT_SEED = 1

Images = list[tuple[str, int]]
Parts = dict[str, Images]


class SplitProtocol(Enum):
    """What the benchmark's own parting is worth; the value is what a reader of results sees."""

    POOLED = "all images re-split per class, 50% train, 20% validation, 30% test"
    OFFICIAL_TEST = "official test; official training images re-split per class, 80% train"
    OWN = "the benchmark's own lists"

    def split(self, parts: Parts, origin: str) -> tuple[Parts, str]:
        """Splits as CoOp's rule makes them, with a seed of our own.

        Args:
            parts: (key, label) pairs under "train" and, if any, "val" and "test", as the
                benchmark's authors part them.
            origin: What named the parts, for errors.
        Returns:
            The three splits, "val" perhaps empty; and a sentence for people and `results.json`.
        Raises:
            UserError: If a key is there twice.
        """
        refuse_leaks(parts, origin)
        train, held_out, test = (parts.get(name, []) for name in SPLITS)
        described = self.value
        if self is SplitProtocol.POOLED:
            pool = [*train, *held_out, *test]
            train, held_out, test = part_each_class(pool, (TRAIN_SHARE, VALIDATION_SHARE))
        elif self is SplitProtocol.OFFICIAL_TEST:
            held_out, train = part_each_class(train, (VALIDATION_SHARE,))
        if self is not SplitProtocol.OWN:
            described += f" (seed {SPLIT_SEED})"
        return dict(zip(SPLITS, (train, held_out, test), strict=True)), described


def part_each_class(images: Iterable[tuple[str, int]], shares: Sequence[float]) -> list[Images]:
    """Parts each class by shares of it, each rounded as Python's `round`; the last takes the rest.

    A class's images are sorted by key and shuffled by (seed, label): the listing's order does not
    matter.
    """
    members = defaultdict(list)
    for key, label in images:
        members[label].append(key)
    parts: list[Images] = [[] for _ in range(len(shares) + 1)]
    for label, keys in sorted(members.items()):
        order = np.random.default_rng((SPLIT_SEED, label)).permutation(sorted(keys))
        ends = np.cumsum([round(len(keys) * share) for share in shares])
        for part, chosen in zip(parts, np.split(order, ends), strict=True):
            part += [(str(key), label) for key in chosen]
    return parts


def refuse_leaks(parts: Parts, origin: str) -> None:
    """Refuses an image that is in two places, such as trained on and tested with.

    Raises:
        UserError: If a key is there twice.
    """
    seen: dict[str, str] = {}
    for name, images in parts.items():
        for key, _ in images:
            if key in seen:
                raise UserError(
                    f"{origin} has {key!r} twice, in {seen[key]} and in {name}: an image may be in "
                    "one place only, or the test would not be honest; remove one"
                )
            seen[key] = name
