"""Readers of files that other programs write, each with valid files and ways to damage them.

Each reader promises to return a value that a run can rely on or to raise a `UserError`. It must not
raise another error, hang, or use memory out of proportion to the file.
"""

import contextlib
import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
from absl.testing import flagsaver
from flax.serialization import msgpack_serialize
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save

from fgvpl_jax.clip import weights
from fgvpl_jax.clip.families import family_of
from fgvpl_jax.clip.families.hugging_face_clip import read_sizes
from fgvpl_jax.commands import command_line
from fgvpl_jax.data import benchmark_named, coop, few_shot, images, manifest
from fgvpl_jax.data.entries import reason_to_skip_file
from fgvpl_jax.data.splits import Dataset, make_split
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_arrays
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.workdir import Workdir
from tests.fuzz import mutations
from tests.fuzz.mutations import Mutation
from tests.tiny_clip import tiny_config

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A reader and the inputs for fuzzing it.

    Attributes:
        seeds: Contents of valid files.
        mutate: Function that damages the contents of a file in one place.
        read: Function that reads a file with the given bytes and checks the result.
        covers: Maps each module's path to the names of the functions whose branches belong to the
            reader.
    """

    seeds: tuple[bytes, ...]
    mutate: Mutation
    read: Callable[[bytes], None]
    covers: dict[str, tuple[str, ...]]

    def input(self, rng: Random, corpus: list[bytes] | None = None) -> bytes:
        """Returns the contents of a valid file, damaged in a few places."""
        data = rng.choice(corpus or self.seeds)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 5))):
            data = self.mutate(rng, data)
        return data

    def accepts(self, data: bytes) -> bool:
        """Returns whether the reader returns a value rather than raising a `UserError`.

        Raises:
            Exception: If the reader raises an error of any other type.
        """
        try:
            self.read(data)
        except UserError as error:
            assert str(error).strip()
            return False
        return True


def write(file: Path, data: bytes) -> None:
    """Writes a file, or removes it if `data` is empty."""
    if data:
        file.write_bytes(data)
    else:
        file.unlink(missing_ok=True)


WEIGHTS = ("weight_files", "shard_of_each", "read_tensors", "_is_float")
DATASET = ("check_present", "key_below", "one_spelling", "class_name", "same_name", "make_split")


def all_targets(place: Path) -> dict[str, Target]:
    """Returns all readers by name.

    Args:
        place: Empty folder for the files; a folder in memory is several times as fast.
    """
    makers = (weight_targets, clip_target, data_targets, image_target, run_targets)
    targets: dict[str, Target] = {}
    for number, maker in enumerate(makers):
        folder = place / str(number)
        folder.mkdir()
        targets |= maker(folder)
    return targets


def weight_targets(place: Path) -> dict[str, Target]:
    rng = np.random.default_rng(0)
    tensors = {
        "visual_projection.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "vision_model.embeddings.position_ids": np.arange(4),
        "text_model.final_layer_norm.bias": np.zeros(3, np.float16),
    }
    tree = {
        "vision_model": {"conv": {"kernel": np.ones((2, 2, 3, 4), np.float32)}},
        "visual_projection": {"kernel": tensors["visual_projection.weight"].T.copy()},
        "norm": {"scale": np.ones(3, np.float16)},
        "logit_scale": np.float32(2.5),
    }
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-1.safetensors")}
    twice = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}

    def read(name: str, data: bytes) -> None:
        folder = place / name
        folder.mkdir(exist_ok=True)
        write(folder / name, data)
        for value in weights.read_tensors(weights.weight_files(folder)).values():
            assert value.dtype == np.float32
            assert np.isfinite(value).all()

    (place / weights.SHARD_INDEX).mkdir()
    for number in (1, 2):
        (place / weights.SHARD_INDEX / f"model-{number}.safetensors").write_bytes(save(tensors))

    def target(name: str, seeds: tuple[bytes, ...], mutate: Mutation, reader: str) -> Target:
        covers = {"fgvpl_jax/clip/weights.py": (*WEIGHTS, reader)}
        return Target(seeds, mutate, partial(read, name), covers)

    targets = {
        "safetensors": target(
            weights.SAFETENSORS, (save(tensors),), mutations.mutate_safetensors, "_read_safetensors"
        ),
        "shard index": target(
            weights.SHARD_INDEX,
            (json.dumps(index).encode(), json.dumps(twice).encode()),
            mutations.mutate_json,
            "_read_safetensors",
        ),
        "msgpack": target(
            weights.MSGPACK, (msgpack_serialize(tree),), mutations.mutate_msgpack, "_read_msgpack"
        ),
    }
    if find_spec("torch"):
        import torch

        stream = io.BytesIO()
        torch.save({name: torch.tensor(value) for name, value in tensors.items()}, stream)
        targets["pytorch"] = target(
            weights.PYTORCH, (stream.getvalue(),), mutations.mutate_bytes, "_read_pytorch"
        )
    return targets


def clip_target(place: Path) -> dict[str, Target]:
    def read(data: bytes) -> None:
        write(place / "config.json", data)
        _, content = family_of(place)  # an empty file is a missing one
        vision, text = read_sizes(place / "config.json", content)
        assert 1 <= vision.num_layers <= 512
        assert 1 <= vision.patch_size <= vision.image_size <= 2048
        assert 1 <= text.num_layers <= 512

    configs = (
        tiny_config(),
        tiny_config(vision_config={"image_size": [32, 32], "num_hidden_layers": 10**9}),
        tiny_config(vision_config={"image_size": [32, 32]}),
        tiny_config(vision_config={"num_channels": 1}),
    )
    seeds = tuple(json.dumps(config).encode() for config in configs)
    functions = ("parse_config", "vision_config", "text_config", "_transformer", "_side")
    covers = {"fgvpl_jax/clip/families/transformers_files.py": functions}
    return {"config.json": Target(seeds, mutations.mutate_json, read, covers)}


def data_targets(place: Path) -> dict[str, Target]:
    keys = [f"{folder}/{i}.png" for folder in ("a", "b", "ü") for i in range(4)]
    for key in keys:
        (place / "images" / key).parent.mkdir(parents=True, exist_ok=True)
        (place / "images" / key).touch()
    rows = [[key, number // 4, key[0]] for number, key in enumerate(keys)]
    splits_ = {name: rows[i::3] for i, name in enumerate(("train", "val", "test"))}
    misplaced = splits_ | {"val": [["a/3.png", 1, "b"]]}
    lines = [
        {"path": f"images/{key}", "label": name, "split": ("train", "val", "test")[i % 3]}
        for i, (key, _, name) in enumerate(rows)
    ]
    table = "path,label,split\n" + "".join(",".join(line.values()) + "\n" for line in lines)

    def check(dataset: Dataset) -> None:
        """Checks what a run relies on: known classes, and photos inside the data folder."""
        assert len(dataset.class_names) >= 2
        for split in (dataset.train, dataset.validation, dataset.test):
            for key, label in zip(split.keys, split.labels, strict=True) if split else ():
                assert (split.root / key).resolve().is_relative_to(place)
                assert 0 <= label < len(dataset.class_names)

    def read_split(data: bytes) -> None:
        (place / "split.json").write_bytes(data)
        check(coop.load_coop(str(place), "split.json", "images"))

    def read_manifest(name: str, data: bytes) -> None:
        (place / name).write_bytes(data)
        check(manifest.load_manifest(str(place / name)))

    train = make_split(place / "images", [(key, label) for key, label, _ in rows])
    dataset = Dataset(("a", "b", "ü"), train, None, None, "")
    record = few_shot.few_shot_record(few_shot.draw_few_shot(dataset, 2, 1))
    held_out = Dataset(("a", "b", "ü"), train, train, None, "")

    def read_few_shot(data: bytes) -> None:
        (place / "few_shot.json").write_bytes(data)
        for known in (dataset, held_out):
            found = few_shot.read_few_shot(str(place / "few_shot.json"), known, 2)
            assert set(found.support.keys) <= set(keys)
            assert set(found.support.labels) == {0, 1, 2}

    aircraft = benchmark_named("fgvc_aircraft")
    lists = place / "fgvc_aircraft"
    (lists / "images").mkdir(parents=True)
    (lists / "images" / "0034309.jpg").touch()
    for name in ("train", "val", "test"):
        (lists / f"images_variant_{name}.txt").touch()

    def read_lists(data: bytes) -> None:
        (lists / "images_variant_train.txt").write_bytes(data)
        try:
            check(coop.load_coop(str(place), "", "fgvc_aircraft/images", aircraft))
        except UserError as error:
            if "names no test image" not in str(error):  # raised after the list has been read
                raise

    shared = {"fgvpl_jax/data/splits.py": DATASET}
    listed = {
        "fgvpl_jax/data/splits.py": DATASET[1:],
        "fgvpl_jax/data/manifest.py": ("load_manifest", "_rows", "_fields", "_separator"),
        "fgvpl_jax/data/split_names.py": ("split_role",),
        "fgvpl_jax/data/listed_files.py": (
            *("find_listed", "has_file", "resolve", "difference"),
            *("_names_in", "_names_of_form"),
        ),
    }
    return {
        "split file": Target(
            (json.dumps(splits_).encode(), json.dumps(misplaced).encode()),
            mutations.mutate_json,
            read_split,
            shared | {"fgvpl_jax/data/coop.py": ("read_split_file", "check_folders", "_entry")},
        ),
        "manifest .csv": Target(
            (table.encode(),),
            mutations.mutate_csv,
            partial(read_manifest, "list.csv"),
            listed,
        ),
        "manifest .jsonl": Target(
            ("\n".join(map(json.dumps, lines)).encode(),),
            mutations.mutate_json_lines,
            partial(read_manifest, "list.jsonl"),
            listed,
        ),
        "few-shot file": Target(
            (
                json.dumps(record).encode(),
                json.dumps(record | {"validation": None}).encode(),
            ),
            mutations.mutate_json,
            read_few_shot,
            {"fgvpl_jax/data/few_shot.py": ("read_few_shot", "_named_images", "_record_names")},
        ),
        "benchmark's list": Target(
            (b"0034309 707-320\n1025794 A300B4\n",),
            mutations.mutate_lines,
            read_lists,
            {"fgvpl_jax/data/official_lists.py": ("fgvc_aircraft", "_lines", "_label")},
        ),
    }


def image_target(place: Path) -> dict[str, Target]:
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    texts = PngInfo()
    texts.add_text("steps", "step " * 400_000, zip=True)

    def saved(image: Image.Image, name: str, **options: object) -> bytes:
        stream = io.BytesIO()
        image.save(stream, name, **options)
        return stream.getvalue()

    seeds = [saved(photo, name) for name in sorted(images.FORMATS - {"JPEG2000"})]
    seeds += [
        saved(photo, "JPEG2000"),
        saved(photo, "JPEG", exif=exif, progressive=True),
        saved(photo.convert("CMYK"), "JPEG"),
        saved(photo.convert("RGBA"), "PNG"),
        saved(photo.quantize(4), "PNG", transparency=0),
        saved(Image.fromarray(rng.integers(0, 9999, (5, 5), np.uint16)), "PNG", transparency=9),
        saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        saved(photo.convert("LA"), "PNG"),
        saved(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]),
        saved(photo.resize((300, 2)), "PNG"),
        saved(Image.fromarray(rng.integers(0, 9999, (5, 5), np.uint16)), "TIFF"),
        saved(Image.fromarray(rng.integers(0, 9999, (5, 5), np.uint16)), "TIFF", tiffinfo={262: 0}),
        saved(photo, "PNG", pnginfo=texts, icc_profile=bytes(2_000_000)),
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99),
        b"<!DOCTYPE html><title>404</title>",
        *(b"", b"folder", b"huge"),
        saved(Image.new("1", (9500, 9500)), "PNG"),  # more pixels than the limit
    ]

    file, huge = place / "photo", place / "huge"
    with huge.open("wb") as stream:
        stream.truncate(images.MOST_BYTES + 1)  # a sparse file, which uses no disk space
    stand_for = {b"": b"", b"folder": place, b"huge": huge}

    def read(data: bytes) -> None:
        file.write_bytes(data)
        reason_to_skip_file(file)
        source = stand_for.get(data, data if len(data) % 8 == 1 else file)
        photo = images.decode_image(source)
        assert photo.mode == "RGB"
        assert photo.width * photo.height <= Image.MAX_IMAGE_PIXELS

    covers = {
        "fgvpl_jax/data/entries.py": ("reason_to_skip_file",),
        "fgvpl_jax/data/images.py": (
            *("decode_image", "_content", "_errors_naming", "_upright_rgb", "_to_rgb", "_decoded"),
            *("_without_metadata", "_why_unidentified", "_orientation", "_refuse_nearly_black"),
        ),
        "fgvpl_jax/data/tiff.py": ("standard_tiff", "_integers"),
        "fgvpl_jax/data/file_kinds.py": ("kind_of", "_kind_of_brands"),
    }
    return {"image": Target(tuple(seeds), mutations.mutate_image, read, covers)}


def run_targets(place: Path) -> dict[str, Target]:
    stream = io.BytesIO()
    np.savez(stream, labels=np.arange(3), keys=np.array(["a", "ü"]), image=np.ones((3, 2)))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.npy", stream.getvalue())

    def read_npz(data: bytes) -> None:
        (place / "support.npz").write_bytes(data)
        for array in read_arrays(place / "support.npz").values():
            assert not array.dtype.hasobject

    def read_results(data: bytes) -> None:
        (place / "results.json").write_bytes(data)
        RunResults.read(Workdir(place))

    settings = (
        *("--config.shots=4", "--config.seed=2", "--config.data.root=photos"),
        *("--config.learning_rate=1e-3", "--config.cache_logit_weight_grid=(0.0,1.0)"),
        *("--config.allow_fewer=True", "--config.method=tar", "--config.epochs=3"),
        '--config.data.templates=("a photo of a {}.",)',
    )
    others = ("--help", "--config.data.rot=1", "--config.shots.x=1", "--config.seed.real=1")

    def read_overrides(data: bytes) -> None:
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        argv = ["run.py", f"--config={ROOT}/configs/folder.py"] if data else ["run.py"]
        argv += [line for line in lines if line.startswith("--config.") or line == "--help"]
        printed = io.StringIO()
        before, sys.argv = sys.argv, argv
        try:
            with (
                flagsaver.flagsaver(),
                contextlib.redirect_stderr(printed),
                contextlib.redirect_stdout(printed),
            ):
                command_line.parse_flags(argv)
        except SystemExit as exit_:
            if "--help" in argv:
                return
            assert exit_.code == command_line.MISTAKE
            raise UserError(printed.getvalue()) from None
        finally:
            sys.argv = before

    return {
        "support.npz": Target(
            (stream.getvalue(), packed.getvalue()),
            mutations.mutate_bytes,
            read_npz,
            {"fgvpl_jax/files.py": ("read_arrays",)},
        ),
        "results.json": Target(
            ((ROOT / "tests" / "fixtures" / "run_0_1_0" / "results.json").read_bytes(),),
            mutations.mutate_json,
            read_results,
            {
                "fgvpl_jax/files.py": ("read_json", "parse_json"),
                "fgvpl_jax/runs/results.py": ("from_json", "_from_json", "_converted"),
            },
        ),
        "overrides": Target(
            (b"", "\n".join(settings).encode(), *(s.encode() for s in (*settings, *others))),
            mutations.mutate_overrides,
            read_overrides,
            {
                "fgvpl_jax/commands/command_line.py": ("parse_flags",),
                "fgvpl_jax/commands/console.py": ("complain", "printable"),
            },
        ),
    }
