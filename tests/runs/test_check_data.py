"""Checks of a data set, from its config to the printed report, data.json and contact sheet."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import BENCHMARKS, load_folder, tfds_prepare
from fgvpl_jax.data.benchmarks import Counts
from fgvpl_jax.data.entries import Reason
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


# Contents that say what a file is, whatever its name says.
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
TEXT = b"seen in May"


def write_odd_entries(root):
    """Writes 100 entries, of which 30 are photos under odd names; returns the keys of the photos.

    `@eaDir` and `.git` are folders, each of which is one entry.
    """
    rng = np.random.default_rng(0)
    names = [f"{number}.{ending}" for number, ending in enumerate(("jpg", "JPG", "mpo", "png"))]
    names += ["4", "5.jpg?w=640", "6.jpg.1", "7.cr3", "8.jpg_large", "9.data", "__10.jpg"]
    names += ["Möwe.jpg", "x y.jpg", "a" * 100 + ".jpg", "deep/er/1.jpg"]
    for label in ("heron", "owl"):
        for name in names:
            (root / label / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(
                root / label / name, "JPEG"
            )
    place = root / "heron"
    for number in range(10):
        (place / f"note {number}.txt").write_bytes(TEXT)
        (place / f"phone {number}.heic").write_bytes(HEIC)
        (place / f".hidden {number}.jpg").write_bytes(TEXT)
        (place / f"._{number}.jpg").write_bytes(TEXT)
        (place / f"SYNOPHOTO_THUMB_{number}.jpg").write_bytes(TEXT)
    for number in range(4):
        (place / f"far {number}").symlink_to(f"/nowhere/{number}")
        (place / f"half {number}.jpg.part").write_bytes(b"\xff\xd8\xff\xe0")
        (place / f"large {number}").write_bytes(b"version https://git-lfs.github.com/spec/v1")
        (root / f"loose {number}.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    for name in ("@eaDir", ".git"):
        (root / name / "deep").mkdir(parents=True)
        (root / name / "deep" / "1.jpg").write_bytes(TEXT)
    os.mkfifo(place / "pipe")
    (place / "more.zip").write_bytes(b"PK\3\4")
    return {f"{label}/{name}" for label in ("heron", "owl") for name in names}


def test_a_folder_of_100_odd_entries_is_surveyed(tmp_path, tiny_config):
    photos = write_odd_entries(tmp_path / "photos")
    tiny_config.data.root = str(tmp_path / "photos")
    lines, problems = check_data(tiny_config, Workdir(tmp_path / "W"))
    assert [line.split() for line in lines[2:5]] == [["heron", "15"], ["owl", "15"], ["all", "30"]]
    start = lines.index("skipped: 70 entries of the folder")
    expected = [
        (4, Reason.BROKEN_LINK, "heron/far 0, heron/far 1, heron/far 2, …"),
        (4, Reason.POINTER, "heron/large 0, heron/large 1, heron/large 2, …"),
        (10, Reason.FOREIGN, "heron/phone 0.heic, heron/phone 1.heic, heron/phone 2.heic, …"),
        (4, Reason.LOOSE, "loose 0.jpg, loose 1.jpg, loose 2.jpg, …"),
        (4, Reason.UNFINISHED, "heron/half 0.jpg.part, heron/half 1.jpg.part, heron/half 2.jpg.pa"),
        (1, Reason.ARCHIVE, "heron/more.zip"),
        (1, Reason.SPECIAL, "heron/pipe"),
        (11, Reason.THUMBNAIL, "@eaDir/, heron/SYNOPHOTO_THUMB_0.jpg, heron/SYNOPHOTO_THUMB_1.jp"),
        (10, Reason.SYSTEM, "heron/._0.jpg, heron/._1.jpg, heron/._2.jpg, …"),
        (11, Reason.HIDDEN, ".git/, heron/.hidden 0.jpg, heron/.hidden 1.jpg, …"),
        (10, Reason.OTHER, "heron/note 0.txt, heron/note 1.txt, heron/note 2.txt, …"),
    ]
    for line, (count, reason, names) in zip(lines[start + 1 : start + 12], expected, strict=True):
        assert line.startswith(f"  {count} {reason.value}: {names}")
    assert [problem.split(" (")[0] for problem in problems] == [
        "skipped 4 links to files that do not exist",
        "skipped 4 pointers to files that are stored elsewhere",
    ]
    assert not any("nothing is wrong" in line for line in lines)
    stored = json.loads((tmp_path / "W" / "data.json").read_text())
    assert sum(map(len, stored["skipped"].values())) == 70
    assert stored["problems"] == problems
    dataset = load_folder(tiny_config.data.root)
    assert set(dataset.train.keys) == photos
    for place in range(len(dataset.train)):
        assert dataset.train.image(place).size == (32, 24)


def test_what_is_no_loss_is_surveyed_but_not_wrong(tmp_path, tiny_config):
    root = tmp_path / "photos"
    write_photo_folders(root, 2)
    (root / "notes.txt").write_bytes(TEXT)
    tiny_config.data.root = str(root)
    lines, problems = check_data(tiny_config, Workdir(tmp_path / "W"))
    assert problems == []
    assert "  1 files that are no pictures: notes.txt" in lines
    assert lines[-1].startswith("nothing is wrong: every image of these can be read")


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
