"""Checks of a data set, from its config to the printed report, data.json and contact sheet."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import BENCHMARKS, tfds_prepare
from fgvpl_jax.data.benchmarks import Counts
from fgvpl_jax.displays.contact_sheet import CAPTION, CELL, GAP, PER_CLASS, SIDE
from fgvpl_jax.errors import UserError
from fgvpl_jax.runs import default_config
from fgvpl_jax.runs.check_data import check_data
from fgvpl_jax.runs.workdir import Workdir
from tests.conftest import COLOURS, write_photo_folders
from tests.data.tfds_builders import write_aircraft_archive


def test_the_report_lists_counts_and_problems(tmp_path, tiny_config, monkeypatch):
    entry = replace(BENCHMARKS["eurosat"], counts=Counts(train=18, validation=0, test=7))
    monkeypatch.setitem(BENCHMARKS, "squares", entry)
    root = tmp_path / "photos"
    for seed, (split, count) in enumerate({"train": 6, "test": 2}.items()):
        write_photo_folders(root / split, count, seed)
    (root / "train" / "blue_square" / "000.png").write_bytes(b"no photo")
    tiny_config.data.root = str(root)
    tiny_config.clip = "no/checkpoint/is/needed"
    lines, problems = check_data(tiny_config, Workdir(tmp_path / "W"))
    assert lines[:5] == [
        "squares: 3 classes",
        "                   train        test",
        "blue square            6           2",
        "green square           6           2",
        "red square             6           2",
    ]
    assert [line.split() for line in lines[5:7]] == [["all", "18", "6"], ["published", "18", "7"]]
    assert problems[0] == "test has 6 images, but 7 are published"
    assert "blue_square/000.png: not an image" in problems[1]
    assert not any("nothing is wrong" in line for line in lines)
    stored = json.loads((tmp_path / "W" / "data.json").read_text())
    assert stored["counts"][0] == {"class": "blue square", "train": 6, "test": 2}
    assert stored["problems"] == problems
    assert len(stored["unreadable"]) == 1
    assert stored["duplicates"] == stored["repeats"] == stored["notes"] == []


def test_a_tfds_data_set_is_prepared_once_and_then_checked(tmp_path, capsys):
    archive = tmp_path / "tfds" / "downloads" / "manual" / "fgvc-aircraft-2013b.tar.gz"
    archive.parent.mkdir(parents=True)
    write_aircraft_archive(archive)
    config = default_config.benchmark_config("fgvc_aircraft")
    config.data.source, config.data.root = "tfds", str(tmp_path / "tfds")
    _, problems = check_data(config, Workdir(tmp_path / "W"))
    assert "fgvc_aircraft is not prepared in" in capsys.readouterr().out
    assert problems == [
        f"{split} has 100 images, but {count:,} are published"
        for split, count in (("train", 3334), ("validation", 3333), ("test", 3333))
    ]
    archive.unlink()
    assert check_data(config, Workdir(tmp_path / "W"))[1] == problems  # not prepared again
    assert "not prepared" not in capsys.readouterr().out


def test_a_data_set_that_cannot_be_prepared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_prepare, "find_spec", lambda name: None)
    config = default_config.benchmark_config("food101")
    config.data.source, config.data.root = "tfds", str(tmp_path)
    with pytest.raises(UserError, match="TFDS needs TensorFlow to prepare food101"):
        check_data(config, Workdir(tmp_path / "W"))
    config.benchmark = "ucf101"
    with pytest.raises(UserError, match="TFDS has no photos of ucf101"):
        check_data(config, Workdir(tmp_path / "W"))
    assert not (tmp_path / "W").exists()


def test_the_contact_sheet_shows_each_class_in_its_place(tmp_path, tiny_config):
    """Apart from noise (below 120), most pixels of a photo have the colour of its class."""
    check_data(tiny_config, Workdir(tmp_path / "W"))
    sheet = np.asarray(Image.open(tmp_path / "W" / "contact_sheet.jpg"), int)
    names = sorted(COLOURS, key=lambda name: name.replace("_", " "))
    assert sheet.shape == (len(names) * CELL[1] + GAP, CELL[0] + GAP, 3)  # one column of three
    for row, name in enumerate(names):
        top = row * CELL[1] + GAP + CAPTION
        for number in range(PER_CLASS):
            left = 2 * GAP + number * (SIDE + GAP)
            image = sheet[top : top + SIDE, left : left + SIDE].reshape(-1, 3)
            bright = image[image.max(axis=1) > 150]
            assert bright.mean(axis=0).argmax() == np.argmax(COLOURS[name])
