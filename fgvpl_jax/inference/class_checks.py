"""Measures what changes of the classes do to the trained ones."""

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fgvpl_jax.data import Split, UnreadableImage
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.inference.programs import padded_batch
from fgvpl_jax.runs.data_loading import load_dataset
from fgvpl_jax.runs.workdir import Workdir

if TYPE_CHECKING:
    from fgvpl_jax.inference.classifier import Classifier

MOST_CHECKED = 300
BATCH_SIZE = 32


class AccuracyChange(NamedTuple):
    """Accuracy on photos of the trained classes, without those that were removed.

    Attributes:
        before: Accuracy among the trained classes.
        after: Accuracy among the changed classes.
        num_photos: Number of photos.
        are_training_photos: Whether they are the run's training photos, because it has no test
            photos; both accuracies are then too high.
    """

    before: float
    after: float
    num_photos: int
    are_training_photos: bool


def trained_class_accuracy(classifier: "Classifier") -> AccuracyChange:
    """Predicts photos of the trained classes before and after the changes.

    The photos are the run's test photos or, without any, its training photos; of more than 300,
    every n-th is taken.

    Raises:
        UserError: If the data have other classes now, or no photo of a trained class can be read.
    """
    names = classifier.changes.trained_names
    dataset = load_dataset(Workdir(classifier.workdir).stored_config())
    if tuple(dataset.class_names) != classifier.trained_names:
        raise UserError(
            f"the data have the classes {', '.join(dataset.class_names)} now, and the run was "
            f"trained for {', '.join(classifier.trained_names)}: restore the data"
        )
    photos: Split = classifier.support if dataset.test is None else dataset.test
    kept = np.flatnonzero([names[label] is not None for label in photos.labels])
    by_class = kept[np.argsort(photos.labels[kept], kind="stable")]
    places = by_class[:: max(1, -(-len(by_class) // MOST_CHECKED))].tolist()
    changes = (ClassChanges(classifier.trained_names), classifier.changes)
    right, read = np.zeros(2, np.int64), 0
    for start in range(0, len(places), BATCH_SIZE):
        crops, labels = [], []
        for place in places[start : start + BATCH_SIZE]:
            with suppress(UnreadableImage):  # the evaluation leaves it out as well
                crops.append(classifier.crop(photos.image(place), photos.keys[place]))
                labels.append(int(photos.labels[place]))
        if not crops:
            continue
        features, _ = classifier.inference.encode(padded_batch(crops, BATCH_SIZE), scored=False)
        for number, one in enumerate(changes):
            logits = classifier.inference.recognise(features, one.on_device).logits[: len(crops)]
            right[number] += np.sum(logits.argmax(axis=1) == np.array(labels))
        read += len(crops)
    if not read:
        raise UserError("no photo of a trained class can be read, so there is nothing to compare")
    before, after = (right / read).tolist()
    return AccuracyChange(before, after, read, dataset.test is None)
