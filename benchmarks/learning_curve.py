"""Checks what learning curves promise on a benchmark's training photos that were not drawn.

    python -m benchmarks.learning_curve eurosat --data_root=DATA --clip=CLIP --photos=8

For each draw of some photos per class, the learning curve says what twice as many photos would
bring. The same classifier is then fitted on these photos and as many more, and predicts photos of
the training split that were not drawn, at most 400 of each class; its α is the best of seven there.
Neither the validation nor the test split is read.
"""

import argparse
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from benchmarks.measuring import report
from fgvpl_jax.clip import load_clip
from fgvpl_jax.evaluation import learning_curve
from fgvpl_jax.methods.fitted_once import unit
from fgvpl_jax.methods.gda import WEIGHT_STEPS, Statistics
from fgvpl_jax.runs.data_loading import load_dataset, open_image_cache
from fgvpl_jax.runs.default_config import benchmark_config
from fgvpl_jax.training import FeatureInputs, FewShotInputs, data_mesh, kept_text_features

MOST_TESTED = 400  # photos per class
FIRST_SEED = 501


def main(benchmark: str, data_root: str, clip_name: str, photos: int, draws: int) -> dict[str, Any]:
    """Encodes the training split and returns what `coverage` does."""
    config = benchmark_config(benchmark)
    config.data.root = data_root
    dataset, clip = load_dataset(config), load_clip(clip_name)
    cache = open_image_cache(config)
    inputs = FeatureInputs(clip, FIRST_SEED, cache, data_mesh())
    features = unit(FewShotInputs(inputs, dataset.train, None, config.eval_batch_size).plain())
    texts = kept_text_features(clip, dataset.class_names, config.data.templates, cache)
    zero_shot_logits = float(clip.logit_scale) * features @ np.asarray(texts, np.float64).T
    return coverage(features, zero_shot_logits, dataset.train.labels, photos, draws)


def coverage(
    features: Float[np.ndarray, "N e"],
    zero_shot_logits: Float[np.ndarray, "N k"],
    labels: Int[np.ndarray, "N"],
    photos: int,
    draws: int,
) -> dict[str, Any]:
    """Returns how often the intervals hold the accuracy with twice the photos, and mean errors.

    Args:
        features: Unit vectors of the photos.
        zero_shot_logits: Zero-shot CLIP's logits.
        labels: True classes.
        photos: Number of photos per class that a curve is made from.
        draws: Number of draws.
    """

    def accuracy(places: Int[np.ndarray, "s"], tested: Int[np.ndarray, "t"]) -> float:
        views = features[places][:, None]
        statistics = Statistics.of(views, labels[places], zero_shot_logits.shape[1])
        kernel, bias = statistics.classifier(ridge=1.0)
        scores = (features[tested] @ kernel + bias) * len(places) / features.shape[1]
        logits = (zero_shot_logits[tested] + 10.0 ** (step / 2) * scores for step in WEIGHT_STEPS)
        return max(float((x.argmax(axis=1) == labels[tested]).mean()) for x in logits)

    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + draws):
        rng = np.random.default_rng(seed)
        orders = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
        few, more, tested = (
            np.concatenate([order[begin:end] for order in orders])
            for begin, end in (
                (0, photos),
                (0, 2 * photos),
                (2 * photos, 2 * photos + MOST_TESTED),
            )
        )
        curve = learning_curve(features[few], zero_shot_logits[few], labels[few], seed)
        assert curve is not None, "use at least four photos per class"
        now, twice = accuracy(few, tested), accuracy(more, tested)
        low, high = curve.twice_interval
        rows.append(
            {
                "accuracy": now,
                "accuracy with twice as many": twice,
                "error of the expected accuracy": curve.twice - twice,
                "error of the expected gain": curve.twice - curve.now - (twice - now),
                "in the interval": low <= twice <= high,
                "width of the interval": high - low,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
        "draws": draws
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmark")
    parser.add_argument("--data_root", required=True)
    parser.add_argument("--clip", required=True)
    parser.add_argument("--photos", type=int, default=8)
    parser.add_argument("--draws", type=int, default=24)
    options = parser.parse_args()
    report(main(options.benchmark, options.data_root, options.clip, options.photos, options.draws))
