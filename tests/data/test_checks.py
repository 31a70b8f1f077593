"""All problems of a data set are found, and nothing else is reported."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import Dataset, check_dataset, load_shapes
from fgvpl_jax.data.splits import make_split

SPLITS = ("train", "validation", "test")
COUNTS = {"train": 4, "validation": 2, "test": 3}  # per class, for two classes


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        for label in (0, 1):
            for i in range(count):
                file = tmp_path / name / f"{label}_{i}.png"
                file.parent.mkdir(exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(file)
    return tmp_path


def load(root):
    splits = []
    for name in SPLITS:
        keys = sorted(file.relative_to(root).as_posix() for file in (root / name).glob("*"))
        splits.append(make_split(root, [(key, int(key.split("/")[1][0])) for key in keys]))
    return Dataset(("cat", "dog"), *splits, "made here")


def test_sound_data_has_no_problem(root):
    report = check_dataset(load(root), {name: 2 * count for name, count in COUNTS.items()})
    assert report.problems == []
    assert report.duplicates == []
    assert {name: n.tolist() for name, n in report.counts.items()} == {
        name: [count, count] for name, count in COUNTS.items()
    }


def test_counts_are_compared_with_the_published_ones(root):
    (root / "test" / "1_0.png").unlink()
    report = check_dataset(load(root), {"train": 8, "validation": 4, "test": 6})
    assert report.problems == ["test has 5 images, but 6 are published"]
    assert check_dataset(load(root)).problems == []


def test_a_split_that_should_not_be_there_and_one_that_should(root):
    dataset = load(root)
    without = Dataset(dataset.class_names, dataset.train, None, dataset.test, "made here")
    assert check_dataset(without, {"train": 8, "validation": 0, "test": 6}).problems == []
    (problem,) = check_dataset(without, {"train": 8, "validation": 4, "test": 6}).problems
    assert problem == "validation has 0 images, but 4 are published"
    (problem,) = check_dataset(dataset, {"train": 8, "validation": 0, "test": 6}).problems
    assert problem == "validation has 4 images, but 0 are published"


def test_a_class_without_images_is_named(root):
    for file in (root / "validation").glob("1_*"):
        file.unlink()
    assert check_dataset(load(root)).problems == ["validation has no image of 1 classes: dog"]


def test_unreadable_images_are_all_named_and_are_no_duplicates_of_each_other(root):
    (root / "train" / "0_1.png").write_bytes(b"")
    (root / "test" / "0_2.png").write_bytes(b"")
    report = check_dataset(load(root))
    assert list(report.unreadable["train"]) == [1]
    assert "0_1.png: the file is empty" in report.unreadable["train"][1]
    assert list(report.unreadable["test"]) == [2]
    assert report.duplicates == []
    assert len(report.problems) == 2


def test_equal_pixels_in_two_splits_are_found_whatever_the_file(root):
    photo = Image.open(root / "train" / "0_0.png")
    photo.save(root / "test" / "1_9.bmp")
    photo.save(root / "validation" / "0_9.tif")
    report = check_dataset(load(root))
    assert report.duplicates == [
        ["train: train/0_0.png", "validation: validation/0_9.tif", "test: test/1_9.bmp"]
    ]
    classes, split = report.problems
    assert "1 images are in more than one split: train: train/0_0.png = " in split
    assert classes == (
        "1 images are in two classes: train: train/0_0.png (cat) = validation: validation/0_9.tif "
        "(cat) = test: test/1_9.bmp (dog)"
    )


def test_equal_pixels_in_one_split_are_a_note(root):
    Image.open(root / "train" / "1_1.png").save(root / "train" / "1_9.png")
    report = check_dataset(load(root))
    assert (report.problems, report.duplicates) == ([], [])
    assert report.repeats == [["train: train/1_1.png", "train: train/1_9.png"]]
    assert report.notes == [
        "1 images are in one split twice: train: train/1_1.png = train: train/1_9.png"
    ]


def test_what_is_in_two_splits_as_published_is_a_note(root):
    """An image in addition to the published ones is still a problem."""
    Image.open(root / "train" / "0_0.png").save(root / "test" / "1_2.png")
    published = {name: 2 * count for name, count in COUNTS.items()}
    report = check_dataset(load(root), published)
    assert report.problems == []
    assert "train/0_0.png = test: test/1_2.png (published so" in report.notes[0]
    Image.open(root / "train" / "0_0.png").save(root / "test" / "1_9.png")
    report = check_dataset(load(root), published)
    assert [problem.split(":")[0] for problem in report.problems] == [
        "test has 7 images, but 6 are published",
        "1 images are in more than one split",
    ]


def test_what_the_source_leaves_out_is_a_note(root):
    (root / "test" / "1_0.png").unlink()
    published = {name: 2 * count for name, count in COUNTS.items()}
    dataset = replace(load(root), left_out=("odd/1.jpg", "odd/2.jpg"))
    report = check_dataset(dataset, published)
    assert report.problems == []
    assert report.notes == [
        "test has 5 images, but 6 are published: the source leaves out odd/1.jpg; odd/2.jpg"
    ]
    assert len(check_dataset(dataset, {**published, "train": 10}).problems) == 2  # 3 missing, not 2
    assert len(check_dataset(dataset, {**published, "train": 7}).problems) == 2  # 1 too many


def test_a_transposed_shape_is_another_image(root):
    pixels = np.zeros((2, 8, 3), np.uint8)
    for split, array in (("train", pixels), ("test", pixels.reshape(8, 2, 3))):
        Image.fromarray(array).save(root / split / "0_9.png")  # the same bytes, another shape
    assert check_dataset(load(root)).duplicates == []


def test_drawn_scenes_are_sound():
    assert (
        check_dataset(load_shapes(), {"train": 400, "validation": 100, "test": 600}).problems == []
    )


def write_scenes(folder, count=8):
    """Writes drawn scenes, which have the structure of photos, as PNG; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [load_shapes().train.image(40 * number).resize((96, 96)) for number in range(count)]
    for number, scene in enumerate(scenes):
        scene.save(folder / f"{number % 2}_{number}.png")
    return scenes


def test_copies_that_are_not_equal_are_notes(tmp_path):
    """A resized copy in the same split, and a compressed one in another."""
    scenes = write_scenes(tmp_path / "train")
    for name in SPLITS[1:]:
        (tmp_path / name).mkdir()
    scenes[0].resize((48, 48)).save(tmp_path / "train" / "0_90.png")
    scenes[3].save(tmp_path / "test" / "1_91.jpg", quality=60)
    report = check_dataset(load(tmp_path))
    assert report.near_copies == [
        ["train: train/1_3.png", "test: test/1_91.jpg"],
        ["train: train/0_0.png", "train: train/0_90.png"],
    ]
    assert [note.split(":")[0] for note in report.notes] == [
        "1 groups of images that look alike are in more than one split, and accuracy on copies is "
        "too high",
        "1 groups of images in one split look alike (cross-validation keeps each group in one "
        "fold)",
    ]
    published = {"train": 9, "validation": 0, "test": 1}
    assert check_dataset(load(tmp_path), published).near_copies == []


def test_near_copies_among_too_many_images_are_not_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("fgvpl_jax.data.checks.MOST_PHOTOS", 3)
    write_scenes(tmp_path / "train")
    report = check_dataset(load(tmp_path))
    assert "looked for among at most 3 images" in report.notes[0]
