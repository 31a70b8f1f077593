"""Compares scores that say whether a photo belongs to a known class, with classes left out.

    python -m benchmarks.unknown_classes CONFIG --data_root=DATA --clip=CLIP --shots 4 16

CONFIG is the name of a file in `configs/`. In each draw three classes are unknown, and the others
have some support images each. Images that were not drawn, at most 200 of each class, are scored:
AUROC, and the share of the unknown images that score as high as 95% of the known ones do (FPR95).
All of them are of the training split, unless `--test` is given. Last come the rates of the
project's own threshold. For scores with photos of other things, these are 20 images of all three
unknown classes, or of one of them, which is then not scored.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import roc_auc_score

from benchmarks.measuring import report
from fgvpl_jax.clip import load_clip
from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.data import Split
from fgvpl_jax.evaluation.none_of_these import (
    Photos,
    fit_known_classes,
    held_out_scores,
    set_threshold,
)
from fgvpl_jax.methods.fitted_once import unit
from fgvpl_jax.methods.gda import Statistics
from fgvpl_jax.recognition import known_score
from fgvpl_jax.runs.cross_validation import stratified_folds
from fgvpl_jax.runs.data_loading import load_dataset, open_image_cache
from fgvpl_jax.runs.known_classes import FOLDS
from fgvpl_jax.training import FeatureInputs, FewShotInputs, data_mesh, kept_text_features

UNKNOWN = 3
MOST_SCORED = 200
NUM_OTHER = 20
FIRST_SEED = 101

Features = Float[np.ndarray, "N e"]


def main(config: ConfigDict, shots: Sequence[int], draws: int, test: bool) -> list[dict[str, Any]]:
    """Encodes the images; returns the mean figures of each score at each number of shots."""
    dataset, clip = load_dataset(config), load_clip(config.clip)
    cache = open_image_cache(config)
    inputs = FeatureInputs(clip, FIRST_SEED, cache, data_mesh())

    def encoded(split: Split) -> Features:
        return unit(FewShotInputs(inputs, split, None, config.eval_batch_size).plain())

    train = encoded(dataset.train), dataset.train.labels
    scored = (encoded(dataset.test), dataset.test.labels) if test and dataset.test else None
    texts = kept_text_features(clip, dataset.class_names, config.data.templates, cache)
    weights = float(clip.logit_scale) * np.asarray(texts, np.float64)
    rows = []
    for count in shots:
        found = [
            draw(train, scored, weights, count, seed)
            for seed in range(FIRST_SEED, FIRST_SEED + draws)
        ]
        rows.append(
            {"shots": count, "draws": draws}
            | {name: round(float(np.mean([one[name] for one in found])), 4) for name in found[0]}
        )
    return rows


def draw(
    train: tuple[Features, Int[np.ndarray, "N"]],
    scored: tuple[Features, Int[np.ndarray, "M"]] | None,
    weights: Float[np.ndarray, "k e"],
    shots: int,
    seed: int,
) -> dict[str, float]:
    """Returns the figures of each score in one draw.

    Args:
        train: Features and labels that support images and other photos are drawn from.
        scored: Features and labels of the images to score; None scores those that are not drawn.
        weights: Text features, times the logit scale.
        shots: Support images of each known class.
        seed: Seed of the draw.
    """
    features, labels = train
    rng = np.random.default_rng(seed)
    unknown = rng.permutation(len(weights))[:UNKNOWN]
    known = np.setdiff1d(np.arange(len(weights)), unknown)
    orders = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(weights))]
    support = np.concatenate([orders[c][:shots] for c in known])
    places = np.searchsorted(known, labels[support])
    per_class = -(-NUM_OTHER // UNKNOWN)
    others = {
        "all": np.concatenate([orders[c][:per_class] for c in unknown])[:NUM_OTHER],
        "one": orders[unknown[0]][:NUM_OTHER],
    }

    def queries(classes: Int[np.ndarray, "c"], drawn: int) -> Features:
        if scored is None:
            return features[
                np.concatenate([orders[c][drawn : drawn + MOST_SCORED] for c in classes])
            ]
        everything, truth = scored
        return everything[
            np.concatenate([np.flatnonzero(truth == c)[:MOST_SCORED] for c in classes])
        ]

    inside, outside = queries(known, shots), queries(unknown, NUM_OTHER)
    found: dict[str, float] = {}
    scores = scores_of(features[support], places, weights[known], np.concatenate([inside, outside]))
    for name, values in scores.items():
        found |= figures(name, values[: len(inside)], values[len(inside) :])
    for kind, chosen in others.items():
        outside_too = outside if kind == "all" else queries(unknown[1:], NUM_OTHER)
        fit = fit_known_classes(features[support], places, features[chosen])
        pair = [np.asarray(known_score(fit, x)) for x in (inside, outside_too)]
        found |= figures(f"ours, other photos of {kind}", *pair)
        pair = [scores["ours"][: len(inside)], scores["ours"][-len(outside_too) :]]
        found |= figures(f"ours without them, for {kind}", *pair)
    nothing = Photos(features[:0], labels[:0], labels[:0])
    folds = stratified_folds(places, FOLDS, seed)
    rates = set_threshold(
        held_out_scores(Photos(features[support], places, folds), nothing), np.empty(0)
    )
    if rates is not None and rates.left_out_caught is not None:
        rejected = float((scores["ours"][: len(inside)] < rates.threshold).mean())
        low, high = rates.false_rejection_interval
        found |= {
            "false rejection": rejected,
            "expected false rejection": rates.false_rejection,
            "in the interval": float(low <= rejected <= high),
            "unknown caught": float((scores["ours"][len(inside) :] < rates.threshold).mean()),
            "expected of a class left out": rates.left_out_caught,
        }
    return found


def figures(
    name: str, inside: Float[np.ndarray, "n"], outside: Float[np.ndarray, "m"]
) -> dict[str, float]:
    """Returns AUROC and FPR95 of a score."""
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    return {
        f"{name}: AUROC": float(roc_auc_score(truth, np.concatenate([inside, outside]))),
        f"{name}: FPR95": float((outside >= np.quantile(inside, 0.05)).mean()),
    }


def scores_of(
    support: Features, labels: Int[np.ndarray, "s"], weights: Features, queries: Features
) -> dict[str, Float[np.ndarray, "q"]]:
    """Returns each score of the queries, higher for images that fit the known classes.

    Args:
        support: Unit vectors of the support images.
        labels: Their classes.
        weights: Text features of the known classes, times the logit scale.
        queries: Unit vectors of the images to score.
    """
    count, dim = support.shape
    statistics = Statistics.of(support[:, None], labels, len(weights))
    kernel, bias = statistics.classifier(1.0)
    zero_shot = queries @ weights.T
    logits = zero_shot + count / dim * (queries @ kernel + bias)
    means = statistics.means / np.linalg.norm(statistics.means, axis=1, keepdims=True)
    similar = -np.sort(-queries @ support.T, axis=1)
    ours = fit_known_classes(support, labels, support[:0])
    background = fit_known_classes(support, np.zeros_like(labels), support[:0])
    points = (queries - ours.centre) @ ours.whitening * np.sqrt(dim)
    centres = ours.class_means * np.sqrt(dim)
    distances = ((points[:, None] - centres) ** 2).sum(axis=2)
    own = np.asarray(known_score(ours, queries))
    return {
        "zero-shot, maximum probability": log_softmax(zero_shot, axis=1).max(axis=1),
        "zero-shot, energy": logsumexp(zero_shot, axis=1),
        "GDA, maximum probability": log_softmax(logits, axis=1).max(axis=1),
        "GDA, energy": logsumexp(logits, axis=1),
        "cosine to the closest class mean": (queries @ means.T).max(axis=1),
        "cosine to the closest image": similar[:, 0],
        "cosine to the third closest image": similar[:, min(2, count - 1)],
        "mixture of Gaussians": logsumexp(-distances / 2, axis=1),
        "relative distance": own - np.asarray(known_score(background, queries)),
        "ours": own,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--data_root")
    parser.add_argument("--clip")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--test", action="store_true")
    options = parser.parse_args()
    settings = config_named(options.config)
    if options.data_root:
        settings.data.root = options.data_root
    if options.clip:
        settings.clip = options.clip
    for row in main(settings, options.shots, options.draws, options.test):
        report(row)
