"""Finds out when a photo belongs to none of a run's classes."""

from typing import NamedTuple

import numpy as np
from absl import logging

from fgvpl_jax.data import Split
from fgvpl_jax.evaluation import NoneOfThese
from fgvpl_jax.evaluation.none_of_these import (
    Photos,
    fit_known_classes,
    held_out_scores,
    set_threshold,
)
from fgvpl_jax.files import read_arrays
from fgvpl_jax.recognition import KnownClasses, known_score
from fgvpl_jax.runs.copies import with_copies
from fgvpl_jax.runs.cross_validation import stratified_folds
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import is_writer

FOLDS = 10
MOST_PHOTOS = 20_000


class FoundKnownClasses(NamedTuple):
    """The known classes of a run.

    Attributes:
        known: Arrays of the score.
        rates: The threshold, and rates at which held-out photos are below it.
    """

    known: KnownClasses
    rates: NoneOfThese


def known_classes_of(run: Run) -> FoundKnownClasses | None:
    """Returns the known classes by frozen CLIP's features of the support images.

    They are the same for all methods. Validation images, if there are any, help to set the
    threshold.

    Returns:
        None with fewer than ten held-out photos, and with more than 20,000 photos.
    """
    support, validation = run.few_shot.support, run.few_shot.validation
    strangers = run.dataset.other
    if len(support) + len(strangers or ()) > MOST_PHOTOS:
        return None
    features = run.support_features
    photos = Photos(features, support.labels, folds_of_photos(run, support))
    other = Photos(np.empty((0, features.shape[1])), np.empty(0, int), np.empty(0, int))
    if strangers is not None:
        found, places = run.frozen_features(strangers)
        if is_writer() and len(places) < len(strangers):
            logging.warning(
                "%d of the %d photos of other things cannot be read and are left out; --mode=data "
                "names them",
                len(strangers) - len(places),
                len(strangers),
            )
        strangers = with_copies(strangers, run.clip, run.image_cache, "other")
        folds = folds_of_photos(run, strangers)
        other = Photos(found, strangers.labels[places], folds[places])
    known = fit_known_classes(features, support.labels, other.features)
    validated = np.empty(0)
    if validation is not None:
        validated = np.asarray(known_score(known, run.frozen_features(validation)[0]))
    rates = set_threshold(held_out_scores(photos, other), validated)
    if rates is None:
        return None
    return FoundKnownClasses(known._replace(threshold=np.array(rates.threshold)), rates)


def folds_of_photos(run: Run, photos: Split) -> np.ndarray:
    """Returns the fold of each photo; copies share a fold."""
    return stratified_folds(photos.labels, FOLDS, run.config.seed, photos.first_copies)


def write_known_classes(run: Run, found: FoundKnownClasses | None) -> None:
    """Writes `known_classes.npz`, if the known classes were found."""
    if found is not None:
        arrays = {n: x.astype(np.float32) for n, x in found.known._asdict().items()}
        run.workdir.write_arrays(run.workdir.known_classes_file, **arrays)


def read_known_classes(workdir: Workdir, results: RunResults) -> KnownClasses | None:
    """Reads `known_classes.npz`; returns None for a run without it, such as one of version 0.1.0.

    Raises:
        UserError: If the file is missing or damaged.
    """
    if results.none_of_these is None:
        return None
    return KnownClasses(**read_arrays(workdir.known_classes_file))
