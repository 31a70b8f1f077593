"""Reads photos that TensorFlow Datasets prepared as `array_record`, without TensorFlow."""

import hashlib
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from PIL import Image
from tqdm import tqdm

from fgvpl_jax.data.benchmarks import Benchmark, TfdsExamples
from fgvpl_jax.data.coop import read_split_file
from fgvpl_jax.data.images import UnreadableImage, decode_image
from fgvpl_jax.data.official_lists import check_class_names
from fgvpl_jax.data.split_protocol import SPLITS, Images, Parts
from fgvpl_jax.data.splits import Dataset, Split, fingerprint_files
from fgvpl_jax.errors import UserError

# TFDS writes this file last.
INFO_FILE = "dataset_info.json"
# The only format that can be read without TensorFlow.
FORMAT = "array_record"
INDEX_PREFIX = "fgvpl_index-"


@dataclass(frozen=True, eq=False)
class TfdsSplit(Split):
    """Images stored as records of one or more TFDS splits.

    Attributes:
        sources: One TFDS data source, a sequence of examples, for each TFDS split.
        records: Index of the source, and of the record in the source, for each image.
    """

    sources: tuple[Sequence[dict[str, Any]], ...]
    records: Int64[np.ndarray, "N 2"]

    def image(self, index: int) -> Image.Image:
        """Reads and decodes image `index`.

        Raises:
            UnreadableImage: If the record cannot be read or decoded.
        """
        source, record = self.records[index].tolist()
        name = f"{self.root}: {self.keys[index]}"
        try:
            data = self.sources[source][record]["image"]
        except Exception as error:  # a damaged shard; array_record does not define an error type
            raise UnreadableImage(f"{name}: {error}") from error
        return decode_image(data, name)

    def fingerprint(self) -> str | None:
        """Returns a digest of the shards' paths, sizes and times, and of the records' indices."""
        shards = fingerprint_files(sorted(self.root.glob("*.array_record*")))
        return f"{shards} {hashlib.sha256(self.records.tobytes()).hexdigest()}" if shards else None

    def select(self, indices: Sequence[int]) -> "TfdsSplit":
        """Returns the images at `indices`, in that order."""
        places = np.asarray(indices, np.int64)
        return TfdsSplit(
            self.root,
            tuple(self.keys[i] for i in indices),
            self.labels[places],
            self.sources,
            self.records[places],
            copies=None if self.copies is None else self.copies[places],
        )


def load_tfds(root: str, split_file: str, benchmark: Benchmark) -> Dataset:
    """Loads a benchmark that TFDS prepared; never downloads anything.

    If CoOp's split file exists and the examples have file names, the splits are exactly those in
    the file, and its paths are the keys. Otherwise the benchmark's protocol makes the splits from
    TFDS's own.

    Args:
        root: TFDS's data folder, in which the benchmark was prepared.
        split_file: Path of the split file relative to root, like in `load_coop`; the file need not
            exist.
        benchmark: Entry of the benchmark in the table.
    Raises:
        UserError: If TFDS does not have the photos of this benchmark, they are not or only partly
            prepared in root, or the split file names other images.
    """
    examples = benchmark.tfds
    if examples is None:
        raise UserError(
            f"TFDS has no photos of {benchmark.name}: set data.source to 'coop' and see "
            "docs/datasets.md"
        )
    base = Path(root).expanduser()
    place = prepared_folder(base, benchmark.name, examples.name)
    again = f"remove it and run `{prepare_command(benchmark.name, base)}`"
    index = _read_index(place, again, benchmark, examples)
    file = base / split_file
    if split_file and file.is_file() and index.has_file_names:
        class_names, parts = read_split_file(file)
        check_class_names(class_names, benchmark.class_names, file)
        parts = _without_absent(parts, index, examples, file)
        described = f"split file {split_file}"
    elif split_file not in ("", benchmark.split_file) and not file.is_file():
        raise UserError(
            f"{file} is missing: set data.split_file to the path of a split file below data.root"
        )
    else:
        parts, described = benchmark.protocol.split(index.parts, str(place))

    def split(images: Images) -> TfdsSplit:
        return TfdsSplit(
            place,
            tuple(key for key, _ in images),
            np.array([label for _, label in images], np.int32),
            index.sources,
            np.array([index.records[key] for key, _ in images], np.int64).reshape(-1, 2),
        )

    train, validation, test = (split(parts[name]) for name in SPLITS)
    return Dataset(
        benchmark.class_names,
        train,
        validation if len(validation) else None,
        test,
        described,
        tuple(sorted(examples.absent - index.records.keys())),
    )


def prepare_command(benchmark: str, data_dir: Path) -> str:
    """Returns the command that prepares a benchmark."""
    return f"python -m fgvpl_jax.data.tfds_prepare {benchmark} {data_dir}"


def prepared_folder(data_dir: Path, benchmark: str, name: str) -> Path:
    """Returns the folder in which TFDS stores the newest prepared version of a benchmark.

    Args:
        data_dir: TFDS's data folder.
        benchmark: Name of the benchmark in the table.
        name: TFDS's name of the benchmark, optionally with a version, which is ignored, and a
            config.
    Raises:
        UserError: If there is no prepared version, or its preparation was interrupted.
    """
    found = find_prepared(data_dir, name)
    if found is not None:
        return found
    parent = _parent(data_dir, name)
    state = "was only partly prepared" if any(parent.glob("*incomplete*")) else "is not prepared"
    raise UserError(
        f"{benchmark} {state} in {parent}: run `{prepare_command(benchmark, data_dir)}`"
    )


def find_prepared(data_dir: Path, name: str) -> Path | None:
    """Like `prepared_folder`, but returns None if there is no prepared version."""
    versions = {
        tuple(map(int, folder.name.split("."))): folder
        for folder in _parent(data_dir, name).glob("*.*.*")
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) and (folder / INFO_FILE).is_file()
    }
    return versions[max(versions)] if versions else None


def _parent(data_dir: Path, name: str) -> Path:
    builder, _, config = name.partition("/")
    return data_dir / builder.partition(":")[0] / config


def open_prepared(place: Path, again: str) -> Any:
    """Opens a prepared folder with TFDS and returns its builder.

    Args:
        place: Folder of one version.
        again: How to prepare the folder again, for error messages.
    Raises:
        UserError: If the metadata are damaged, or there are no `array_record` files; the message
            then says how to convert the others.
    """
    import tensorflow_datasets as tfds  # takes seconds, and only this source needs it

    try:
        builder = tfds.builder_from_directory(place)
        formats = {file_format.value for file_format in builder.info.available_file_formats()}
        if FORMAT in formats:  # there may be another one, which TFDS would prefer
            builder.info.set_file_format(FORMAT, override=True, override_if_initialized=True)
            return builder
    except Exception as error:  # TFDS has a dozen error types for damaged or foreign metadata
        raise UserError(f"{place} is not as TFDS leaves it ({error!r}): {again}") from error
    raise UserError(
        f"{place} holds {' and '.join(sorted(formats))} files, which only TensorFlow reads: "
        "convert them (`python -m tensorflow_datasets.scripts.convert_format "
        f"--dataset_version_dir={place} --out_file_format={FORMAT}`, which needs TensorFlow and "
        f"apache-beam), or {again}"
    )


@dataclass(frozen=True)
class _Index:
    """Content of a prepared benchmark.

    Attributes:
        sources: One data source for each TFDS split.
        parts: Keys and labels in each part of the authors' division.
        records: Maps each key to the index of its source and of its record there.
        has_file_names: Whether the keys are CoOp's paths.
    """

    sources: tuple[Sequence[dict[str, Any]], ...]
    parts: Parts
    records: dict[str, tuple[int, int]]
    has_file_names: bool


def _read_index(place: Path, again: str, benchmark: Benchmark, examples: TfdsExamples) -> _Index:
    builder, skip = _open(place, again, examples)
    features = builder.info.features
    has_file_names = examples.file_feature in features
    names = features["label"].names
    labels = [
        position if benchmark.names_by_position else benchmark.label_of(name)
        for position, name in enumerate(names)
    ]
    if benchmark.names_by_position and len(names) != len(benchmark.class_names):
        raise UserError(
            f"{place} has {len(names)} classes, the benchmark {len(benchmark.class_names)}: {again}"
        )
    sources: list[Sequence[dict[str, Any]]] = []
    parts: Parts = {}
    records: dict[str, tuple[int, int]] = {}
    for role, split in examples.splits.items():
        source = builder.as_data_source(split, decoders=skip)
        try:
            rows = _rows(source, place / f"{INDEX_PREFIX}{split}.npz", examples, has_file_names)
        except Exception as error:  # array_record may raise any error of its C++ code
            raise UserError(f"{place}: {split} cannot be read ({error}): {again}") from error
        parts[role] = []
        for record, (position, file) in enumerate(rows):
            if position < 0:  # TFDS's value for examples without a label
                continue
            if position >= len(names):
                raise UserError(
                    f"{place}: record {record} of {split} has label {position} of {len(names)} "
                    f"classes: {again}"
                )
            label = labels[position]
            if label is None:
                continue
            key = f"{split}/{record:07}"
            if has_file_names:
                key = examples.key.format(
                    split=examples.folders.get(split, split),
                    label=examples.folders.get(names[position], names[position]),
                    file=file.lstrip("/"),
                )
            parts[role].append((key, label))
            records[key] = (len(sources), record)
        sources.append(source)
    return _Index(tuple(sources), parts, records, has_file_names)


def _open(place: Path, again: str, examples: TfdsExamples) -> tuple[Any, dict[str, Any]]:
    """Returns TFDS's builder of a prepared folder, and the decoders that leave photos encoded."""
    import tensorflow_datasets as tfds

    builder = open_prepared(place, again)
    try:
        shards = [
            p for split in examples.splits.values() for p in builder.info.splits[split].filepaths
        ]
    except Exception as error:  # for a missing split, TFDS may raise any error
        raise UserError(f"{place} is not as TFDS leaves it ({error!r}): {again}") from error
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise UserError(f"{place} lacks {len(missing)} of its files, such as {missing[0]}: {again}")
    skip = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    return builder, skip


def _rows(
    source: Sequence[dict[str, Any]], file: Path, examples: TfdsExamples, has_file_names: bool
) -> list[tuple[int, str]]:
    """Returns TFDS's label and the file name of every record.

    Records hold both next to the photo, so reading them means reading everything (ImageNet: 140
    GB). The result is therefore saved in a file next to the records, if the folder is writable.
    """
    rows = _kept_rows(file)
    if len(rows) == len(source):  # otherwise they belong to another preparation
        return rows
    rows = []
    for example in tqdm(source, desc=f"listing {file.parent.name}", unit="photo", leave=False):
        name = example[examples.file_feature].decode() if has_file_names else ""
        rows.append((int(example["label"]), name))
    labels, names = zip(*rows, strict=True)
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    with suppress(OSError):
        try:
            with partial.open("wb") as stream:
                np.savez(stream, labels=np.array(labels), names=np.array(names))
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)  # exists only after a failure
    return rows


def _kept_rows(file: Path) -> list[tuple[int, str]]:
    """Reads the rows that an earlier run saved; empty if the file is missing or damaged."""
    try:
        with np.load(file) as kept:
            return list(zip(kept["labels"].tolist(), kept["names"].tolist(), strict=True))
    except Exception:  # numpy, zipfile and zlib have a dozen error types for damage
        return []


def _without_absent(parts: Parts, index: _Index, examples: TfdsExamples, file: Path) -> Parts:
    """Removes the images that TFDS leaves out on purpose; refuses if others are missing."""
    named = [key for images in parts.values() for key, _ in images]
    missing = [key for key in named if key not in index.records and key not in examples.absent]
    if missing:
        raise UserError(
            f"{len(missing)} images that {file} names are not in TFDS's benchmark, such as "
            f"{', '.join(missing[:3])}: use the split file of this benchmark and version"
        )
    labels = dict(pair for images in index.parts.values() for pair in images)
    for key, label in (pair for images in parts.values() for pair in images):
        if labels.get(key, label) != label:
            raise UserError(
                f"{file} assigns label {label} to {key}, TFDS label {labels[key]}: restore the "
                "split file"
            )
    return {
        name: [(key, label) for key, label in images if key in index.records]
        for name, images in parts.items()
    }
