"""Benchmarks that TFDS prepared are read without TensorFlow and without a network."""

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import UnreadableImage, benchmark_named, decode_image, load_coop, load_tfds
from fgvpl_jax.errors import UserError
from tests.data.tfds_builders import fake_archives, prepare_fake, write_dtd

DTD = benchmark_named("dtd")


def names(count):
    return [(c, f"{c}/{c}_{i}.jpg") for c in DTD.class_names for i in range(count)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """DTD with ten photos per class, divided like the authors', and the same in CoOp's layout."""
    root = tmp_path_factory.mktemp("tfds")
    rows = names(10)
    splits = {"train": rows[0::3], "validation": rows[1::3], "test": rows[2::3]}
    photos = write_dtd(root, list(reversed(DTD.class_names)), splits)
    for name, data in photos.items():
        file = root / "coop" / "dtd" / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


@pytest.fixture
def copy(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared / "dtd", tmp_path / "dtd")
    return tmp_path


def write_split_file(root, skip=()):
    rows = [[name, DTD.label_of(label), label] for label, name in names(10)]
    content = {"train": rows[0::2], "val": rows[1::4], "test": rows[3::4]}
    content["test"] = [row for row in content["test"] if row[0] not in skip]
    (root / "dtd").mkdir(exist_ok=True)
    (root / DTD.split_file).write_text(json.dumps(content))
    return content


def same(one, other, step=37):
    for split in ("train", "validation", "test"):
        a, b = getattr(one, split), getattr(other, split)
        assert a.keys == b.keys
        assert a.labels.tolist() == b.labels.tolist()
        for i in range(0, len(a), step):
            np.testing.assert_array_equal(np.asarray(a.image(i)), np.asarray(b.image(i)))


def test_tfds_and_coop_give_the_same_splits_and_pixels(copy, prepared):
    coop = prepared / "coop"
    where = (str(coop), DTD.split_file, DTD.image_dir, DTD)
    same(load_tfds(str(copy), DTD.split_file, DTD), load_coop(*where))
    write_split_file(copy)
    write_split_file(coop)
    by_file = load_tfds(str(copy), DTD.split_file, DTD)
    (coop / DTD.split_file).rename(coop / "dtd" / "split.json")
    same(by_file, load_coop(str(coop), "dtd/split.json", DTD.image_dir, DTD))
    (coop / "dtd" / "split.json").unlink()
    assert by_file.split_protocol == f"split file {DTD.split_file}"


def test_the_listing_is_kept_and_used(copy, monkeypatch):
    first = load_tfds(str(copy), "", DTD)
    kept = list(copy.rglob("fgvpl_index-*.npz"))
    assert len(kept) == 3
    monkeypatch.setattr("fgvpl_jax.data.tfds_source.tqdm", lambda *a, **k: pytest.fail("read"))
    again = load_tfds(str(copy), "", DTD)
    assert again.train.keys == first.train.keys
    assert again.train.labels.tolist() == first.train.labels.tolist()


def test_the_fingerprint_changes_with_shards_and_records(copy):
    train = load_tfds(str(copy), "", DTD).train
    first = train.fingerprint()
    assert first == load_tfds(str(copy), "", DTD).train.fingerprint()
    assert first != train.select([1, 0]).fingerprint()
    shard = next(train.root.glob("*.array_record*"))
    os.utime(shard, ns=(1, 1))
    assert first != train.fingerprint()


def test_a_mistyped_split_file_is_reported(copy):
    with pytest.raises(UserError, match=r"dtd/splitt\.json is missing"):
        load_tfds(str(copy), "dtd/splitt.json", DTD)


def test_a_listing_of_another_preparation_is_recomputed(copy):
    first = load_tfds(str(copy), "", DTD)
    for file in copy.rglob("fgvpl_index-*.npz"):
        np.savez(file, labels=np.zeros(1, int), names=np.array(["x"]))
    assert load_tfds(str(copy), "", DTD).train.keys == first.train.keys


def test_a_damaged_listing_is_recomputed(copy):
    first = load_tfds(str(copy), "", DTD)
    kept = {file: file.read_bytes() for file in copy.rglob("fgvpl_index-*.npz")}
    for harm in (lambda data: data[:40], lambda data: b"", lambda data: data[:-9] + b"x" * 9):
        for file, data in kept.items():
            file.write_bytes(harm(data))
        assert load_tfds(str(copy), "", DTD).train.keys == first.train.keys
        assert {file: file.read_bytes() for file in kept} == kept


def test_a_listing_that_cannot_be_kept_leaves_nothing(copy, monkeypatch):
    def full(stream, **arrays):
        stream.write(b"half")
        raise OSError("No space left on device")

    before = sorted(copy.rglob("*"))
    monkeypatch.setattr("fgvpl_jax.data.tfds_source.np.savez", full)
    assert len(load_tfds(str(copy), "", DTD).train) == 235
    assert sorted(copy.rglob("*")) == before


def test_a_folder_with_tfrecord_too_is_read(copy):
    info = copy / "dtd/3.0.1/dataset_info.json"
    content = json.loads(info.read_text())
    content |= {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    info.write_text(json.dumps(content))
    assert load_tfds(str(copy), "", DTD).train.image(0).size == (12, 10)


def test_a_folder_of_tfrecord_is_refused_with_how_to_convert_it(copy):
    info = copy / "dtd/3.0.1/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"holds tfrecord files.*scripts\.convert_format"):
        load_tfds(str(copy), "", DTD)


def test_selected_images_are_those(copy):
    train = load_tfds(str(copy), "", DTD).train
    few = replace(train, copies=np.arange(len(train)) // 2).select([7, 3])
    assert few.keys == (train.keys[7], train.keys[3])
    assert few.copies.tolist() == [3, 1] and train.select([7]).copies is None
    np.testing.assert_array_equal(np.asarray(few.image(1)), np.asarray(train.image(3)))


def test_without_file_names_the_split_file_is_ignored(tmp_path):
    rows = names(10)
    write_dtd(tmp_path, list(DTD.class_names), {"train": rows}, with_names=False)
    benchmark = DTD.__class__(
        **{
            **{name: getattr(DTD, name) for name in DTD.__dataclass_fields__},
            "tfds": type(DTD.tfds)("dtd", {"train": "train"}),
        }
    )
    write_split_file(tmp_path)
    dataset = load_tfds(str(tmp_path), DTD.split_file, benchmark)
    assert dataset.split_protocol.startswith("all images re-split")
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [235, 94, 141]


def harm_info(root):
    (root / "dtd/3.0.1/dataset_info.json").write_text("{")


def harm_shard(root):
    shard = next((root / "dtd/3.0.1").glob("dtd-test*"))
    shard.write_bytes(shard.read_bytes()[:100])


def half_copied(root):
    next((root / "dtd/3.0.1").glob("dtd-test*")).unlink()


def broken_off(root):
    (root / "dtd/3.0.1").rename(root / "dtd/incomplete.ABCDEF_3.0.1")


def other_split_file(root):
    content = write_split_file(root)
    content["test"][0][0] = "banded/banded_77.jpg"
    (root / DTD.split_file).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (harm_info, "is not as TFDS leaves it"),
        (harm_shard, "test cannot be read"),
        (half_copied, r"lacks 1 of its files, such as dtd-test"),
        (broken_off, "dtd was only partly prepared"),
        (other_split_file, r"1 images.*banded_77"),
    ],
)
def test_damage_is_named_with_what_to_do(copy, harm, message):
    harm(copy)
    with pytest.raises(UserError, match=message) as caught:
        load_tfds(str(copy), DTD.split_file, DTD)
    if harm is not other_split_file:
        assert f"python -m fgvpl_jax.data.tfds_prepare dtd {copy}" in str(caught.value)


def test_missing_benchmarks_are_reported(tmp_path):
    command = f"`python -m fgvpl_jax.data.tfds_prepare food101 {tmp_path}`"
    with pytest.raises(UserError, match="food101 is not prepared") as caught:
        load_tfds(str(tmp_path), "", benchmark_named("food101"))
    assert command in str(caught.value)
    with pytest.raises(UserError, match="TFDS has no photos of ucf101"):
        load_tfds(str(tmp_path), "", benchmark_named("ucf101"))


def test_a_record_that_is_no_image_is_named(copy):
    dataset = load_tfds(str(copy), "", DTD)
    broken = type(dataset.train)(
        dataset.train.root,
        dataset.train.keys,
        dataset.train.labels,
        ([{"image": b"not an image"}],),
        np.zeros_like(dataset.train.records),
    )
    with pytest.raises(UnreadableImage, match=r"banded_\d\.jpg: not an image"):
        broken.image(0)


def test_reading_imports_no_tensorflow(copy):
    program = (
        "import sys; from fgvpl_jax.data import *; d = benchmark_named('dtd');"
        f"print(load_tfds({str(copy)!r}, '', d).test.image(0).size, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "(12, 10) False"


WITHOUT_TENSORFLOW = {"food101", "oxford_pets"}


@pytest.mark.parametrize(
    "name",
    [
        "food101",
        "oxford_pets",
        "dtd",
        "eurosat",
        "stanford_cars",
        "oxford_flowers",
        "caltech101",
        "sun397",
        "imagenet",
    ],
)
def test_tfds_own_builders_are_read_as_pillow_reads_their_archives(name, real_data, tmp_path):
    if name not in WITHOUT_TENSORFLOW and find_spec("tensorflow") is None:
        pytest.skip("TFDS's builder needs TensorFlow")
    if name == "sun397" and find_spec("cv2") is None:
        pytest.skip("TFDS's builder needs OpenCV")
    benchmark = benchmark_named(name)
    archives = fake_archives(real_data)[benchmark.tfds.name]
    prepare_fake(benchmark.tfds.name, archives, tmp_path)
    dataset = load_tfds(str(tmp_path), "", benchmark)
    splits = [s for s in (dataset.train, dataset.validation, dataset.test) if s is not None]
    found = {key: split.image(i) for split in splits for i, key in enumerate(split.keys)}
    assert found
    if name == "imagenet":
        assert {key.split("/")[0] for key in found} == {"train", "val"}  # CoOp's folders
    if name == "sun397":  # TFDS compresses these photos again
        for key, data in stored(dataset.train.root, benchmark.tfds).items():
            with Image.open(BytesIO(data)) as image:
                np.testing.assert_array_equal(np.asarray(found.pop(key)), np.asarray(image))
        assert not found
    files = originals(archives)
    for key, image in found.items():
        matching = [data for path, data in files.items() if path.endswith(key)]
        expected = decode_image(matching[0] if matching else files[Path(key).name])
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.slow
def test_the_complete_eurosat_is_the_same_by_tfds_and_in_coops_layout(real_data, tmp_path):
    if find_spec("tensorflow") is None:
        pytest.skip("TFDS's builder needs TensorFlow")
    with tarfile.open(real_data / "eurosat.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    eurosat = benchmark_named("eurosat")
    prepare_fake(eurosat.tfds.name, tmp_path / "eurosat", tmp_path)
    coop = load_coop(str(tmp_path), eurosat.split_file, eurosat.image_dir, eurosat)
    tfds = load_tfds(str(tmp_path), eurosat.split_file, eurosat)
    assert coop.split_protocol == tfds.split_protocol
    same(coop, tfds, step=7)


def stored(place, examples):
    """Maps file names to the bytes that TFDS stored, as read by TFDS."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(place)
    return {
        example[examples.file_feature].decode().lstrip("/"): example["image"]
        for split in examples.splits.values()
        for example in builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    }


def originals(archives):
    """Maps paths to the photos' contents, including photos in nested archives."""
    photos = {}

    def unpack(stream):
        with tarfile.open(fileobj=stream) as archive:
            for member in filter(tarfile.TarInfo.isfile, archive):
                data = archive.extractfile(member).read()
                if member.name.endswith(".tar"):
                    unpack(BytesIO(data))
                photos[member.name] = data

    for root in archives.values() if isinstance(archives, dict) else [archives]:
        for file in filter(Path.is_file, root.rglob("*")):
            if ".tar" in file.name:
                unpack(BytesIO(file.read_bytes()))
            photos[str(file)] = file.read_bytes()
    return photos
