"""Truncated files and flipped bits: the command refuses the file by name, or writes it again."""

import shutil

import numpy as np
import pytest

from tests.damage import flip_bit, non_empty_files, truncate

pytestmark = pytest.mark.slow

TRIALS = 3  # per file and kind of damage


DAMAGES = {"flipped bit": flip_bit, "truncated": truncate}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("start", ["half", "path"])
def test_damaged_files_of_a_run_are_refused_or_harmless(undisturbed, tmp_path, start, damage):
    source = getattr(undisturbed, start)
    rng = np.random.default_rng(0)
    names = {
        *("config.json", "few_shot.json", "metrics.jsonl"),
        *(
            ("results.json", "support.npz", "known_classes.npz", "predictions.npz")
            if start == "path"
            else ()
        ),
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
def test_damaged_checkpoints_are_refused_or_harmless(undisturbed, tmp_path, damage):
    rng = np.random.default_rng(1)
    for number in range(6 * TRIALS):
        copy = tmp_path / str(number)
        shutil.copytree(undisturbed.half, copy)
        newest = max((copy / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
        damaged = [non_empty_files(newest)[number % len(non_empty_files(newest))]]
        if number >= 5 * TRIALS:  # all checkpoints, so that the run cannot resume from any
            damaged = non_empty_files(copy / "checkpoints")
        contents = {file: file.read_bytes() for file in damaged}
        for file, content in contents.items():
            file.write_bytes(DAMAGES[damage](content, rng))

        def repair(contents=contents):
            for file, content in contents.items():
                file.write_bytes(content)

        undisturbed.try_damaged(f"checkpoint, {damage}", copy, repair)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "what", ["image cache", "weights", "small files of CLIP", "list of photos"]
)
def test_damaged_files_outside_a_run_are_refused_or_harmless(undisturbed, tmp_path, what, damage):
    rng = np.random.default_rng(2)
    place = undisturbed.path.parent
    clip = [f for f in non_empty_files(place / "clip") if f.suffix in (".json", ".txt")]
    files = {
        "image cache": non_empty_files(place / "cache"),
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
