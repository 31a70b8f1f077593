"""Writes folders like those of finished runs, with the results and predictions of a test."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fgvpl_jax.clip import Identity
from fgvpl_jax.data import BENCHMARKS
from fgvpl_jax.evaluation import LearningCurve
from fgvpl_jax.methods import METHODS
from fgvpl_jax.runs.default_config import benchmark_config, get_config
from fgvpl_jax.runs.results import ONLY_WITH_TEST_SPLIT, ONLY_WITHOUT_TEST_SPLIT, ImageCounts
from fgvpl_jax.runs.workdir import Workdir
from tests.whole_runs import made_up_results

NO_TEST_SPLIT = {
    **dict.fromkeys(ONLY_WITH_TEST_SPLIT),
    **dict.fromkeys(ONLY_WITHOUT_TEST_SPLIT, 0.5),
    "cv_interval": (0.4, 0.6),
}


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
    backbone = Identity(settings.clip, None, sha256, "b" * 64)
    workdir = Workdir(folder)
    workdir.write_config(settings, asdict(backbone))
    workdir.write(workdir.few_shot_file, {"a": drawn})
    results = made_up_results(
        method=settings.method,
        benchmark=settings.benchmark,
        backbone=backbone,
        shots=settings.shots,
        seed=settings.seed,
        epochs=settings.epochs or 0,
        counts=ImageCounts(train=10 * (settings.shots or 16), validation=0, test=0),
        choices=METHODS[settings.method].starting_choices(settings),
        validation_accuracy={"cache_logit_weight 1": 0.25, "cache_logit_weight 2": 0.75},
        zero_shot_accuracy=zero_shot,
        learning_curve=LearningCurve((1.0, 2.0, 3.0), (0.4, 0.5, 0.55), 4.0, 0.6, 0.66, (0.5, 0.8)),
        **(NO_TEST_SPLIT if accuracy is None else {"test_accuracy": accuracy}),
    )
    results.write(workdir)
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
