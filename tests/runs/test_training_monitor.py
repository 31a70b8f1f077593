"""The logs of a training run in TensorBoard and Weights & Biases."""

import io
import json
import sys
import types
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from fgvpl_jax.displays.mask_pictures import SIDE
from fgvpl_jax.displays.overlay import PANEL, with_outline
from fgvpl_jax.errors import UserError
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.training_monitor import LogTargets
from fgvpl_jax.runs.workdir import Workdir


def events(folder):
    """Returns (tag, step, value) of every event.

    The file stores an event as 8 bytes of length, 4 of CRC, its content, and 4 of CRC.
    """
    found = []
    for file in sorted(folder.glob("events.*")):
        data, start = file.read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], "little")
            event = Event.FromString(data[start + 12 : start + 12 + length])
            found += [(value.tag, event.step, value) for value in event.summary.value]
            start += length + 16
    return found


def shows_an_object(square, masked):
    """Returns whether the masked picture dims one part of a square and leaves another unchanged.

    An empty mask, which dims everything, does not pass; nor does a full or absent mask, which dims
    nothing.
    """
    square, masked = square.astype(float), masked.astype(float)
    dimmed = (masked.sum(axis=-1) < 0.75 * square.sum(axis=-1)).mean()
    unchanged = (np.abs(masked - square).max(axis=-1) <= 2).mean()
    return bool(dimmed > 0.05 and unchanged > 0.05)


@pytest.mark.parametrize("mask", ["object", "empty", "full", "absent"])
def test_a_blank_mask_shows_no_object(mask):
    square = Image.new("RGB", (PANEL, PANEL), (90, 150, 200))
    patches = np.full((4, 4), mask == "full")
    if mask == "object":
        patches[1:3, 1:] = True
    masked = square if mask == "absent" else with_outline(square, patches)
    assert shows_an_object(np.asarray(square), np.asarray(masked)) == (mask == "object")


@pytest.fixture(scope="module")
def logged(module_config, tmp_path_factory):
    """Returns the folder and the results of a run with event files."""
    path = tmp_path_factory.mktemp("logged") / "W"
    targets = LogTargets(tensorboard=True)
    return path, experiment.train_and_evaluate(module_config, Workdir(path), targets)


def test_event_files_hold_numbers_masks_and_confusion_matrices(logged):
    path, results = logged
    numbers, pictures = defaultdict(dict), defaultdict(dict)
    for tag, step, value in events(path / "tensorboard"):
        if value.HasField("image"):
            encoded = io.BytesIO(value.image.encoded_image_string)
            pictures[tag][step] = np.asarray(Image.open(encoded).convert("RGB"))
        else:
            numbers[tag][step] = value.simple_value
    lines = [json.loads(line) for line in Workdir(path).metrics_file.read_text().splitlines()]
    assert len(lines) == 4
    for line in lines:
        for name in ("loss", "accuracy", "images_per_second"):
            logged = numbers[f"train/{name}"][line["epoch"]]
            assert logged == pytest.approx(line[name], rel=1e-6)
    best = max(results.validation_accuracy.values())
    assert numbers["validation/accuracy"] == {4: pytest.approx(best)}
    assert list(pictures["train/object_masks"]) == [1, 2, 3, 4]
    for sheet in pictures["train/object_masks"].values():
        assert sheet.shape == (3 * SIDE, 3 * SIDE, 3)  # one photo of each of three classes
        for row in np.split(sheet, 3):
            square, attention, masked = np.split(row, 3, axis=1)
            assert np.abs(attention.astype(float) - square).mean() > 5
            assert shows_an_object(square, masked)
    assert list(pictures["validation/confusion"]) == [4]


def test_logging_does_not_change_the_run(logged, finished):
    _, plain, _ = finished
    assert not (plain / "tensorboard").exists()
    assert events(logged[0] / "tensorboard")
    expected = np.load(plain / "predictions.npz")
    found = np.load(logged[0] / "predictions.npz")
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


def test_a_method_without_object_masks_logs_no_pictures_of_them(tiny_config, tmp_path):
    tiny_config.method = "tar"
    experiment.train_and_evaluate(
        tiny_config, Workdir(tmp_path / "W"), LogTargets(tensorboard=True)
    )
    tags = {tag for tag, _, _ in events(tmp_path / "W" / "tensorboard")}
    assert "train/object_masks" not in tags
    assert {"train/loss", "validation/confusion"} <= tags


def test_weights_and_biases_receives_the_same_logs(tiny_config, tmp_path, monkeypatch):
    logged, opened, finished = [], [], []
    run = types.SimpleNamespace(log=logged.append, finish=lambda: finished.append(True))
    module = types.SimpleNamespace(
        init=lambda **given: opened.append(given) or run, Image=Image.fromarray
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    experiment.train_and_evaluate(
        tiny_config, Workdir(tmp_path / "W"), LogTargets(wandb_project="p")
    )
    assert opened[0]["project"] == "p" and opened[0]["config"]["shots"] == 3
    assert {name for line in logged for name in line} >= {
        "epoch",
        "train/loss",
        "train/object_masks",
        "validation/confusion",
    }
    assert finished == [True]


def test_a_missing_package_is_reported_with_its_installation(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install .*\[wandb\]"):
        experiment.train_and_evaluate(
            tiny_config, Workdir(tmp_path / "W"), LogTargets(wandb_project="p")
        )
