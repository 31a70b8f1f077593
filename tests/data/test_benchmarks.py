"""The table of benchmarks agrees with Table 1, TFDS's lists and CoOp's files."""

import json
from importlib import import_module
from pathlib import Path

import pytest

from fgvpl_jax.data import BENCHMARKS, benchmark_named, read_split_file
from fgvpl_jax.data.coop import check_folders
from fgvpl_jax.errors import UserError

# Table 1 of the paper: classes, train, validation, test.
TABLE_1 = {
    "imagenet": (1000, 1_281_167, 0, 50_000),
    "caltech101": (100, 4128, 1649, 2465),
    "oxford_pets": (37, 2944, 736, 3669),
    "stanford_cars": (196, 6509, 1635, 8041),
    "oxford_flowers": (102, 4093, 1633, 2463),
    "food101": (101, 50_500, 20_200, 30_300),
    "fgvc_aircraft": (100, 3334, 3333, 3333),
    "sun397": (397, 15_880, 3970, 19_850),
    "dtd": (47, 2820, 1128, 1692),
    "eurosat": (10, 13_500, 5400, 8100),
    "ucf101": (101, 7639, 1898, 3783),
}
PUBLISHED = [name for name in TABLE_1 if name not in ("imagenet", "fgvc_aircraft")]


def test_the_table_is_table_1():
    found = {name: (len(b.class_names), *b.counts) for name, b in BENCHMARKS.items()}
    assert found == TABLE_1


@pytest.mark.parametrize("name", TABLE_1)
def test_every_benchmark_has_a_config(name):
    config = import_module(f"configs.{name}").get_config()
    benchmark = benchmark_named(name)
    assert config.benchmark == name
    assert config.epochs is None  # each method has its own number of epochs
    assert config.data.templates == benchmark.templates
    assert config.data.split_file == benchmark.split_file
    assert all(template.count("{}") == 1 for template in benchmark.templates)


@pytest.mark.parametrize(
    ("benchmark", "name", "expected"),
    [
        ("eurosat", "AnnualCrop", "Annual Crop Land"),
        ("eurosat", "Forest", "Forest"),
        ("caltech101", "Faces", "face"),
        ("caltech101", "airplanes", "airplane"),
        ("caltech101", "car_side", "car side"),
        ("oxford_pets", "Egyptian_Mau", "egyptian mau"),
        ("oxford_flowers", "pink-yellow dahlia?", "pink-yellow dahlia"),
        ("stanford_cars", "Acura RL Sedan 2012", "2012 Acura RL Sedan"),
        ("stanford_cars", "2012 Acura RL Sedan", "2012 Acura RL Sedan"),
        ("sun397", "/a/apartment_building/outdoor", "outdoor apartment building"),
    ],
)
def test_names_are_mapped_to_coops(benchmark, name, expected):
    entry = benchmark_named(benchmark)
    assert entry.class_names[entry.label_of(name)] == expected


def test_classes_outside_the_protocol_are_left_out():
    caltech = benchmark_named("caltech101")
    assert caltech.label_of("BACKGROUND_Google") is None
    assert caltech.label_of("faces_easy") is None


def test_unknown_names_are_reported():
    with pytest.raises(UserError, match=r"'Swamp' is not a class of eurosat, which has 10 classes"):
        benchmark_named("eurosat").label_of("Swamp")
    with pytest.raises(UserError, match="benchmark is 'mnist'"):
        benchmark_named("mnist")


def names_of_tfds(benchmark):
    import tensorflow_datasets as tfds

    place = Path(tfds.__file__).parent
    lists = {
        "caltech101": "image_classification/caltech101_labels.txt",
        "dtd": "image_classification/dtd_key_attributes.txt",
        "food101": "image_classification/food-101_classes.txt",
        "sun397": "image_classification/sun397_labels.txt",
    }
    constants = {
        "eurosat": ("image_classification.eurosat", "_LABELS"),
        "stanford_cars": ("image_classification.cars196", "_NAMES"),
        "oxford_pets": (
            "datasets.oxford_iiit_pet.oxford_iiit_pet_dataset_builder",
            "_LABEL_CLASSES",
        ),
        "oxford_flowers": (
            "datasets.oxford_flowers102.oxford_flowers102_dataset_builder",
            "_NAMES",
        ),
    }
    if benchmark in lists:
        return (place / lists[benchmark]).read_text().split()
    module, constant = constants[benchmark]
    return getattr(import_module(f"tensorflow_datasets.{module}"), constant)


@pytest.mark.parametrize(
    "name",
    [n for n in PUBLISHED if n != "ucf101"],
)
def test_the_names_of_tfds_are_all_known(name):
    benchmark = benchmark_named(name)
    labels = [benchmark.label_of(theirs) for theirs in names_of_tfds(name)]
    known = [label for label in labels if label is not None]
    assert sorted(known) == list(range(len(benchmark.class_names)))


def test_tfds_numbers_imagenets_classes_in_the_order_of_their_codes():
    """CoOp's list must too; names do not help, so the position alone determines the class."""
    import tensorflow_datasets as tfds

    file = Path(tfds.__file__).parent / "datasets" / "imagenet2012" / "labels.txt"
    codes = file.read_text().split()
    assert codes == sorted(set(codes))
    names = dict(zip(codes, benchmark_named("imagenet").class_names, strict=True))
    some = {"n01440764": "tench", "n02510455": "giant panda", "n15075141": "toilet paper"}
    assert {code: names[code] for code in some} == some


@pytest.mark.parametrize("name", TABLE_1)
def test_class_names_are_the_published_ones(name, real_data):
    file = real_data / "class_names" / f"{name}.json"
    if not file.exists():
        pytest.skip(f"{file.name} is not there")
    theirs = json.loads(file.read_text(encoding="utf-8"))
    assert [name.replace("_", " ") for name in theirs] == list(benchmark_named(name).class_names)


def published_split(benchmark, real_data):
    file = real_data / "coop_splits" / Path(benchmark.split_file).name
    if not file.exists():
        pytest.skip(f"{file.name} is not there")
    return file, *read_split_file(file)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_split_files_have_table_1s_counts_and_names(name, real_data):
    benchmark = benchmark_named(name)
    file, class_names, parts = published_split(benchmark, real_data)
    assert class_names == benchmark.class_names
    check_folders(parts, class_names, file, benchmark)
    assert tuple(len(parts[split]) for split in ("train", "val", "test")) == benchmark.counts


@pytest.mark.parametrize("name", ["caltech101", "eurosat"])
def test_labels_of_tfds_become_the_folders_of_the_published_split(name, real_data):
    benchmark = benchmark_named(name)
    _, _, parts = published_split(benchmark, real_data)
    published = {key.split("/")[0]: label for images in parts.values() for key, label in images}
    found = {
        benchmark.tfds.folders.get(theirs, theirs): benchmark.label_of(theirs)
        for theirs in names_of_tfds(name)
    }
    assert {folder: label for folder, label in found.items() if label is not None} == published


@pytest.mark.parametrize(
    ("name", "split", "file"),
    [
        ("stanford_cars", "train", "00001"),
        ("stanford_cars", "test", "08041"),
        ("oxford_pets", "test", "Abyssinian_122.jpg"),
        ("oxford_flowers", "validation", "image_00190.jpg"),
        ("dtd", "train", "banded/banded_0133.jpg"),
    ],
)
def test_file_names_of_tfds_become_the_keys_of_the_published_split(name, split, file, real_data):
    """File names are spelled as in the sources of TFDS's builders."""
    benchmark = benchmark_named(name)
    _, _, parts = published_split(benchmark, real_data)
    key = benchmark.tfds.key.format(split=split, label="", file=file)
    assert any(key == published for images in parts.values() for published, _ in images)
