"""CoOp's layout and plain folders: what is read, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from fgvpl_jax.data import load_coop, load_folder, read_split_file
from fgvpl_jax.errors import UserError

# Table 1 of the paper.
COUNTS = {
    "Caltech101": (100, 4128, 1649, 2465),
    "DescribableTextures": (47, 2820, 1128, 1692),
    "EuroSAT": (10, 13500, 5400, 8100),
    "OxfordFlowers": (102, 4093, 1633, 2463),
    "OxfordPets": (37, 2944, 736, 3669),
    "StanfordCars": (196, 6509, 1635, 8041),
    "UCF101": (101, 7639, 1898, 3783),
}


def touch_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format="PNG")


@pytest.fixture
def coop(tmp_path):
    rows = {
        "train": [["a/1.png", 0, "Annual_Crop"], ["b/1.png", 1, "sea"]],
        "val": [["a/2.png", 0, "Annual_Crop"]],
        "test": [["b/2.png", 1, "sea"]],
    }
    for split in rows.values():
        for key, _, _ in split:
            touch_image(tmp_path / "set" / "images" / key)
    return tmp_path, rows


def write(root, rows):
    (root / "set" / "split.json").write_text(json.dumps(rows))
    return str(root), "set/split.json", "set/images"


def test_a_coop_split_is_read_as_it_stands(coop):
    root, rows = coop
    dataset = load_coop(*write(root, rows))
    assert dataset.class_names == ("Annual Crop", "sea")
    assert dataset.train.keys == ("a/1.png", "b/1.png")
    assert dataset.train.labels.tolist() == [0, 1]
    assert (len(dataset.validation), len(dataset.test)) == (1, 1)
    assert dataset.test.image(0).size == (4, 4)


def change(rows, **splits):
    return rows | splits


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [["a/9.png", 0, "Annual_Crop"], ["b/1.png", 1, "sea"]]}, r"1 images.*a/9\.png"),
        ({"test": [["b/2.png", 0, "sea"]]}, "label 0 both 'Annual_Crop' and 'sea'"),
        ({"test": [["b/2.png", 3, "lake"]]}, r"labels \[0, 1, 3\]"),
        ({"test": [["b/2.png", "1", "sea"]]}, "not a CoOp split file"),
        ({"test": [["b/2.png", 1]]}, "not a CoOp split file"),
        ({"test": None}, "not a CoOp split file"),
        ({"test": [["../x.png", 1, "sea"]]}, r"'\.\./x\.png'.*leaves"),
        ({"test": [["/etc/x.png", 1, "sea"]]}, "leaves"),
        ({"test": [["a/1.png", 0, "Annual_Crop"]]}, r"'a/1\.png' twice, in train and in test"),
        ({"val": [["b/2.png", 1, "sea"]] * 2}, r"'b/2\.png' twice, in val and in val"),
        ({"val": [["b/3.png", 2, "Annual Crop"]]}, "'Annual_Crop' and 'Annual Crop'"),
        ({"val": [["b/3.png", 2, "_"]]}, "a class is called '_'"),
        ({"test": []}, "no test image"),
    ],
)
def test_contradictions_in_a_split_file_are_named(coop, splits, message):
    root, rows = coop
    with pytest.raises(UserError, match=message):
        load_coop(*write(root, change(rows, **splits)))


def test_missing_places_are_named(coop):
    root, rows = coop
    where = write(root, rows)
    with pytest.raises(UserError, match="there is no folder /none"):
        load_coop("/none", *where[1:])
    with pytest.raises(UserError, match=r"other\.json is missing"):
        load_coop(where[0], "set/other.json", where[2])
    with pytest.raises(UserError, match=r"pictures is missing"):
        load_coop(where[0], where[1], "set/pictures")
    (root / "set" / "split.json").write_text("[")
    with pytest.raises(UserError, match="not a CoOp split file"):
        load_coop(*where)


@pytest.mark.parametrize("name", COUNTS)
def test_published_split_files_have_the_papers_counts(name):
    folder = os.environ.get("FGVPL_COOP_SPLITS")
    if folder is None:
        pytest.skip("set FGVPL_COOP_SPLITS to a folder with CoOp's split files")
    class_names, entries = read_split_file(Path(folder) / f"split_zhou_{name}.json")
    found = (len(class_names), *(len(entries[split]) for split in ("train", "val", "test")))
    assert found == COUNTS[name]
    assert not any("_" in class_name for class_name in class_names)


def test_the_complete_eurosat():
    folder = os.environ.get("FGVPL_EUROSAT")
    if folder is None:
        pytest.skip("set FGVPL_EUROSAT to the folder with 2750/ and the split file")
    dataset = load_coop(folder, "split_zhou_EuroSAT.json", "2750")
    assert dataset.class_names[0] == "Annual Crop Land"
    assert len(dataset.test) == 8100
    assert dataset.test.image(0).size == (64, 64)


@pytest.fixture
def photos(tmp_path):
    for key in ("red_fox/1.JPG", "red_fox/deep/er/2.png", "Grüße an alle/1.png"):
        touch_image(tmp_path / key)
    for stray in ("red_fox/notes.txt", ".DS_Store", "red_fox/.hidden.png", "__MACOSX/x/1.png"):
        touch_image(tmp_path / stray)
    return tmp_path


def test_a_plain_folder(photos):
    dataset = load_folder(str(photos))
    assert dataset.class_names == ("Grüße an alle", "red fox")
    assert dataset.train.keys == ("Grüße an alle/1.png", "red_fox/1.JPG", "red_fox/deep/er/2.png")
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.validation is None
    assert dataset.test is None


def test_split_folders(tmp_path):
    for key in ("train/a/1.png", "train/b/1.png", "valid/A/2.png", "test/b/3.png"):
        touch_image(tmp_path / key)
    dataset = load_folder(str(tmp_path))
    assert dataset.class_names == ("a", "b")
    assert dataset.validation.keys == ("valid/A/2.png",)
    assert dataset.validation.labels.tolist() == [0]
    assert dataset.test.labels.tolist() == [1]


def test_a_class_may_be_called_train(tmp_path):
    for key in ("train/1.png", "bus/1.png"):
        touch_image(tmp_path / key)
    assert load_folder(str(tmp_path)).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["sea_lion/1.png", "Sea  lion/1.png"], "'Sea  lion' and 'sea_lion'.*both class"),
        (["cafe\u0301/1.png", "caf\u00e9/1.png"], "both class"),
        (["only/1.png"], "1 class"),
        (["1.png"], "0 class"),
        (["a/1.png", "b/readme.txt"], "b holds no image"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png", "test/a/1.png"], r"lacks: \['c'\]"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "both val and valid"),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "test has no class folder"),
        (["_/1.png", "b/1.png"], "a class is called '_'"),
    ],
)
def test_folders_that_make_no_sense_are_explained(tmp_path, keys, message):
    for key in keys:
        touch_image(tmp_path / key)
    with pytest.raises(UserError, match=message):
        load_folder(str(tmp_path))


def test_a_missing_folder_is_named():
    with pytest.raises(UserError, match="there is no folder /none"):
        load_folder("/none")


def test_photos_that_cannot_be_read_are_told_of(photos, caplog):
    (photos / "red_fox" / "phone.HEIC").write_bytes(b"x")
    dataset = load_folder(str(photos))
    assert len(dataset.train) == 3
    assert "1 photos below" in caplog.text
    assert ".heic" in caplog.text
