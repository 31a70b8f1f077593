"""Measures what changes of the classes do to the trained ones."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fgvpl_jax.data import Split
from fgvpl_jax.inference.class_changes import ClassChanges
from fgvpl_jax.inference.programs import padded_batch
from fgvpl_jax.runs.data_loading import load_dataset
from fgvpl_jax.runs.workdir import Workdir

if TYPE_CHECKING:
    from fgvpl_jax.inference.classifier import Classifier

MOST_PHOTOS = 300
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
        UserError: If the photos can no longer be read.
    """
    names = classifier.changes.trained_names
    test = load_dataset(Workdir(classifier.workdir).stored_config()).test
    photos: Split = classifier.support if test is None else test
    kept = np.flatnonzero([names[label] is not None for label in photos.labels])
    by_class = kept[np.argsort(photos.labels[kept], kind="stable")]
    places = by_class[:: -(-len(by_class) // MOST_PHOTOS)]
    changes = (ClassChanges(tuple(map(str, range(len(names))))), classifier.changes)
    right = np.zeros(2, np.int64)
    for start in range(0, len(places), BATCH_SIZE):
        batch = places[start : start + BATCH_SIZE].tolist()
        crops = [classifier.crop(photos.image(place), photos.keys[place]) for place in batch]
        images = padded_batch(crops, BATCH_SIZE)
        features, _ = classifier.inference.encode(images, scored=False)
        for number, one in enumerate(changes):
            logits = classifier.inference.recognise(features, one.on_device).logits[: len(batch)]
            right[number] += (logits.argmax(axis=1) == photos.labels[batch]).sum()
    before, after = (right / len(places)).tolist()
    return AccuracyChange(before, after, len(places), test is None)
