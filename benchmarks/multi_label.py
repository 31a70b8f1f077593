"""Measures multi-label training on drawn scenes that show one to three objects.

    python -m benchmarks.multi_label --clip=demo/clip --photos 50 200

Every scene has the classes of its objects as labels; one scene in eight shows only something that
is no class and has no label. The scenes are written to a list with the column `labels`, and each
method is trained on it by an ordinary run, which reads the test scenes once, at its end. The
figures are means over draws of training and test scenes: mean average precision (mAP) and macro F1
on the test scenes, what the run had estimated of both without them, and how often the test mAP is
in the 95% interval of the estimate.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measuring import report
from fgvpl_jax.data.shapes import (
    BENCHMARK_PAIRS,
    UNREAD_WORDS,
    Scene,
    draw_scene,
    pretraining_pairs,
)
from fgvpl_jax.methods.multi_label import LABEL_METHODS
from fgvpl_jax.runs.default_config import folder_config
from fgvpl_jax.runs.label_results import LabelResults
from fgvpl_jax.runs.multi_label import train_labels
from fgvpl_jax.runs.workdir import Workdir

MOST_OBJECTS = 3
EMPTY_SHARE = 1 / 8
MOST_TRIES = 200
NAMES = [f"{UNREAD_WORDS.get(colour, colour)} {shape}" for colour, shape in BENCHMARK_PAIRS]


def main(
    clip: str, photos: Sequence[int], num_test: int, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Trains and measures; returns one row for each number of photos and method."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            write_scenes(Path(folder, str(seed)), {"train": max(photos), "test": num_test}, seed)
        for count in photos:
            for method in LABEL_METHODS:
                found = [run(Path(folder, str(seed)), clip, method, count, seed) for seed in seeds]
                rows.append({"photos": count, "method": method} | mean_figures(found))
    return rows


def run(scenes: Path, clip: str, method: str, count: int, seed: int) -> LabelResults:
    """Trains one method on the first scenes for training; returns its results."""
    with (scenes / "list.csv").open(newline="") as stream:
        header, *lines = csv.reader(stream)
    train = [line for line in lines if line[2] == "train"][:count]
    part = scenes / f"{count}.csv"
    with part.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *train, *(x for x in lines if x[2] == "test")])
    config = folder_config()
    config.clip, config.method, config.seed = clip, method, seed
    config.data.root = str(part)
    config.data.image_cache_dir = str(scenes.parent / "images")
    return train_labels(config, Workdir(scenes / f"{method}_{count}"))


def mean_figures(found: Sequence[LabelResults]) -> dict[str, float]:
    """Returns the means of the figures of several draws."""
    draws = []
    for one in found:
        assert one.test_mean_average_precision is not None
        assert one.test_macro_f1 is not None
        low, high = one.cv_interval
        draws.append(
            {
                "test mAP": one.test_mean_average_precision,
                "zero-shot CLIP": one.zero_shot_mean_average_precision,
                "chance": one.chance,
                "estimated mAP": one.cv_mean_average_precision,
                "in the interval": float(low <= one.test_mean_average_precision <= high),
                "test macro F1": one.test_macro_f1,
                "estimated macro F1": one.cv_macro_f1,
                "seconds": one.train_seconds,
            }
        )
    return {name: round(float(np.mean([one[name] for one in draws])), 3) for name in draws[0]}


def write_scenes(folder: Path, counts: dict[str, int], seed: int) -> None:
    """Draws scenes into a folder, and writes the list of them."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with (folder / "list.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "labels", "split"])
        for split, count in counts.items():
            for number in range(count):
                image, classes = labelled_scene(rng)
                image.save(folder / f"{split}_{number:04}.png")
                labels = "|".join(NAMES[c] for c in classes)
                writer.writerow([f"{split}_{number:04}.png", labels, split])


def labelled_scene(rng: np.random.Generator) -> tuple[Image.Image, list[int]]:
    """Draws a scene; returns it with the classes of its objects."""
    if rng.random() < EMPTY_SHARE:
        others = pretraining_pairs()
        return draw_objects([others[rng.integers(len(others))]], rng), []
    count = rng.integers(1, MOST_OBJECTS + 1)
    classes = sorted(rng.permutation(len(BENCHMARK_PAIRS))[:count].tolist())
    return draw_objects([BENCHMARK_PAIRS[c] for c in classes], rng), classes


def draw_objects(pairs: list[tuple[str, str]], rng: np.random.Generator) -> Image.Image:
    """Draws a scene of several objects that do not touch one another."""
    while True:
        scene = draw_scene(*pairs[0], rng)
        pixels, taken = np.array(scene.image), scene.mask
        for pair in pairs[1:]:
            other = apart(pair, taken, rng)
            if other is None:
                break
            pixels[other.mask] = np.asarray(other.image)[other.mask]
            taken = taken | other.mask
        else:
            return Image.fromarray(pixels)


def apart(pair: tuple[str, str], taken: np.ndarray, rng: np.random.Generator) -> Scene | None:
    """Draws scenes until the object is on none of the taken pixels; None after many tries."""
    for _ in range(MOST_TRIES):
        scene = draw_scene(*pair, rng)
        if not (scene.mask & taken).any():
            return scene
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", default="demo/clip")
    parser.add_argument("--photos", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--test_photos", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    for row in main(options.clip, options.photos, options.test_photos, options.seeds):
        report(row)
