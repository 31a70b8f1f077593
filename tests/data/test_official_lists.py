"""Benchmarks in CoOp's layout without a split file are read from their authors' lists."""

import numpy as np
import pytest

from fgvpl_jax.data import benchmark_named, load_coop
from fgvpl_jax.errors import UserError


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def write(file, lines):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def load(root, name):
    benchmark = benchmark_named(name)
    return load_coop(str(root), benchmark.split_file, benchmark.image_dir, benchmark)


def sizes(dataset):
    return [len(split or ()) for split in (dataset.train, dataset.validation, dataset.test)]


def classes_of(split, class_names):
    return {key: class_names[label] for key, label in zip(split.keys, split.labels, strict=True)}


def make_dtd(root):
    for name in benchmark_named("dtd").class_names:
        touch(*(root / "dtd" / "images" / name / f"{name}_{i}.jpg" for i in range(10)))
    return [47 * 5, 47 * 2, 47 * 3]


def make_caltech101(root):
    folders = [name.replace(" ", "_") for name in benchmark_named("caltech101").class_names[4:]]
    folders[0] = "airplanes"
    folders += ["Faces", "Leopards", "Motorbikes", "accordion", "BACKGROUND_Google", "Faces_easy"]
    place = root / "caltech-101" / "101_ObjectCategories"
    touch(*(place / folder / f"image_{i:04}.jpg" for folder in folders for i in range(10)))
    return [500, 200, 300]


def make_oxford_flowers(root):
    from scipy.io import savemat

    labels = np.repeat(np.arange(1, 103), 10)
    touch(*(root / "oxford_flowers" / "jpg" / f"image_{i + 1:05}.jpg" for i in range(1020)))
    savemat(root / "oxford_flowers" / "imagelabels.mat", {"labels": labels[None]})
    return [510, 204, 306]


def make_oxford_pets(root):
    place = root / "oxford_pets"
    lines = [f"{breed}_{i} 1 1 1" for breed in ("Abyssinian", "shiba_inu") for i in range(10)]
    write(place / "annotations" / "trainval.txt", lines)
    write(place / "annotations" / "test.txt", ["Abyssinian_200 1 1 1"])
    touch(*(place / "images" / f"{line.split()[0]}.jpg" for line in lines))
    touch(place / "images" / "Abyssinian_200.jpg")
    return [16, 4, 1]


def make_stanford_cars(root):
    from scipy.io import savemat

    place = root / "stanford_cars"
    kind = [("class", "O"), ("fname", "O")]
    for file, folder, count in (
        ("devkit/cars_train_annos.mat", "cars_train", 10),
        ("cars_test_annos_withlabels.mat", "cars_test", 3),
    ):
        rows = [(np.uint8(i % 2 + 1), f"{i:05}.jpg") for i in range(count)]
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        savemat(place / file, {"annotations": np.array(rows, dtype=kind)[None]})
        touch(*(place / folder / name for _, name in rows))
    return [8, 2, 3]


def make_sun397(root):
    place = root / "sun397"
    train = [f"/a/{kind}/sun_{i}.jpg" for kind in ("abbey", "apse/indoor") for i in range(5)]
    test = ["/a/abbey/sun_9.jpg"]
    write(place / "Training_01.txt", train)
    write(place / "Testing_01.txt", test)
    touch(*(place / "SUN397" / line[1:] for line in train + test))
    return [8, 2, 1]


def make_ucf101(root):
    place = root / "ucf101"
    train = [f"HandstandPushups/v_HandStandPushups_g01_c{i:02}" for i in range(5)]
    write(place / "ucfTrainTestlist" / "trainlist01.txt", [f"{v}.avi 37" for v in train])
    write(place / "ucfTrainTestlist" / "testlist01.txt", ["YoYo/v_YoYo_g01_c01.avi"])
    frames = place / "UCF-101-midframes"
    touch(*(frames / "Handstand_Pushups" / f"{v.split('/')[1]}.jpg" for v in train))
    touch(frames / "Yo_Yo" / "v_YoYo_g01_c01.jpg")
    return [4, 1, 1]


def make_fgvc_aircraft(root):
    place = root / "fgvc_aircraft"
    for split, numbers in (("train", (1, 2)), ("val", (3,)), ("test", (4, 5, 6))):
        write(place / f"images_variant_{split}.txt", [f"{n:07} Boeing 717" for n in numbers])
        touch(*(place / "images" / f"{n:07}.jpg" for n in numbers))
    return [2, 1, 3]


def make_imagenet(root):
    names = benchmark_named("imagenet").class_names
    write(root / "imagenet/classnames.txt", [f"n{i:08} {name}" for i, name in enumerate(names)])
    for i in range(1000):
        touch(root / f"imagenet/images/train/n{i:08}/n{i:08}_1.JPEG")
        touch(root / f"imagenet/images/val/n{i:08}/ILSVRC2012_val_{i:08}.JPEG")
    return [1000, 0, 1000]


MAKERS = {
    "dtd": make_dtd,
    "caltech101": make_caltech101,
    "oxford_flowers": make_oxford_flowers,
    "oxford_pets": make_oxford_pets,
    "stanford_cars": make_stanford_cars,
    "sun397": make_sun397,
    "ucf101": make_ucf101,
    "fgvc_aircraft": make_fgvc_aircraft,
    "imagenet": make_imagenet,
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_authors_lists_are_read_and_split(name, tmp_path):
    expected = MAKERS[name](tmp_path)
    dataset = load(tmp_path, name)
    assert sizes(dataset) == expected
    assert dataset.class_names == benchmark_named(name).class_names
    assert dataset.split_protocol.startswith(benchmark_named(name).protocol.value)
    assert (dataset.validation is None) == (name == "imagenet")


def test_labels_are_the_benchmarks(tmp_path):
    for name, expected in {
        "caltech101": {"Faces": "face", "airplanes": "airplane", "car_side": "car side"},
        "sun397": {"a/apse": "indoor apse"},
        "ucf101": {"Handstand_Pushups": "Handstand Pushups"},
        "oxford_pets": {"shiba_inu": "shiba inu"},
        "oxford_flowers": {"image_00001.jpg": "pink primrose"},
        "stanford_cars": {"cars_train/00001.jpg": "2012 Acura RL Sedan"},
        "imagenet": {"train/n00000001/": "goldfish"},
    }.items():
        MAKERS[name](tmp_path)
        dataset = load(tmp_path, name)
        found = {}
        for split in filter(None, (dataset.train, dataset.validation, dataset.test)):
            found |= classes_of(split, dataset.class_names)
        for start, class_name in expected.items():
            assert {c for key, c in found.items() if key.startswith(start)} == {class_name}


def number_classes_from_2(root):
    from scipy.io import savemat

    labels = np.repeat(np.arange(2, 104), 10)
    savemat(root / "oxford_flowers" / "imagelabels.mat", {"labels": labels[None]})


def remove_class(root):
    for file in (root / "dtd/images/banded").iterdir():
        file.unlink()
    (root / "dtd/images/banded").rmdir()


@pytest.mark.parametrize(
    ("name", "harm", "message"),
    [
        ("dtd", remove_class, "no folder of class 'banded'"),
        (
            "dtd",
            lambda root: touch(root / "dtd/images/furry/1.jpg"),
            r"images/furry: 'furry' is not a class of dtd",
        ),
        (
            "fgvc_aircraft",
            lambda root: (root / "fgvc_aircraft/images/0000004.jpg").unlink(),
            r"1 images.*0000004\.jpg",
        ),
        (
            "fgvc_aircraft",
            lambda root: write(root / "fgvc_aircraft/images_variant_val.txt", ["0000001 A300"]),
            r"images_variant_val\.txt: 'A300' is not a class",
        ),
        (
            "fgvc_aircraft",
            lambda root: write(root / "fgvc_aircraft/images_variant_val.txt", ["0000001 707-320"]),
            r"'0000001\.jpg' twice, in train and in val",
        ),
        (
            "fgvc_aircraft",
            lambda root: write(root / "fgvc_aircraft/images_variant_val.txt", ["../x 707-320"]),
            r"'\.\./x\.jpg', which leaves the folder",
        ),
        (
            "oxford_pets",
            lambda root: (root / "oxford_pets/annotations/test.txt").unlink(),
            r"test\.txt cannot be read",
        ),
        (
            "oxford_flowers",
            lambda root: (root / "oxford_flowers/imagelabels.mat").write_bytes(b"no"),
            r"imagelabels\.mat cannot be read",
        ),
        (
            "oxford_flowers",
            number_classes_from_2,
            r"labels 1 to 102 for 102 classes",
        ),
    ],
)
def test_damage_is_named(name, harm, message, tmp_path):
    MAKERS[name](tmp_path)
    harm(tmp_path)
    with pytest.raises(UserError, match=message):
        load(tmp_path, name)


def test_imagenets_codes_decide_and_other_names_are_reported(tmp_path, caplog):
    make_imagenet(tmp_path)
    file = tmp_path / "imagenet/classnames.txt"
    lines = file.read_text().splitlines()
    write(file, ["n00000000 trout", *lines[1:]])
    assert load(tmp_path, "imagenet").class_names[0] == "tench"
    assert "names 1 classes differently, such as n00000000 'trout', not 'tench'" in caplog.text
    for wrong in (lines[:-1], [lines[1], lines[0], *lines[2:]], [lines[0], *lines[:-1]]):
        write(file, wrong)
        with pytest.raises(UserError, match=r"classnames\.txt has \d+ codes"):
            load(tmp_path, "imagenet")
    write(file, [*lines[:-1], "n99999999 toilet paper"])
    with pytest.raises(UserError, match=r"lacks 1 of 1000 class folders, such as n99999999"):
        load(tmp_path, "imagenet")


def test_the_real_lists_of_aircraft(real_data, tmp_path):
    place = tmp_path / "fgvc_aircraft"
    place.mkdir()
    for file in (real_data / "coop_splits" / "fgvc_aircraft").glob("images_variant_*.txt"):
        (place / file.name).write_text(file.read_text())
        touch(*(place / "images" / f"{line.split()[0]}.jpg" for line in file.open()))
    dataset = load(tmp_path, "fgvc_aircraft")
    assert tuple(sizes(dataset)) == benchmark_named("fgvc_aircraft").counts
    assert len(set(dataset.test.labels.tolist())) == 100
