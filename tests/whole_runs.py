"""Runs the whole method, reads the files of a run, and makes up results."""

import json
from contextlib import contextmanager

import pytest

from fgvpl_jax.clip import Identity
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.results import ImageCounts, RunResults
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import loop


def run(config, path):
    """Trains and evaluates in a folder; returns the results."""
    return experiment.train_and_evaluate(config, Workdir(path))


@contextmanager
def interruption_in_epoch(number):
    """Expects a run inside the block to stop with KeyboardInterrupt at the end of this epoch."""
    original = loop.epoch_metrics

    def interrupted(epoch, *args):
        if epoch == number:
            raise KeyboardInterrupt
        return original(epoch, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "epoch_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def stored_results(path):
    """Returns results.json of a run as a dictionary."""
    return json.loads((path / "results.json").read_text())


def metrics(path):
    """Returns the lines of metrics.jsonl of a run, without times."""
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def without_times(content):
    """Returns the fields of a JSON object or of `RunResults`, except those that hold times."""
    if isinstance(content, RunResults):
        content = content.to_json()
    return {name: value for name, value in content.items() if "second" not in name}


def made_up_results(**fields):
    """Returns results of an imaginary run with a test split; `fields` replace the defaults."""
    defaults = {
        "method": "zero_shot",
        "benchmark": "squares",
        "backbone": Identity("owner/clip", "main", "a" * 64, "b" * 64),
        "shots": 3,
        "seed": 1,
        "epochs": 0,
        "num_classes": 3,
        "split_protocol": "the folders' own",
        "counts": ImageCounts(train=9, validation=9, test=15),
        "validation_accuracy": {"as trained": 0.5},
        "validation_unreadable": (),
        "temperature": 1.0,
        "test_accuracy": 0.5,
        "test_mean_class_accuracy": 0.5,
        "test_nll": 1.0,
        "test_ece": 0.1,
        "zero_shot_accuracy": 0.25,
        "zero_shot_mean_class_accuracy": 0.25,
        "zero_shot_nll": 2.0,
        "zero_shot_ece": 0.2,
        "test_nll_tempered": 0.9,
        "test_ece_tempered": 0.05,
        "test_images_read": 15,
        "unreadable": (),
        "train_seconds": 2.0,
        "wall_seconds": 3.0,
    }
    return RunResults(**(defaults | fields))
