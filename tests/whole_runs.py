"""Helpers for tests of whole runs, and what two equal runs must have in common."""

import json

from fgvpl_jax.clip import Identity
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.results import ImageCounts, RunResults
from fgvpl_jax.runs.workdir import Workdir


def run(config, path):
    return experiment.train_and_evaluate(config, Workdir(path))


def metrics(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [without_times(json.loads(line)) for line in lines]


def without_times(content):
    """Returns a JSON object, or results as one, without the fields that hold times."""
    if isinstance(content, RunResults):
        content = content.to_json()
    return {name: value for name, value in content.items() if "second" not in name}


def made_up_results(**fields):
    """Returns results of a run with a test split; arguments replace their fields."""
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
