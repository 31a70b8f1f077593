"""Compares bfloat16 with float32: accuracy and object masks of the same training in both.

    python -m benchmarks.compute_dtype CLIP DATA [epochs] [test stride]

Trains on EuroSAT below DATA with 16 shots, seed 1 and λ = 1, and reads every `stride`-th test
image. Prints text, then one JSON line.
"""

import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks.measuring import report
from configs import eurosat
from fgvpl_jax.evaluation import Predictions, score
from fgvpl_jax.evaluation.mask_iou import iou
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import Checkpoints, train


def main(clip: str, data: str, epochs: int, stride: int) -> dict[str, float]:
    """Trains once in each dtype and compares the predictions."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            dtype: train_and_predict(clip, data, epochs, stride, dtype, Path(folder) / dtype)
            for dtype in ("float32", "bfloat16")
        }
    wide, narrow = found["float32"], found["bfloat16"]
    assert wide.object_masks is not None
    assert narrow.object_masks is not None
    pairs = list(zip(wide.object_masks, narrow.object_masks, strict=True))
    return {
        "test_images": len(pairs),
        "float32_accuracy": score(wide.logits, wide.labels).accuracy,
        "bfloat16_accuracy": score(narrow.logits, narrow.labels).accuracy,
        "float32_zero_shot": score(wide.zero_shot_logits, wide.labels).accuracy,
        "bfloat16_zero_shot": score(narrow.zero_shot_logits, narrow.labels).accuracy,
        "same_prediction": float((wide.logits.argmax(1) == narrow.logits.argmax(1)).mean()),
        "mean_mask_iou": float(np.mean([iou(a, b) for a, b in pairs])),
        "identical_masks": float(np.mean([np.array_equal(a, b) for a, b in pairs])),
    }


def train_and_predict(
    clip: str, data: str, epochs: int, stride: int, dtype: str, place: Path
) -> Predictions:
    """Trains in one dtype and returns the predictions on the test images."""
    config = eurosat.get_config()
    config.clip, config.data.root, config.epochs, config.compute_dtype = clip, data, epochs, dtype
    run: Run = prepare(config, Workdir(place))
    model = run.new_model(run.few_shot.support)
    place.mkdir()
    with Checkpoints(place / "checkpoints", run.provenance, to_train=True) as checkpoints:
        train(
            model,
            run.few_shot.support,
            run.training_setup,
            checkpoints=checkpoints,
            metrics_file=place / "metrics.jsonl",
        )
    evaluator, _ = run.evaluator(model, run.few_shot.support)
    test = run.dataset.test
    assert test is not None
    every = test.select(range(0, len(test), stride))
    predictions = evaluator.predict(every, {"cache_logit_weight": 1.0}, name=dtype)
    jax.clear_caches()
    return predictions


if __name__ == "__main__":
    clip, data, *options = sys.argv[1:]
    epochs, stride = (int(value) for value in (*options, *("10", "1")[len(options) :]))
    report(main(clip, data, epochs, stride))
