"""Judges the evidence for a class by hiding patches, and by showing only those.

    python -m benchmarks.evidence WORKDIR PHOTOS [--most=100]

Takes photos of a folder in name order, evenly spaced. For the predicted class of each, patches are
ranked by the evidence, by the attention map of a method that has one, and at random (3 draws). The
20% that rank highest are hidden (deletion: a lower probability is better), and all others are
hidden (insertion: a higher one is better). Hidden patches have the mean colour of the backbone's
normalisation. Intervals are 95% percentile bootstraps over the photos; differences are paired.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from benchmarks.measuring import report
from fgvpl_jax import load_classifier
from fgvpl_jax.data import photos_at
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.evidence import evidence_map, filled, mean_colour
from fgvpl_jax.reports.significance import interval_of_mean

SHARE = 0.2
RANDOM_DRAWS = 3


def main(workdir: str, photos: Sequence[Path], most: int) -> dict[str, Any]:
    """Returns mean probabilities, and the paired differences from the evidence."""
    classifier = load_classifier(workdir)
    places = np.unique(np.linspace(0, len(photos) - 1, min(most, len(photos))).astype(int))
    rng = np.random.default_rng(0)
    rows = [judge(classifier, photos[place], rng) for place in places]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    result: dict[str, Any] = {"photos": len(rows)}
    for name, values in columns.items():
        result[name] = (float(values.mean()), *interval_of_mean(values))
    for name, values in columns.items():
        way, _, ranking = name.partition(" ")
        if ranking not in ("", "evidence"):
            gain = columns[f"{way} evidence"] - values
            result[f"{way} evidence less {ranking}"] = (float(gain.mean()), *interval_of_mean(gain))
    return result


def judge(classifier: Classifier, photo: Path, rng: np.random.Generator) -> dict[str, float]:
    """Returns the probability of the predicted class after each way of hiding."""
    crop = classifier.crop(photo, photo.name)
    vision, colour = classifier.clip.vision, mean_colour(classifier.clip.image_encoder)
    (prediction,) = classifier.predict(crop, top_k=1)
    label = classifier.class_names.index(prediction.class_names[0])
    rankings = {"evidence": evidence_map(classifier.inference, crop, label, colour, vision)}
    if prediction.location is not None:
        rankings["attention_map"] = prediction.location.attention_map
    for draw in range(RANDOM_DRAWS):
        rankings[f"random {draw}"] = rng.random(vision.grid)
    crops = []
    for values in rankings.values():
        high = highest(values)
        crops += [filled(crop, mask, vision.config.patch_size, colour) for mask in (high, ~high)]
    after = probabilities(classifier, crops, label)
    judged = {"unhidden": prediction.probabilities[0]}
    for way, values in (("hide", after[::2]), ("show", after[1::2])):
        by_ranking = dict(zip(rankings, values.tolist(), strict=True))
        draws = [by_ranking.pop(f"random {draw}") for draw in range(RANDOM_DRAWS)]
        judged |= {f"{way} {name}": value for name, value in by_ranking.items()}
        judged[f"{way} random"] = float(np.mean(draws))
    return judged


def highest(values: Float[np.ndarray, "gh gw"]) -> Bool[np.ndarray, "gh gw"]:
    """Returns the 20% of the patches with the largest values."""
    order = np.argsort(-values, axis=None, kind="stable")
    mask = np.zeros(values.size, bool)
    mask[order[: round(SHARE * values.size)]] = True
    return mask.reshape(values.shape)


def probabilities(
    classifier: Classifier, crops: Sequence[UInt8[np.ndarray, "H W 3"]], label: int
) -> Float[np.ndarray, "b"]:
    """Returns the probability of one class in each crop."""
    features, _ = classifier.inference.encode(np.stack(crops))
    return np.asarray(classifier.inference.recognise(features).probabilities[:, label])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--most", type=int, default=100, help="number of photos at most")
    options = parser.parse_args()
    report(main(options.workdir, photos_at(options.photos), options.most))
