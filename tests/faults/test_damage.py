"""Truncated files and flipped bits: the command names and refuses the file, or makes it again."""

import shutil

import numpy as np
import pytest

pytestmark = pytest.mark.slow

TRIALS = 3  # for each file and kind of damage


def flip(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


DAMAGES = {"flipped bit": flip, "truncated": truncate}


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("start", ["half", "path"])
def test_files_of_a_run(undisturbed, tmp_path, start, damage):
    source = getattr(undisturbed, start)
    rng = np.random.default_rng(0)
    names = {
        *("config.json", "few_shot.json", "metrics.jsonl"),
        *(("results.json", "support.npz", "predictions.npz") if start == "path" else ()),
    }
    for number, name in enumerate(sorted(names) * TRIALS):
        copy = tmp_path / str(number)
        shutil.copytree(source, copy)
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(DAMAGES[damage](content, rng))
        undisturbed.try_damaged(
            f"{name}, {damage}",
            copy,
            lambda copy=copy, name=name, content=content: (copy / name).write_bytes(content),
            # Nothing detects a changed digit in a line of text.
            "metrics" if (name, damage) == ("metrics.jsonl", "flipped bit") else "",
        )


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints(undisturbed, tmp_path, damage):
    rng = np.random.default_rng(1)
    for number in range(6 * TRIALS):
        copy = tmp_path / str(number)
        shutil.copytree(undisturbed.half, copy)
        newest = max((copy / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
        damaged = [files_of(newest)[number % len(files_of(newest))]]
        if number >= 5 * TRIALS:  # all checkpoints, so that the run cannot resume from any
            damaged = files_of(copy / "checkpoints")
        contents = {file: file.read_bytes() for file in damaged}
        for file, content in contents.items():
            file.write_bytes(DAMAGES[damage](content, rng))

        def mend(contents=contents):
            for file, content in contents.items():
                file.write_bytes(content)

        undisturbed.try_damaged(f"checkpoint, {damage}", copy, mend)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "what", ["image cache", "weights", "small files of CLIP", "list of photos"]
)
def test_files_outside_a_run(undisturbed, tmp_path, what, damage):
    rng = np.random.default_rng(2)
    place = undisturbed.path.parent
    clip = [f for f in files_of(place / "clip") if f.suffix in (".json", ".txt")]
    files = {
        "image cache": files_of(place / "cache"),
        "weights": [place / "clip" / "model.safetensors"],
        "small files of CLIP": clip,
        "list of photos": [place / "photos" / "list.csv"],
    }[what]
    for number in range(3 * TRIALS):
        copy = tmp_path / str(number)
        shutil.copytree(undisturbed.half, copy)
        file = files[number % len(files)]
        content = file.read_bytes()
        file.write_bytes(DAMAGES[damage](content, rng))
        try:
            undisturbed.try_damaged(
                f"{what}, {damage}",
                copy,
                lambda file=file, content=content: file.write_bytes(content),
            )
        finally:
            file.write_bytes(content)
