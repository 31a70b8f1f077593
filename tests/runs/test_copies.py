"""Photos that are evaluated although copies of them were trained on are reported."""

import shutil

import numpy as np
import pytest

from fgvpl_jax.data import load_shapes
from fgvpl_jax.runs import automatic, candidates, experiment, prepare
from fgvpl_jax.runs.workdir import Workdir

COUNTS = {"train": 3, "val": 1, "test": 2}  # per class


@pytest.fixture
def split_config(tiny_config, tmp_path):
    """Drawn scenes in split folders, all of them different."""
    number = 0
    for split, count in COUNTS.items():
        for label in ("first", "second"):
            place = tmp_path / "photos" / split / label
            place.mkdir(parents=True)
            for _ in range(count):
                number += 1
                scene = load_shapes().train.image(29 * number % 400).resize((96, 96))
                scene.save(place / f"{number:02}.png")
    tiny_config.data.root = str(tmp_path / "photos")
    tiny_config.shots, tiny_config.epochs, tiny_config.method = 2, 1, "tip_adapter"
    return tiny_config


def test_auto_leaves_out_validation_images_that_are_copies(split_config, tmp_path, caplog):
    photos = tmp_path / "photos"
    shutil.copy(photos / "train" / "first" / "01.png", photos / "val" / "first" / "copy.png")
    split_config.shots, split_config.method = 3, "auto"
    run = prepare.prepare(split_config, Workdir(tmp_path / "W"))
    found, unreadable = automatic.with_shared_features(run)
    assert "1 of the 3 validation images look like copies of support images" in caplog.text
    assert not any("copy.png" in key for key in found.few_shot.validation.keys)
    assert len(found.few_shot.validation) == 2 and not unreadable


def test_auto_leaves_out_validation_images_that_are_copies_of_one_another(
    split_config, tmp_path, caplog
):
    place = tmp_path / "photos" / "val" / "first"
    for photo in [*place.iterdir()]:
        shutil.copy(photo, place / f"copy_of_{photo.name}")
    split_config.shots, split_config.method = 3, "auto"
    run = prepare.prepare(split_config, Workdir(tmp_path / "W"))
    found, _ = automatic.with_shared_features(run)
    assert "1 of the 3 validation images" in caplog.text
    assert len(found.few_shot.validation) == 2


@pytest.mark.parametrize("method", ["gda", "auto"])
def test_closed_forms_are_told_of_copies(split_config, tmp_path, method, caplog):
    place = tmp_path / "photos" / "train" / "first"
    shutil.copy(place / "01.png", place / "copy.png")
    split_config.shots, split_config.method, split_config.allow_fewer = 4, method, True
    run = prepare.prepare(split_config, Workdir(tmp_path / "W"))
    assert (
        "1 of the 7 support images look like copies of others, such as train/first/" in caplog.text
    )
    support = run.few_shot.support
    assert support.num_different == 6
    if method == "auto":
        run = candidates.candidate_run(run, "gda")
    kept = support.select([i for i, key in enumerate(support.keys) if not key.endswith("02.png")])
    groups = np.asarray(run.new_model(kept).copies[...])
    alike = [i for i, key in enumerate(kept.keys) if key.endswith(("01.png", "copy.png"))]
    assert len(groups) == 6 and len(set(groups.tolist())) == 5
    assert groups[alike[0]] == groups[alike[1]]


def test_copies_in_other_splits_are_reported(split_config, tmp_path, caplog):
    experiment.train_and_evaluate(split_config, Workdir(tmp_path / "sound"))
    assert "look like copies" not in caplog.text
    photos = tmp_path / "photos"
    for split in ("val", "test"):
        shutil.copy(photos / "train" / "first" / "01.png", photos / split / "first" / "copy.png")
    split_config.shots = 3
    experiment.train_and_evaluate(split_config, Workdir(tmp_path / "copies"))
    assert "1 of the 3 validation images look like copies of support images" in caplog.text
    assert "1 of the 5 test images look like copies of support images" in caplog.text
    assert "test/first/copy.png; --mode=data lists" in caplog.text
