"""Small data sets in TFDS's format, and TFDS's own builders run on example archives."""

import tarfile
from io import BytesIO
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from fgvpl_jax.data import benchmark_named


def jpeg(seed, size=(12, 10)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    data = BytesIO()
    Image.fromarray(pixels).save(data, format="JPEG")
    return data.getvalue()


def write_dtd(data_dir, class_names, splits, with_names=True, file_format="array_record"):
    """Writes TFDS's "dtd" from {split: [(label name, file name)]}; returns {file name: bytes}."""
    photos = {}

    class Dtd(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "label": tfds.features.ClassLabel(names=class_names),
            }
            if with_names:
                features["file_name"] = tfds.features.Text()
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(rows) for split, rows in splits.items()}

        def _generate_examples(self, rows):
            for label, name in rows:
                photos[name] = jpeg(len(photos))
                example = {"image": BytesIO(photos[name]), "label": label}
                yield name, example | ({"file_name": name} if with_names else {})

    Dtd(data_dir=data_dir, file_format=file_format).download_and_prepare()
    return photos


def write_aircraft_archive(file, lists=("train", "val", "test")):
    """Writes an archive in Aircraft's official layout, with one photo per variant and list.

    It holds data/images and data/images_variant_*.txt.
    """
    class_names = benchmark_named("fgvc_aircraft").class_names
    photos = {}
    with tarfile.open(file, "w:gz") as archive:

        def add(name, data):
            member = tarfile.TarInfo(f"fgvc-aircraft-2013b/data/{name}")
            member.size = len(data)
            archive.addfile(member, BytesIO(data))

        for part, split in enumerate(lists):
            lines = []
            for label, variant in enumerate(class_names):
                name = f"{part}{label:06}"
                photos[f"{name}.jpg"] = jpeg(len(photos), size=(16, 30))
                add(f"images/{name}.jpg", photos[f"{name}.jpg"])
                lines.append(f"{name} {variant}\n")
            add(f"images_variant_{split}.txt", "".join(lines).encode())
        add("images/9999999.jpg", jpeg(0))
        add("families.txt", b"Boeing 707\n")
    return photos


def fake_archives(root: Path):
    """Maps TFDS's builders to the files that they find instead of their downloads."""
    examples = root / "tfds_fake/tensorflow_datasets/testing/test_data/fake_examples"
    datasets = root / "tfds_fake/tensorflow_datasets/datasets"
    cars, flowers = examples / "cars196", datasets / "oxford_flowers102/dummy_data"
    return {
        "food101:2.1.0": examples / "food101",
        "oxford_iiit_pet": datasets / "oxford_iiit_pet/dummy_data",
        "dtd": examples / "dtd",
        "eurosat/rgb": examples / "eurosat",
        "cars196": {
            "train": cars / "train",
            "test": cars / "test",
            "extra": cars / "extra",
            "test_annos": cars / "cars_test_annos_withlabels.mat",
        },
        "oxford_flowers102": {
            "images": flowers / "images",
            "labels": flowers / "imagelabels.mat",
            "setid": flowers / "setid.mat",
        },
        "caltech101": datasets / "caltech101/dummy_data",
        "sun397/standard-part1-120k": datasets / "sun397/dummy_data",
        "imagenet2012": datasets / "imagenet2012/dummy_data",
    }


def prepare_fake(name: str, archives, data_dir: Path) -> None:
    """Runs one of TFDS's own builders on its example archive."""

    def download(self, urls):
        if name == "oxford_iiit_pet":
            return dict.fromkeys(urls, archives)
        return archives

    manager = tfds.download.DownloadManager
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    manual = archives if isinstance(archives, Path) else None
    with mock.patch.object(manager, "download_and_extract", download):
        if name == "caltech101":
            from importlib import import_module

            module = import_module(type(builder).__module__)
            with mock.patch.object(module, "_TRAIN_POINTS_PER_CLASS", 1):
                builder.download_and_prepare()
        else:
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=manual)
            )
