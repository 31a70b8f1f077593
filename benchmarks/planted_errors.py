"""Judges `--mode=data` by errors that are planted in a benchmark's training images.

    python -m benchmarks.planted_errors CONFIG --data_root=DATA --clip=CLIP --strangers=PHOTOS

CONFIG is the name of a file in `configs/`. Each draw has 100 training images of each class. In
turn, 5% and 10% of the labels are changed to other classes at random; 20 images are copied into
another class, at 75% of their size and as JPEG; and 20 of the photos in PHOTOS get labels at
random. The figures are recall and precision of what is reported. If cleanlab is installed, its
rules find the same labels from the same probabilities.
"""

import argparse
import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.measuring import report
from fgvpl_jax.clip import load_clip
from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.data import Split, photos_at
from fgvpl_jax.data.near_copies import first_copies, groups_of_copies, signature
from fgvpl_jax.data.splits import make_split
from fgvpl_jax.evaluation.suspects import OutOfFold, out_of_fold, outliers, suspect_labels
from fgvpl_jax.methods.fitted_once import unit
from fgvpl_jax.runs.cross_validation import stratified_folds
from fgvpl_jax.runs.data_loading import load_dataset, open_image_cache
from fgvpl_jax.runs.known_classes import FOLDS
from fgvpl_jax.training import FeatureInputs, FewShotInputs, data_mesh, kept_text_features

PER_CLASS = 100
PLANTED = 20
FIRST_SEED = 101


def main(config: ConfigDict, draws: int, strangers: str | None) -> dict[str, Any]:
    """Encodes the images and returns the mean figures."""
    dataset, clip = load_dataset(config), load_clip(config.clip)
    cache = open_image_cache(config)
    inputs = FeatureInputs(clip, FIRST_SEED, cache, data_mesh())

    def encoded(split: Split) -> Float[np.ndarray, "N e"]:
        return unit(FewShotInputs(inputs, split, None, config.eval_batch_size).plain())

    features, labels = encoded(dataset.train), dataset.train.labels
    others = None
    if strangers is not None:
        files = photos_at(strangers)
        place = Path(strangers).absolute()
        others = encoded(
            make_split(place, [(str(f.absolute().relative_to(place)), 0) for f in files])
        )
    texts = kept_text_features(clip, dataset.class_names, config.data.templates, cache)
    weights = float(clip.logit_scale) * np.asarray(texts, np.float64)
    found = []
    for seed in range(FIRST_SEED, FIRST_SEED + draws):
        rng = np.random.default_rng(seed)
        drawn = np.concatenate(
            [rng.permutation(np.flatnonzero(labels == c))[:PER_CLASS] for c in range(len(weights))]
        )
        row: dict[str, float] = {}
        for share in (0.05, 0.1):
            row |= judge_labels(features[drawn], labels[drawn], weights, share, seed)
        if others is not None:
            row |= judge_strangers(features[drawn], labels[drawn], others, weights, seed)
        row |= judge_copies(dataset.train.select(drawn.tolist()), seed)
        found.append(row)
    return {"draws": draws} | {
        name: round(float(np.mean([row[name] for row in found])), 4) for name in found[0]
    }


def predictions(
    features: Float[np.ndarray, "N e"],
    labels: Int[np.ndarray, "N"],
    weights: Float[np.ndarray, "k e"],
    seed: int,
) -> OutOfFold:
    """Returns the predictions that `--mode=data` makes."""
    folds = stratified_folds(labels, FOLDS, seed)
    return out_of_fold(features, features @ weights.T, labels, folds)


def judge_labels(
    features: Float[np.ndarray, "N e"],
    labels: Int[np.ndarray, "N"],
    weights: Float[np.ndarray, "k e"],
    share: float,
    seed: int,
) -> dict[str, float]:
    """Returns how well changed labels are found."""
    rng = np.random.default_rng((seed, 1))
    changed = rng.permutation(len(labels))[: round(share * len(labels))]
    given = labels.copy()
    given[changed] = (given[changed] + rng.integers(1, len(weights), len(changed))) % len(weights)
    found = predictions(features, given, weights, seed)
    name = f"{share:.0%} wrong labels"
    suspects = suspect_labels(found, given)
    row = {f"{name}: accuracy out of fold": float((found.probabilities.argmax(1) == labels).mean())}
    row |= rates(name, suspects, changed)
    row[f"{name}: precision of the first {len(changed)}"] = precision(
        suspects[: len(changed)], changed
    )
    if importlib.util.find_spec("cleanlab") is not None:
        from cleanlab.filter import find_label_issues

        for rule in ("prune_by_noise_rate", "confident_learning"):
            places = find_label_issues(
                given,
                found.probabilities,
                filter_by=rule,
                return_indices_ranked_by="normalized_margin",
                n_jobs=1,
            )
            row |= rates(f"{name}, cleanlab {rule}", places, changed)
            row[f"{name}, cleanlab {rule}: precision of the first {len(changed)}"] = precision(
                places[: len(changed)], changed
            )
    return row


def judge_strangers(
    features: Float[np.ndarray, "N e"],
    labels: Int[np.ndarray, "N"],
    others: Float[np.ndarray, "o e"],
    weights: Float[np.ndarray, "k e"],
    seed: int,
) -> dict[str, float]:
    """Returns how well photos of other things are found as outliers."""
    rng = np.random.default_rng((seed, 2))
    planted = others[rng.permutation(len(others))[:PLANTED]]
    everything = np.concatenate([features, planted])
    given = np.concatenate([labels, rng.integers(0, len(weights), len(planted))])
    found = outliers(predictions(everything, given, weights, seed))
    return rates("strangers", found, np.arange(len(labels), len(given)))


def judge_copies(photos: Split, seed: int) -> dict[str, float]:
    """Returns how well smaller, compressed copies in another class are found."""
    rng = np.random.default_rng((seed, 3))
    originals = rng.permutation(len(photos))[:PLANTED]
    found = [signature(photos.image(i)) for i in range(len(photos))]
    found += [signature(smaller(photos.image(int(i)))) for i in originals]
    first = first_copies(np.stack(found))
    pairs = {(group[0], place) for group in groups_of_copies(first) for place in group[1:]}
    planted = {(int(one), len(photos) + i) for i, one in enumerate(originals)}
    return {
        "copies: recall": len(pairs & planted) / len(planted),
        "copies: precision": len(pairs & planted) / max(len(pairs), 1),
    }


def smaller(photo: Image.Image) -> Image.Image:
    """Returns a photo at 75% of its size, after compression."""
    stream = BytesIO()
    photo.resize((photo.width * 3 // 4, photo.height * 3 // 4)).save(stream, "JPEG", quality=75)
    return Image.open(BytesIO(stream.getvalue()))


def rates(
    name: str, found: Int[np.ndarray, "m"], planted: Int[np.ndarray, "p"]
) -> dict[str, float]:
    """Returns recall and precision."""
    return {
        f"{name}: recall": float(np.isin(planted, found).mean()),
        f"{name}: precision": precision(found, planted),
    }


def precision(found: Int[np.ndarray, "m"], planted: Int[np.ndarray, "p"]) -> float:
    """Returns the share of what was found that was planted."""
    return float(np.isin(found, planted).mean()) if len(found) else 1.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--data_root")
    parser.add_argument("--clip")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--strangers")
    options = parser.parse_args()
    settings = config_named(options.config)
    if options.data_root:
        settings.data.root = options.data_root
    if options.clip:
        settings.clip = options.clip
    report(main(settings, options.draws, options.strangers))
