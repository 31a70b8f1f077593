"""Runs on extreme data: one class, a class without test images, a thousand classes."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.errors import UserError
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.results import ImageCounts
from fgvpl_jax.runs.workdir import Workdir
from tests.faults.conftest import count

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("source", ["folder", "list", "split file"])
def test_a_data_set_with_one_class_is_refused(undisturbed, tmp_path, source):
    config = undisturbed.config.copy_and_resolve_references()
    photos = tmp_path / "photos"
    for i in range(9):
        (photos / "cat").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40)).save(photos / "cat" / f"{i}.png")
    config.data.root = str(photos)
    if source == "list":
        rows = [f"cat/{i}.png,cat,{'test' if i > 6 else 'train'}\n" for i in range(9)]
        (photos / "list.csv").write_text("path,label,split\n" + "".join(rows))
        config.data.root = str(photos / "list.csv")
    if source == "split file":
        rows = [[f"cat/{i}.png", 0, "cat"] for i in range(9)]
        splits = {"train": rows[:4], "val": rows[4:6], "test": rows[6:]}
        (tmp_path / "split.json").write_text(json.dumps(splits))
        config.data.source, config.data.root = "coop", str(tmp_path)
        config.data.split_file, config.data.image_dir = "split.json", "photos"
    with pytest.raises(UserError, match=r"at least two"):
        experiment.train_and_evaluate(config, Workdir(tmp_path / "W"))
    assert not (tmp_path / "W").exists()
    count("one class only", "ended right", "of them refused")


def test_a_class_without_test_images_leaves_finite_scores(undisturbed, photos_dir, tmp_path):
    config = undisturbed.config.copy_and_resolve_references()
    shutil.copytree(photos_dir, tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "test" / "red_square")
    config.data.root = str(tmp_path / "photos")
    results = experiment.train_and_evaluate(config, Workdir(tmp_path / "W"))
    predictions = np.load(tmp_path / "W" / "predictions.npz")
    assert results.counts.test == 10
    assert np.isfinite(
        [
            value
            for name, value in results.to_json().items()
            if name.startswith(("test", "zero_shot"))
        ]
    ).all()
    assert set(predictions["labels"].tolist()) == {0, 1}  # blue square, green square
    count("a class without test images", "ended right")


def test_a_run_trains_on_a_thousand_classes(undisturbed, tmp_path):
    """Trains one epoch of 16 steps with 1,000 classes and 16,000 support images."""
    config = undisturbed.config.copy_and_resolve_references()
    rng = np.random.default_rng(0)
    for label in range(1000):
        for split, amount in (("train", 16), ("test", 1)):
            folder = tmp_path / "photos" / split / f"thing {label:04}"
            folder.mkdir(parents=True)
            for i in range(amount):
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.ppm")
    config.data.root = str(tmp_path / "photos")
    config.data.image_cache_dir = str(tmp_path / "cache")
    config.shots, config.epochs, config.batch_size, config.eval_batch_size = 16, 1, 1000, 500
    results = experiment.train_and_evaluate(config, Workdir(tmp_path / "W"))
    assert results.counts == ImageCounts(train=16_000, validation=0, test=1_000)
    assert results.num_classes == 1000
    assert np.isfinite(results.test_nll)
    count("1,000 classes, 16,000 support images", "ended right")
