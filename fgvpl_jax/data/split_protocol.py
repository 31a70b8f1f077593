"""Makes the splits of the CoOp protocol from a benchmark's own parts, without a split file."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np

from fgvpl_jax.errors import UserError

# Names of the splits in split files and lists, in the order of the fields of `Dataset`.
SPLITS = ("train", "val", "test")
# Fraction of all images used for training, and fraction of all images, or of the official training
# images, used for validation.
TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.2
# Independent of the run's seed: every run must be tested on the same images.
SPLIT_SEED = 1

Images = list[tuple[str, int]]
Parts = dict[str, Images]


class SplitProtocol(Enum):
    """Part of the authors' own division that is kept; the value describes it in the results."""

    POOLED = "all images re-split per class, 50% train, 20% validation, 30% test"
    OFFICIAL_TEST = "official test; official training images re-split per class, 80% train"
    OWN = "the benchmark's own lists"

    def split(self, parts: Parts, origin: str) -> tuple[Parts, str]:
        """Makes the splits by CoOp's rule, but with this project's seed.

        Args:
            parts: (key, label) pairs of "train" and, if they exist, "val" and "test", as the
                benchmark's authors divide them.
            origin: File or folder that names the parts, for error messages.
        Returns:
            The three splits, of which "val" may be empty, and a description of the splits for
            users and `results.json`.
        Raises:
            UserError: If a key occurs twice.
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
    """Divides the images of each class into parts by `shares`; the last part takes the rest.

    Sizes are rounded like Python's `round`. A class's images are sorted by key and shuffled by
    (seed, label), so the order of the listing does not matter.
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
    """Refuses an image that is in two places, such as in the training and the test split.

    Raises:
        UserError: If a key occurs twice.
    """
    seen: dict[str, str] = {}
    for name, images in parts.items():
        for key, _ in images:
            if key in seen:
                raise UserError(
                    f"{origin} has {key!r} twice, in {seen[key]} and in {name}: remove one, or the "
                    "test would not be fair"
                )
            seen[key] = name
