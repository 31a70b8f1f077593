"""Table of the paper's eleven benchmarks.

To add a benchmark, add an entry here and a file in `configs/`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from types import MappingProxyType
from typing import NamedTuple

from fgvpl_jax.data import official_lists
from fgvpl_jax.data.official_lists import ListReader
from fgvpl_jax.data.split_protocol import SplitProtocol
from fgvpl_jax.errors import UserError


class Counts(NamedTuple):
    """Number of images in each split (Table 1); 0 if there is no validation split."""

    train: int
    validation: int
    test: int


@dataclass(frozen=True)
class TfdsExamples:
    """Describes how TFDS's examples of a benchmark map to CoOp's files.

    Attributes:
        name: TFDS builder, with its version if the default is not the newest, and its config.
        splits: Maps each part of the authors' division ("train", "val", "test") to a TFDS split.
        file_feature: Feature that holds the file name of an example.
        key: Template for CoOp's path of an example, with the fields {split}, {label} and {file}.
        folders: Maps TFDS's splits and labels to CoOp's folders where the two differ.
        absent: Keys of the images that the builder leaves out on purpose.
        other_archives: File names of archives that TFDS lists for the builder but that this
            version and config do not need.
        own_builder: Module of this project's builder, which defines `ARCHIVE` and does not need
            TensorFlow; empty if the builder is TFDS's, which unpacks with TensorFlow.
    """

    name: str
    splits: Mapping[str, str]
    file_feature: str = "file_name"
    key: str = "{file}"
    folders: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    absent: frozenset[str] = frozenset()
    other_archives: frozenset[str] = frozenset()
    own_builder: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Entry of one benchmark in the table.

    Attributes:
        name: Value of `config.benchmark`, and the key of the class names in `class_names.json`.
        templates: Text templates of Table 1; for ImageNet, CLIP's seven templates.
        counts: Number of images in each split (Table 1).
        image_dir: CoOp's image folder, relative to the data root; the first component of this
            path is the folder that holds the lists.
        protocol: Rule that makes the splits if there is no split file.
        read_lists: Reader of the authors' lists in CoOp's layout.
        split_file: CoOp's split file, relative to the data root; empty if the authors' lists
            define the splits.
        tfds: Mapping from TFDS; None if TFDS does not have the photos of this benchmark.
        respell: Changes a class name from folders, lists or TFDS to CoOp's word order.
        renamed: Maps lower-case class names to the names that CoOp uses instead.
        left_out: Lower-case names of classes that are not part of the benchmark.
        names_by_position: Whether other sources name the classes by codes, in the same order.
    """

    name: str
    templates: tuple[str, ...]
    counts: Counts
    image_dir: str
    protocol: SplitProtocol
    read_lists: ListReader
    split_file: str = ""
    tfds: TfdsExamples | None = None
    respell: Callable[[str], str] = str
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    left_out: frozenset[str] = frozenset()
    names_by_position: bool = False

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Class names in CoOp's label order, ready for a template.

        Two of ImageNet's names occur twice.
        """
        return tuple(_all_class_names()[self.name])

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name.casefold(): label for label, name in enumerate(self.class_names)}

    def label_of(self, name: str) -> int | None:
        """Returns the label of the class that a folder, list or TFDS calls `name`.

        Returns:
            The label; None for a class that is not part of the benchmark (`left_out`).

        Raises:
            UserError: If `name` is not the name of any class.
        """
        label = self.find_label(name)
        if label is None and self._folded(name) not in self.left_out:
            raise UserError(
                f"{name!r} is not a class of {self.name}, which has {len(self.class_names)} "
                f"classes, such as {', '.join(self.class_names[:3])}: check the data"
            )
        return label

    def find_label(self, name: str) -> int | None:
        """Like `label_of`, but also returns None if `name` is not the name of any class."""
        folded = self._folded(name)
        return self._labels.get(self.renamed.get(folded, folded))

    def _folded(self, name: str) -> str:
        return self.respell(name).replace("_", " ").casefold()


@cache  # without arguments, so it holds one value
def _all_class_names() -> dict[str, list[str]]:
    file = files("fgvpl_jax.data") / "class_names.json"
    return json.loads(file.read_text(encoding="utf-8"))


def benchmark_named(name: str) -> Benchmark:
    """Returns the entry of a benchmark.

    Raises:
        UserError: If the table has no benchmark of this name.
    """
    if name not in BENCHMARKS:
        raise UserError(f"benchmark is {name!r}: choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def _sun397_name(path: str) -> str:
    """Turns `/a/apartment_building/outdoor` into `outdoor apartment_building`."""
    return " ".join(reversed(path.strip("/").split("/")[1:]))


def _year_first(name: str) -> str:
    """Turns `Acura RL Sedan 2012` into `2012 Acura RL Sedan`."""
    return re.sub(r"^(.*) (\d{4})$", r"\2 \1", name)


_TRAIN_TEST = {"train": "train", "test": "test"}
_ALL_THREE = {"train": "train", "val": "validation", "test": "test"}

_ENTRIES = (
    Benchmark(
        name="imagenet",
        templates=(
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
        counts=Counts(1_281_167, 0, 50_000),
        image_dir="imagenet/images",
        protocol=SplitProtocol.OWN,
        read_lists=official_lists.imagenet,
        tfds=TfdsExamples(
            "imagenet2012",
            {"train": "train", "test": "validation"},
            key="{split}/{label}/{file}",
            folders={"validation": "val"},
        ),
        names_by_position=True,
    ),
    Benchmark(
        name="caltech101",
        templates=("a photo of a {}.",),
        counts=Counts(4128, 1649, 2465),
        image_dir="caltech-101/101_ObjectCategories",
        protocol=SplitProtocol.POOLED,
        read_lists=official_lists.listed_class_folders,
        split_file="caltech-101/split_zhou_Caltech101.json",
        tfds=TfdsExamples(
            "caltech101",
            _TRAIN_TEST,
            "image/file_name",
            "{label}/{file}",
            folders={"faces": "Faces", "leopards": "Leopards", "motorbikes": "Motorbikes"},
            other_archives=frozenset({"view"}),
        ),
        renamed={
            "airplanes": "airplane",
            "faces": "face",
            "leopards": "leopard",
            "motorbikes": "motorbike",
        },
        left_out=frozenset({"background google", "faces easy"}),
    ),
    Benchmark(
        name="oxford_pets",
        templates=("a photo of a {}, a type of pet.",),
        counts=Counts(2944, 736, 3669),
        image_dir="oxford_pets/images",
        protocol=SplitProtocol.OFFICIAL_TEST,
        read_lists=official_lists.oxford_pets,
        split_file="oxford_pets/split_zhou_OxfordPets.json",
        tfds=TfdsExamples("oxford_iiit_pet", _TRAIN_TEST),
    ),
    Benchmark(
        name="stanford_cars",
        templates=("a photo of a {}.",),
        counts=Counts(6509, 1635, 8041),
        image_dir="stanford_cars",
        protocol=SplitProtocol.OFFICIAL_TEST,
        read_lists=official_lists.stanford_cars,
        split_file="stanford_cars/split_zhou_StanfordCars.json",
        tfds=TfdsExamples("cars196", _TRAIN_TEST, "id", "cars_{split}/{file}.jpg"),
        respell=_year_first,
    ),
    Benchmark(
        name="oxford_flowers",
        templates=("a photo of a {}, a type of flower.",),
        counts=Counts(4093, 1633, 2463),
        image_dir="oxford_flowers/jpg",
        protocol=SplitProtocol.POOLED,
        read_lists=official_lists.oxford_flowers,
        split_file="oxford_flowers/split_zhou_OxfordFlowers.json",
        tfds=TfdsExamples("oxford_flowers102", _ALL_THREE),
        renamed={"pink-yellow dahlia?": "pink-yellow dahlia"},
    ),
    Benchmark(
        name="food101",
        templates=("a photo of {}, a type of food.",),
        counts=Counts(50_500, 20_200, 30_300),
        image_dir="food-101/images",
        protocol=SplitProtocol.POOLED,
        read_lists=official_lists.listed_class_folders,
        split_file="food-101/split_zhou_Food101.json",
        # The default version, 2.0.0, has no file names.
        tfds=TfdsExamples(
            "food101:2.1.0", {"train": "train", "test": "validation"}, "id", "{file}.jpg"
        ),
    ),
    Benchmark(
        name="fgvc_aircraft",
        templates=("a photo of a {}, a type of aircraft.",),
        counts=Counts(3334, 3333, 3333),
        image_dir="fgvc_aircraft/images",
        protocol=SplitProtocol.OWN,
        read_lists=official_lists.fgvc_aircraft,
        tfds=TfdsExamples("fgvc_aircraft", _ALL_THREE, own_builder="fgvpl_jax.data.fgvc_aircraft"),
    ),
    Benchmark(
        name="sun397",
        templates=("a photo of a {}.",),
        counts=Counts(15_880, 3970, 19_850),
        image_dir="sun397/SUN397",
        protocol=SplitProtocol.OFFICIAL_TEST,
        read_lists=official_lists.sun397,
        split_file="sun397/split_zhou_SUN397.json",
        tfds=TfdsExamples(
            "sun397/standard-part1-120k",
            _TRAIN_TEST,
            absent=frozenset(
                {
                    "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg",
                    "t/track/outdoor/sun_aophkoiosslinihb.jpg",
                }
            ),
        ),
        respell=_sun397_name,
    ),
    Benchmark(
        name="dtd",
        templates=("{} texture.",),
        counts=Counts(2820, 1128, 1692),
        image_dir="dtd/images",
        protocol=SplitProtocol.POOLED,
        read_lists=official_lists.listed_class_folders,
        split_file="dtd/split_zhou_DescribableTextures.json",
        tfds=TfdsExamples("dtd", _ALL_THREE),
    ),
    Benchmark(
        name="eurosat",
        templates=("a centered satellite photo of {}.",),
        counts=Counts(13_500, 5400, 8100),
        image_dir="eurosat/2750",
        protocol=SplitProtocol.POOLED,
        read_lists=official_lists.listed_class_folders,
        split_file="eurosat/split_zhou_EuroSAT.json",
        tfds=TfdsExamples(
            "eurosat/rgb",
            {"train": "train"},
            "filename",
            "{label}/{file}",
            other_archives=frozenset({"EuroSATallBands.zip"}),
        ),
        renamed={
            "annualcrop": "annual crop land",
            "herbaceousvegetation": "herbaceous vegetation land",
            "highway": "highway or road",
            "industrial": "industrial buildings",
            "pasture": "pasture land",
            "permanentcrop": "permanent crop land",
            "residential": "residential buildings",
            "sealake": "sea or lake",
        },
    ),
    Benchmark(
        name="ucf101",
        templates=("a photo of a person doing {}.",),
        counts=Counts(7639, 1898, 3783),
        image_dir="ucf101/UCF-101-midframes",
        protocol=SplitProtocol.OFFICIAL_TEST,
        read_lists=official_lists.ucf101,
        split_file="ucf101/split_zhou_UCF101.json",
    ),
)

BENCHMARKS: Mapping[str, Benchmark] = {entry.name: entry for entry in _ENTRIES}
