"""Writes folders like those of finished runs, with the results and predictions of a test."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from fgvpl_jax.data import BENCHMARKS
from fgvpl_jax.runs.default_config import benchmark_config, get_config
from fgvpl_jax.runs.settings import plain


def write_run(
    folder: Path,
    accuracy: float | None,
    *,
    zero_shot: float = 0.5,
    sha256: str = "a" * 64,
    config: dict[str, Any] | None = None,
    predictions: dict[str, Any] | None = None,
    drawn: tuple[str, ...] = ("a.jpg",),
) -> Path:
    """Writes a run's config, few-shot images, results and, if given, predictions.npz.

    Args:
        folder: Folder of the run, which must not exist.
        accuracy: Test accuracy as a fraction; None for a run without a test split.
        zero_shot: Test accuracy of zero-shot CLIP as a fraction.
        sha256: Hash of the backbone.
        config: Fields other than the default, by dotted name.
        predictions: Fields of `SavedPredictions`; the rest has constant values.
        drawn: Names of the few-shot images.
    """
    config = {"benchmark": "eurosat"} | (config or {})
    known = config["benchmark"] in BENCHMARKS
    settings = benchmark_config(config["benchmark"]) if known else get_config()
    settings.update_from_flattened_dict(config)
    folder.mkdir(parents=True)
    content = {"config": plain(settings), "backbone": {"sha256": sha256}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "few_shot.json").write_text(json.dumps({"a": drawn}))
    results = {
        "method": settings.method,
        "benchmark": settings.benchmark,
        "backbone": {"id": settings.clip, "sha256": sha256},
        "shots": settings.shots,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "counts": {"train": 10 * (settings.shots or 16)},
        "validation_accuracy": {"cache_logit_weight 1": 0.25, "cache_logit_weight 2": 0.75},
        "test_accuracy": accuracy,
        "test_ece": 0.1,
        "test_ece_tempered": 0.05,
        "test_nll": 1.0,
        "test_nll_tempered": 0.9,
        "zero_shot_accuracy": zero_shot,
        "wall_seconds": 3.0,
    }
    (folder / "results.json").write_text(json.dumps(results))
    if predictions is not None:
        count = len(predictions["labels"])
        columns = {
            "indices": np.arange(count),
            "confidence": np.full(count, 0.9, np.float32),
            "confidence_tempered": np.full(count, 0.8, np.float32),
            "zero_shot_predicted": np.zeros(count, np.int32),
            "zero_shot_confidence": np.full(count, 0.5, np.float32),
            "class_names": np.array(["a", "b", "c"]),
        }
        np.savez(folder / "predictions.npz", **(columns | predictions))
    return folder
