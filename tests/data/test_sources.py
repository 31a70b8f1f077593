"""CoOp's layout and plain folders are read; contradictions and missing files are refused."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import benchmark_named, load_coop, load_folder
from fgvpl_jax.data.coop import check_folders
from fgvpl_jax.data.entries import Reason
from fgvpl_jax.data.split_names import split_role, split_roles
from fgvpl_jax.errors import UserError


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
        ({"test": [["./a//1.png", 0, "Annual_Crop"]]}, r"'a/1\.png' twice, in train and in test"),
        ({"val": [["b/3.png", 2, "Annual Crop"]]}, "'Annual_Crop' and 'Annual Crop'"),
        ({"val": [["b/3.png", 2, "Sea"]]}, "'sea' and 'Sea', which are one name"),
        ({"val": [["b/3.png", 2, "_"]]}, "a class is called '_'"),
        ({"test": []}, "no test image"),
        (
            {"train": [["a/1.png", 0, "sea"]], "val": [], "test": [["a/2.png", 0, "sea"]]},
            "has 1 class: at least two are needed",
        ),
    ],
)
def test_contradictions_in_a_split_file_are_named(coop, splits, message):
    root, rows = coop
    with pytest.raises(UserError, match=message):
        load_coop(*write(root, change(rows, **splits)))


def test_missing_places_are_named(coop):
    root, rows = coop
    where = write(root, rows)
    with pytest.raises(UserError, match=r"there is no folder /none: set data\.root to"):
        load_coop("/none", *where[1:])
    with pytest.raises(UserError, match=r"other\.json is missing: set data\.split_file"):
        load_coop(where[0], "set/other.json", where[2])
    with pytest.raises(UserError, match=r"pictures is missing: data\.root is"):
        load_coop(where[0], where[1], "set/pictures")
    (root / "set" / "split.json").write_text("[")
    with pytest.raises(UserError, match="not a CoOp split file"):
        load_coop(*where)


@pytest.mark.slow
def test_the_complete_eurosat(real_data, tmp_path):
    with tarfile.open(real_data / "eurosat.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    eurosat = benchmark_named("eurosat")
    where = (str(tmp_path), eurosat.split_file, eurosat.image_dir)
    dataset = load_coop(*where, eurosat)
    assert dataset.split_protocol == "split file eurosat/split_zhou_EuroSAT.json"
    assert dataset.test.image(0).size == (64, 64)
    (tmp_path / eurosat.split_file).unlink()
    own = load_coop(*where, eurosat)
    for split in ("train", "validation", "test"):
        theirs, ours = getattr(dataset, split), getattr(own, split)
        assert np.bincount(ours.labels).tolist() == np.bincount(theirs.labels).tolist()


def test_a_split_file_of_other_classes_is_refused(coop):
    root, rows = coop
    with pytest.raises(UserError, match=r"class 0 'Annual Crop', the benchmark 'Annual Crop Land'"):
        load_coop(*write(root, rows), benchmark_named("eurosat"))


def test_a_split_file_that_contradicts_the_folders_names_is_refused(coop):
    root, _ = coop
    for name in ("a", "deep/b"):
        touch_image(root / "set" / "images" / name / "7.png")
    named = {
        "train": [["a/7.png", 0, "a"], ["b/1.png", 1, "b"]],
        "val": [],
        "test": [["b/2.png", 1, "b"]],
    }
    assert load_coop(*write(root, named)).class_names == ("a", "b")
    named["test"].append(["deep/b/7.png", 0, "a"])
    with pytest.raises(UserError, match=r"calls deep/b/7\.png 'a', but its folder is .* class 'b'"):
        load_coop(*write(root, named))


@pytest.mark.parametrize(
    ("benchmark", "key", "name", "folder_of"),
    [
        ("eurosat", "AnnualCrop/1.jpg", "Annual Crop Land", None),
        ("eurosat", "AnnualCrop/1.jpg", "Forest", "Annual Crop Land"),
        ("sun397", "a/apse/indoor/sun_x.jpg", "indoor apse", None),
        ("sun397", "a/apse/indoor/sun_x.jpg", "abbey", "indoor apse"),
        ("ucf101", "Yo_Yo/v_YoYo_g01_c01.jpg", "Yo Yo", None),
        ("ucf101", "Yo_Yo/v_YoYo_g01_c01.jpg", "Archery", "Yo Yo"),
        ("stanford_cars", "cars_train/00001.jpg", "2012 Acura RL Sedan", None),
        ("oxford_pets", "Abyssinian_1.jpg", "beagle", None),
    ],
)
def test_folders_are_known_as_the_benchmark_knows_them(benchmark, key, name, folder_of):
    entry = benchmark_named(benchmark)
    folded = [known.replace("_", " ").casefold() for known in entry.class_names]
    parts = {"train": [(key, folded.index(name.casefold()))]}
    where = (parts, entry.class_names, Path("split.json"), entry)
    if folder_of is None:
        check_folders(*where)
    else:
        with pytest.raises(UserError, match=f"(?i)folder is that of class '{folder_of}'"):
            check_folders(*where)


def test_links_are_followed_wherever_they_lead(coop, tmp_path_factory):
    """CoOp's instructions ask users to link their data into place."""
    root, rows = coop
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    (root / "set" / "images").rename(elsewhere)
    (root / "set" / "images").symlink_to(elsewhere)
    (elsewhere / "a" / "1.png").rename(elsewhere.parent / "far.png")
    (elsewhere / "a" / "1.png").symlink_to(elsewhere.parent / "far.png")
    dataset = load_coop(*write(root, rows))
    assert dataset.train.image(0).size == (4, 4)
    (elsewhere.parent / "far.png").unlink()
    with pytest.raises(UserError, match=r"1 images.*a/1\.png"):
        load_coop(*write(root, rows))


@pytest.fixture
def photos(tmp_path):
    for key in ("red_fox/1.JPG", "red_fox/deep/er/2.png", "Grüße an alle/1.png"):
        touch_image(tmp_path / key)
    for stray in (".DS_Store", "red_fox/.hidden.png", "__MACOSX/x/1.png"):
        touch_image(tmp_path / stray)
    (tmp_path / "red_fox" / "notes.txt").write_text("seen in May")
    return tmp_path


def test_a_plain_folder(photos):
    dataset = load_folder(str(photos))
    assert dataset.class_names == ("Grüße an alle", "red fox")
    assert dataset.train.keys == ("Grüße an alle/1.png", "red_fox/1.JPG", "red_fox/deep/er/2.png")
    assert dataset.train.labels.tolist() == [0, 1, 1]
    assert dataset.validation is None
    assert dataset.test is None
    assert dataset.skipped == {
        Reason.SYSTEM: (".DS_Store", "__MACOSX/"),
        Reason.HIDDEN: ("red_fox/.hidden.png",),
        Reason.OTHER: ("red_fox/notes.txt",),
    }


def test_split_folders(tmp_path):
    for key in ("train/a/1.png", "train/b/1.png", "valid/A/2.png", "test/b/3.png"):
        touch_image(tmp_path / key)
    dataset = load_folder(str(tmp_path))
    assert dataset.class_names == ("a", "b")
    assert dataset.validation.keys == ("valid/A/2.png",)
    assert dataset.validation.labels.tolist() == [0]
    assert dataset.test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("keys", "other"),
    [
        (("a/1.png", "b/1.png", "other/x/2.png", "other/1.png"), ("other/1.png", "other/x/2.png")),
        (
            ("train/a/1.png", "train/b/1.png", "other/1.png", "train/Other/1.png", "val/a/1.png"),
            ("other/1.png", "train/Other/1.png"),
        ),
        (("train/a/1.png", "train/b/1.png", "train/other/1.png"), ("train/other/1.png",)),
        (("a/1.png", "b/1.png", "others/1.png"), None),
    ],
)
def test_photos_of_other_things_are_no_class(tmp_path, keys, other):
    for key in keys:
        touch_image(tmp_path / key)
    dataset = load_folder(str(tmp_path))
    assert (None if dataset.other is None else dataset.other.keys) == other
    if other is not None:
        assert dataset.class_names == ("a", "b")
        assert not dataset.other.labels.any()
        assert not dataset.skipped


def test_a_folder_other_that_may_be_a_class_is_explained(tmp_path):
    for key in ("a/1.png", "other/1.png"):
        touch_image(tmp_path / key)
    with pytest.raises(UserError, match="the folder other is no class, rename it"):
        load_folder(str(tmp_path))
    for key in ("train/a/1.png", "train/b/1.png", "test/other/1.png"):
        touch_image(tmp_path / "splits" / key)
    with pytest.raises(UserError, match=r"other is for photos of no class, and .*test has none"):
        load_folder(str(tmp_path / "splits"))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("train", "eval"),
        ("seg_train", "seg_test"),
        ("train_images", "test-images"),
        ("train2017", "test2017"),
        ("TrainSet", "held-out"),
        ("birds_train", "birds_test"),
        ("BirdsTrain", "BirdsTest"),
        ("train", "hold-out"),
        ("Birds-Training-Images", "Birds-Testing-Images"),
    ],
)
def test_splits_are_known_by_their_usual_names(tmp_path, train, test):
    for key in (f"{train}/a/1.jfif", f"{train}/b/1.jpe", f"{test}/a/2.png"):
        touch_image(tmp_path / key)
    dataset = load_folder(str(tmp_path))
    assert dataset.train.keys == (f"{train}/a/1.jfif", f"{train}/b/1.jpe")
    assert dataset.test.keys == (f"{test}/a/2.png",)


@pytest.mark.parametrize("name", ["dev", "Validation", "VALID", "val_set", "validation data"])
def test_validation_splits_are_known_by_their_usual_names(tmp_path, name):
    for key in ("train/a/1.png", "train/b/1.png", f"{name}/a/2.png"):
        touch_image(tmp_path / key)
    dataset = load_folder(str(tmp_path))
    assert dataset.validation.keys == (f"{name}/a/2.png",)
    assert dataset.test is None


def test_words_that_only_some_names_share_make_no_splits():
    assert split_roles(["test tube", "train"]) == {"train": "train"}
    assert split_roles(["birds_train", "fish_test"]) == {}
    assert split_roles(["birds_train", "birds_training"]) == {}
    assert split_roles(["birds_train"]) == {}
    assert split_roles(["birds", "birds_test"]) == {}
    assert split_roles(["x_train", "x_dev", "x_eval"]) == {
        "x_train": "train",
        "x_dev": "validation",
        "x_eval": "test",
    }


@pytest.mark.parametrize("name", ["test tube", "trainers", "training shoes", "values", "devil", ""])
def test_other_names_are_no_splits(name):
    assert split_role(name) is None


@pytest.mark.parametrize("keys", [["train/1.png", "bus/1.png"], ["train/deep/1.png", "bus/1.png"]])
def test_a_class_may_be_called_train(tmp_path, keys):
    for key in keys:
        touch_image(tmp_path / key)
    assert load_folder(str(tmp_path)).class_names == ("bus", "train")


@pytest.mark.parametrize("place", [".", "train"])
def test_photos_in_no_class_are_reported(tmp_path, place):
    for key in ("train/a/1.png", "train/b/1.png", f"{place}/1.png", f"{place}/2"):
        touch_image(tmp_path / key)
    (tmp_path / place / "3.HEIC").write_bytes(b"x")
    dataset = load_folder(str(tmp_path))
    assert len(dataset.train) == 2
    prefix = "" if place == "." else "train/"
    assert dataset.skipped == {
        Reason.FOREIGN: (f"{prefix}3.HEIC",),
        Reason.LOOSE: (f"{prefix}1.png", f"{prefix}2"),
    }


def test_links_to_folders_are_followed_but_loops_end(tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    touch_image(elsewhere / "1.png")
    for key in ("a/1.png", "b/deep/1.png"):
        touch_image(tmp_path / key)
    (tmp_path / "a" / "more").symlink_to(elsewhere)
    (tmp_path / "b" / "deep" / "loop").symlink_to(tmp_path / "b")
    assert load_folder(str(tmp_path)).train.keys == ("a/1.png", "a/more/1.png", "b/deep/1.png")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["sea_lion/1.png", "Sea  lion/1.png"], "'Sea  lion' and 'sea_lion'.*one name"),
        (["cafe\u0301/1.png", "caf\u00e9/1.png"], "one name"),
        (["only/1.png"], "has one class, only: put the photos .* at least two classes$"),
        (["only/a/1.png", "only/b/1.png"], r"one class, only: .*or set data\.root to .*only$"),
        (["1.png"], r"no folder of a class: .*or set data\.root to .* is a class$"),
        (["a/1.png", "b/"], r"b holds no image that can be read \(it is empty\): add some"),
        (["train/a/1.png", "train/b/1.png", "test/c/1.png", "test/a/1.png"], r"lacks: \['c'\]"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png"], "both val and valid"),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "test has no class folder"),
        (["_/1.png", "b/1.png"], "a class is called '_'"),
        (["caf\udce9/1.png", "b/1.png"], "which is not UTF-8: rename it"),
        (["train/a/1.png", "later/a/1.png", "train/b/1.png", "later/b/1.png"], "'later'.*next to"),
        (["train/a/1.png", "test/a/1.png", "extra/1.png"], r"\['extra'\] next to test, train"),
        (["train/1.png", "test/1.png"], "train has no folder of a class: .* two classes$"),
        (
            [f"{name}/{split}/1.png" for name in ("a", "b") for split in ("Train", "test")],
            "a, b holds the folders test, train: move .* train/a",
        ),
        (["val/a/1.png", "Test/a/1.png"], "has Test, val, but no folder train"),
        (["test/a/1.png", "testing/a/1.png"], "has test, testing, but no folder train"),
    ],
)
def test_folders_that_make_no_sense_are_explained(tmp_path, keys, message):
    for key in keys:
        if key.endswith("/"):
            (tmp_path / key).mkdir()
        else:
            touch_image(tmp_path / key)
    with pytest.raises(UserError, match=message):
        load_folder(str(tmp_path))


def test_a_missing_folder_is_named():
    with pytest.raises(UserError, match=r"there is no folder /none: set data\.root to"):
        load_folder("/none")


def test_a_class_without_a_readable_photo_is_explained(tmp_path):
    touch_image(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "1.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"b holds no image that can be read \(1 pictures.*1\.heic"):
        load_folder(str(tmp_path))


def test_classes_that_look_like_splits_are_reported(tmp_path, caplog):
    for place in ("first", "second"):
        for name in ("red", "green"):
            touch_image(tmp_path / place / name / "1.png")
    assert load_folder(str(tmp_path)).class_names == ("first", "second")
    assert "first, second holds the folders green, red: if first, second are splits" in caplog.text


def test_a_nested_split_folder_is_entered(tmp_path):
    for key in ("seg_train/seg_train/a/1.png", "seg_train/seg_train/b/1.png"):
        touch_image(tmp_path / key)
    touch_image(tmp_path / "seg_test" / "a" / "2.png")
    dataset = load_folder(str(tmp_path))
    assert dataset.class_names == ("a", "b")
    assert dataset.test.keys == ("seg_test/a/2.png",)
