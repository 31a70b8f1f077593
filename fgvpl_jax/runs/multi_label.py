"""Trains and measures a classifier of photos with several labels, on CLIP's frozen features."""

import time
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Float64, Int
from ml_collections import ConfigDict

from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation.multi_label import (
    LabelScores,
    chance_precision,
    label_thresholds,
    score_labels,
)
from fgvpl_jax.files import read_arrays
from fgvpl_jax.methods.multi_label import (
    LabelScorer,
    Sigmoid,
    choose_candidate,
    label_method,
    least_slope,
    out_of_fold_values,
)
from fgvpl_jax.runs.copies import warn_of_copies_in, with_copies
from fgvpl_jax.runs.cross_validation import (
    is_intact,
    stratified_folds,
    warn_of_single_photos,
)
from fgvpl_jax.runs.label_results import LabelResults
from fgvpl_jax.runs.label_run import LabelRun, prepare_labels, training_record
from fgvpl_jax.runs.results import ImageCounts
from fgvpl_jax.runs.workdir import Workdir


class LabelModel(NamedTuple):
    """Everything that prediction needs, as `labels.npz` stores it.

    Attributes:
        class_names: Names of the labels.
        scorer: The classifier.
        sigmoid: Turns its values into probabilities.
        thresholds: Probability from which each label is assigned.
    """

    class_names: tuple[str, ...]
    scorer: LabelScorer
    sigmoid: Sigmoid
    thresholds: Float64[np.ndarray, "k"]

    def probabilities(self, features: Float[np.ndarray, "b e"]) -> Float64[np.ndarray, "b k"]:
        """Returns the probability of every label for raw or unit features."""
        return self.sigmoid.probabilities(self.scorer.values(features))


class HeldOutLabels(NamedTuple):
    """Predictions of the training photos, each without its fold.

    Attributes:
        probabilities: Probability of every label.
        assigned: Whether it reaches the threshold that the other folds chose.
        cosines: Zero-shot CLIP's cosines.
    """

    probabilities: Float64[np.ndarray, "N k"]
    assigned: Bool[np.ndarray, "N k"]
    cosines: Float64[np.ndarray, "N k"]


class Trained(NamedTuple):
    """A classifier with the evidence for it.

    Attributes:
        model: The classifier.
        held_out: Predictions of the training photos.
        candidate: Place of the values that were chosen among the method's candidates.
        seconds: Duration of all fits.
    """

    model: LabelModel
    held_out: HeldOutLabels
    candidate: int
    seconds: float


def train_labels(config: ConfigDict, workdir: Workdir) -> LabelResults:
    """Trains if the folder holds no trained classifier, measures, and writes `results.json`.

    Raises:
        UserError: For every mistake in config or data, before anything is written; if another
            command is running in the folder.
    """
    with workdir.locked():
        started = time.monotonic()
        run = prepare_labels(config, workdir)
        if not workdir.config_file.exists():
            workdir.write(workdir.few_shot_file, training_record(run.dataset))
            workdir.write_config(run.config, asdict(run.clip.identity))
        if not is_intact(workdir.label_model_file):
            write_trained(run, fit_labels(run))
        results = measure_labels(run, started)
        test = None if run.dataset.test is None else run.dataset.test.photos
        support = run.dataset.train.photos
        warn_of_copies_in({"test": test}, support, run.clip, run.image_cache)
        return results


def evaluate_labels(workdir: Workdir, config: ConfigDict | None = None) -> LabelResults:
    """Measures a trained run again and rewrites `results.json`.

    Args:
        workdir: Folder of the run.
        config: Config that must agree with the run's; None takes the run's own.
    """
    started = time.monotonic()
    with workdir.locked():
        stored = workdir.stored_config()
        return measure_labels(prepare_labels(config or stored, workdir), started)


def fit_labels(run: LabelRun) -> Trained:
    """Fits the classifier, after fits without each fold have chosen its values and thresholds.

    Values and thresholds of each held-out photo are chosen by the photos of the other folds.
    """
    method = label_method(run.config.method)
    features, truth, _ = run.features(run.dataset.train)
    folds = label_folds(run)
    warn_of_single_photos(truth.sum(axis=0), run.dataset.class_names, "labels")
    started = time.monotonic()
    candidates = method.candidates(len(truth))
    values = out_of_fold_values(method, candidates, features, truth, folds)
    probabilities, assigned = np.zeros(truth.shape), np.zeros(truth.shape, np.bool_)
    for fold in np.unique(folds):
        out = folds == fold
        candidate, sigmoid, thresholds = chosen_from(values[:, ~out], truth[~out])
        probabilities[out] = sigmoid.probabilities(values[candidate, out])
        assigned[out] = probabilities[out] >= thresholds
    candidate, sigmoid, thresholds = chosen_from(values, truth)
    if sigmoid.slope <= least_slope(values[candidate]):
        logging.warning(
            "held-out photos with a label have no higher values than those without it: the "
            "probabilities of a label are nearly the same for all photos, add photos"
        )
    scorer = method.fit(features, truth, candidates[candidate])
    model = LabelModel(run.dataset.class_names, scorer, sigmoid, thresholds)
    held_out = HeldOutLabels(probabilities, assigned, run.cosines(features))
    return Trained(model, held_out, candidate, time.monotonic() - started)


def chosen_from(
    values: Float64[np.ndarray, "c N k"], truth: Bool[np.ndarray, "N k"]
) -> tuple[int, Sigmoid, Float64[np.ndarray, "k"]]:
    """Returns candidate, sigmoid and thresholds that out-of-fold values choose."""
    candidate, sigmoid = choose_candidate(values, truth)
    probabilities = sigmoid.probabilities(values[candidate])
    return candidate, sigmoid, label_thresholds(probabilities, truth)


def label_folds(run: LabelRun) -> Int[np.ndarray, "s"]:
    """Returns the fold of each training photo; copies of a photo share its fold.

    The rarest label of each photo is spread evenly, and so are the photos without a label.
    """
    photos, truth = run.dataset.train.photos, run.dataset.train.truth
    first = with_copies(photos, run.clip, run.image_cache, "training").first_copies
    counts = np.where(truth, truth.sum(axis=0), len(truth) + 1)
    rarest = np.where(truth.any(axis=1), counts.argmin(axis=1), truth.shape[1])
    return stratified_folds(rarest, run.config.cv_folds, run.config.seed, first)


def write_trained(run: LabelRun, trained: Trained) -> None:
    """Writes `labels.npz`."""
    model = trained.model
    run.workdir.write_arrays(
        run.workdir.label_model_file,
        class_names=np.array(model.class_names),
        thresholds=model.thresholds,
        sigmoid=np.array(model.sigmoid),
        candidate=np.array(trained.candidate),
        seconds=np.array(trained.seconds),
        **{f"scorer_{name}": array for name, array in model.scorer._asdict().items()},
        **{f"held_out_{name}": array for name, array in trained.held_out._asdict().items()},
    )


def read_trained(workdir: Workdir) -> Trained:
    """Reads `labels.npz`.

    Raises:
        UserError: If the file is missing or damaged.
    """
    arrays = read_arrays(workdir.label_model_file)
    names = tuple(str(name) for name in arrays["class_names"])
    scorer = LabelScorer(*(arrays[f"scorer_{name}"] for name in LabelScorer._fields))
    model = LabelModel(names, scorer, Sigmoid(*arrays["sigmoid"].tolist()), arrays["thresholds"])
    held_out = HeldOutLabels(*(arrays[f"held_out_{name}"] for name in HeldOutLabels._fields))
    return Trained(model, held_out, int(arrays["candidate"]), float(arrays["seconds"]))


def measure_labels(run: LabelRun, started: float) -> LabelResults:
    """Scores the held-out photos, reads the test split once, and writes `results.json`."""
    trained = read_trained(run.workdir)
    config, dataset, model = run.config, run.dataset, trained.model
    held_out, truth = trained.held_out, dataset.train.truth
    scores = score_labels(held_out.probabilities, truth, held_out.assigned, config.seed)
    fields = scores_by_name("cv", scores, model.class_names)
    cosines, num_test = held_out.cosines, 0
    if dataset.test is not None:
        num_test = len(dataset.test.photos)
        features, truth, unreadable = run.features(dataset.test)
        if not len(features):
            raise UserError(f"none of the {num_test} test images can be read: {unreadable[0]}")
        probabilities = model.probabilities(features)
        assigned = probabilities >= model.thresholds
        scores = score_labels(probabilities, truth, assigned, config.seed)
        fields |= scores_by_name("test", scores, model.class_names)
        fields |= {"test_images_read": len(features), "unreadable": unreadable}
        cosines = run.cosines(features)
    zero_shot = score_labels(cosines, truth, truth, config.seed)  # its F1 is not used
    results = LabelResults(
        method=config.method,
        backbone=run.clip.identity,
        seed=config.seed,
        num_classes=len(model.class_names),
        split_protocol=dataset.split_protocol,
        counts=ImageCounts(train=len(dataset.train.photos), validation=0, test=num_test),
        photos_without_label=int((~dataset.train.truth.any(axis=1)).sum()),
        choices=label_method(config.method).grid[trained.candidate],
        thresholds=by_label(model.thresholds, model.class_names),
        chance=chance_precision(truth),
        zero_shot_mean_average_precision=zero_shot.mean_average_precision,
        **fields,
        train_seconds=round(trained.seconds, 2),
        wall_seconds=round(time.monotonic() - started, 1),
    )
    results.write(run.workdir)
    return results


def scores_by_name(prefix: str, scores: LabelScores, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns scores as fields of `LabelResults`."""
    fields = {f"{prefix}_{name}": value for name, value in scores._asdict().items()}
    precision = by_label(scores.average_precision, names)
    return {**fields, f"{prefix}_average_precision": precision}


def by_label(values: Float64[np.ndarray, "k"], names: tuple[str, ...]) -> dict[str, float]:
    """Returns the values of labels by their names, without those that are not known."""
    pairs = zip(names, values.tolist(), strict=True)
    return {name: value for name, value in pairs if not np.isnan(value)}
