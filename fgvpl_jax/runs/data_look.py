"""A look at a user's own photos: wrong labels, copies, outliers, and classes that are confused."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import Dataset, Split
from fgvpl_jax.data.near_copies import first_copies, groups_of_copies, signatures
from fgvpl_jax.evaluation.suspects import confusions, out_of_fold, outliers, suspect_labels
from fgvpl_jax.runs.compiled_programs import keep_compiled_programs
from fgvpl_jax.runs.cross_validation import stratified_folds
from fgvpl_jax.runs.data_loading import load_dataset, open_image_cache
from fgvpl_jax.runs.known_classes import FOLDS, MOST_PHOTOS
from fgvpl_jax.runs.run import readable_features
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import FeatureInputs, batch_size_for, data_mesh, kept_text_features

LOOK = "data_look.json"


@dataclass(frozen=True)
class Suspect:
    """One photo to look at.

    Attributes:
        key: Path of the photo.
        split: Index of its split in `DataLook.splits`.
        place: Index of the photo in its split.
        label: Given class.
        reason: Reason for the suspicion, as users read it.
    """

    key: str
    split: int
    place: int
    label: str
    reason: str


@dataclass(frozen=True)
class DataLook:
    """Photos that a look at the data found.

    Attributes:
        splits: The splits that were looked at; the first is that for training.
        accuracy: Share of the training photos whose class a quick classifier finds out of fold.
        mislabelled: Training photos that are probably mislabelled, the most certain first.
        copies: Groups of copies in several classes or splits.
        outliers: Training photos unlike all classes, the strangest first.
        confused: Given class, predicted class, and the number of photos, most photos first.
    """

    splits: tuple[Split, ...]
    accuracy: float
    mislabelled: list[Suspect]
    copies: list[list[Suspect]]
    outliers: list[Suspect]
    confused: list[tuple[str, str, int]]


def look_at_data(config: ConfigDict, workdir: Workdir) -> DataLook | None:
    """Looks at a user's own photos with CLIP's frozen features, and writes `data_look.json`.

    Labels are judged for the training photos, which include photos that a run would not draw.
    Copies are found in all splits.

    Returns:
        None for more than 20,000 photos.
    Raises:
        UserError: If the backbone cannot be loaded.
    """
    keep_compiled_programs()
    dataset = load_dataset(config)
    splits = tuple(x for x in (dataset.train, dataset.validation, dataset.test) if x is not None)
    if sum(map(len, splits)) > MOST_PHOTOS:
        return None
    look = find_suspects(config, dataset, splits)
    workdir.write(
        workdir.path / LOOK,
        {
            "accuracy": look.accuracy,
            "mislabelled": [as_json(one) for one in look.mislabelled],
            "copies": [[as_json(one) for one in group] for group in look.copies],
            "outliers": [as_json(one) for one in look.outliers],
            "confused": [
                {"class": given, "predicted": predicted, "photos": count}
                for given, predicted, count in look.confused
            ],
        },
    )
    return look


def as_json(suspect: Suspect) -> dict[str, str]:
    """Returns a suspect as JSON content."""
    return {"photo": suspect.key, "class": suspect.label, "reason": suspect.reason}


def find_suspects(config: ConfigDict, dataset: Dataset, splits: tuple[Split, ...]) -> DataLook:
    """Returns what a look at the photos finds; see `look_at_data`."""
    clip, cache, mesh = load_clip(config.clip), open_image_cache(config), data_mesh()
    train, names = dataset.train, dataset.class_names
    found_signatures = [signatures(split, clip.resize_and_crop, cache) for split in splits]
    first = first_copies(np.concatenate(found_signatures))
    inputs = FeatureInputs(clip, config.seed, cache, mesh)
    size = batch_size_for(mesh, config.eval_batch_size, len(train))
    features, places = readable_features(inputs, train, size)
    labels = train.labels[places]
    texts = kept_text_features(clip, names, config.data.templates, cache)
    zero_shot = float(clip.logit_scale) * features @ np.asarray(texts, np.float64).T
    folds = stratified_folds(train.labels, FOLDS, config.seed, first[: len(train)])[places]
    found = out_of_fold(features, zero_shot, labels, folds)
    best = found.probabilities.argmax(axis=1)

    def suspect(split: int, place: int, reason: str) -> Suspect:
        key, label = splits[split].keys[place], splits[split].labels[place]
        return Suspect(key, split, place, names[label], reason)

    def mislabelled(row: int) -> Suspect:
        likely, given = best[row], labels[row]
        reason = (
            f"rather {names[likely]}: {found.probabilities[row, likely]:.0%} against "
            f"{found.probabilities[row, given]:.0%}"
        )
        return suspect(0, int(places[row]), reason)

    usual = np.median(-found.scores[found.is_judged]) if found.is_judged.any() else 1.0

    def outlier(row: int) -> Suspect:
        reason = (
            f"{np.sqrt(-found.scores[row] / usual):.1f} times the usual distance from all classes"
        )
        return suspect(0, int(places[row]), reason)

    copies = [
        [suspect(*photo, f"{len(group)} copies of one photo {kind}") for photo in group]
        for kind, group in groups_across(first, splits)
    ]
    judged = found.is_judged
    return DataLook(
        splits,
        float((best[judged] == labels[judged]).mean()) if judged.any() else 0.0,
        [mislabelled(int(row)) for row in suspect_labels(found, labels)],
        copies,
        [outlier(int(row)) for row in outliers(found)],
        [(names[a], names[b], count) for a, b, count in confusions(found, labels)],
    )


def groups_across(
    first: Int[np.ndarray, "N"], splits: Sequence[Split]
) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Yields the groups of copies that are in several classes or splits.

    Args:
        first: Place of the first copy of each photo, counted over all splits.
        splits: The splits.
    Yields:
        Where the group is (classes or splits), and split and place of each of its photos.
    """
    starts = np.cumsum([0, *map(len, splits)])
    for group in groups_of_copies(first):
        owners = (np.searchsorted(starts, group, side="right") - 1).tolist()
        photos = [(o, int(place - starts[o])) for o, place in zip(owners, group, strict=True)]
        if len({splits[owner].labels[place] for owner, place in photos}) > 1:
            yield "in several classes", photos
        elif len(set(owners)) > 1:
            yield "in several splits", photos
