"""Whole runs, and what two of them must have alike."""

import json

from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir


def run(config, path):
    return experiment.train_and_evaluate(config, Workdir(path))


def metrics(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]


def without_times(results):
    return {k: v for k, v in results.items() if "second" not in k}
