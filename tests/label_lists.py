"""Writes lists of photos with several labels each."""

import csv

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 50), "blue": (40, 50, 230)}
SPLITS = {"train": 40, "test": 16}


def write_label_list(folder, splits=SPLITS, seed=0):
    """Writes photos of up to three coloured squares, and `list.csv` with their labels.

    One label in eight is wrong, so that no score is perfect.

    Returns:
        The list's path.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["path", "labels", "split"]]
    for split, count in splits.items():
        for number in range(count):
            names = [name for name in COLOURS if rng.random() < 0.5]
            pixels = rng.integers(0, 120, (48, 48, 3), dtype=np.uint8)
            for name in names:
                top, left = rng.integers(0, 34, size=2)
                pixels[top : top + 14, left : left + 14] = COLOURS[name]
            path = f"{split}_{number:03}.png"
            Image.fromarray(pixels).save(folder / path)
            labels = [name for name in COLOURS if (name in names) != (rng.random() < 1 / 8)]
            rows.append([path, "|".join(labels), split])
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return folder / "list.csv"
