"""The check of a list with several labels a photo counts them and names what is wrong."""

import shutil

from fgvpl_jax.data.label_list import load_label_list
from fgvpl_jax.files import read_json
from fgvpl_jax.runs.check_data import check_data
from fgvpl_jax.runs.default_config import folder_config
from fgvpl_jax.runs.workdir import Workdir
from tests.label_lists import write_label_list


def test_photos_of_each_label_are_counted_and_damage_is_named(tmp_path):
    config = folder_config()
    config.data.root = str(write_label_list(tmp_path / "list", {"train": 12, "test": 4}))
    lines, problems = check_data(config, Workdir(tmp_path / "W"))
    assert problems == []
    dataset = load_label_list(config.data.root)
    for place, name in enumerate(dataset.class_names):
        train, test = (split.truth[:, place].sum() for split in (dataset.train, dataset.test))
        assert [name, str(train), str(test)] in [line.split() for line in lines]
    empty = [(~split.truth.any(axis=1)).sum() for split in (dataset.train, dataset.test)]
    assert ["no", "label", *map(str, empty)] in [line.split() for line in lines]
    assert ["all", "photos", "12", "4"] in [line.split() for line in lines]

    shutil.copy(tmp_path / "list" / "train_000.png", tmp_path / "list" / "test_001.png")
    (tmp_path / "list" / "train_003.png").write_bytes(b"damaged")
    _, problems = check_data(config, Workdir(tmp_path / "W"))
    assert "train has 1 images that cannot be read: " in problems[0]
    assert "train_003.png" in problems[0]
    assert problems[1].startswith("1 images are in more than one split: ")
    report = read_json(tmp_path / "W" / "data.json")
    assert report["problems"] == problems
    assert report["duplicates"] == [["train: train_000.png", "test: test_001.png"]]
    assert report["without_label"] == dict(zip(("train", "test"), map(int, empty), strict=True))
