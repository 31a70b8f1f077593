"""Compares each method with its best rival, from the predictions that runs saved."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fgvpl_jax.displays.labels import ZERO_SHOT, method_order, shots_order
from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.reports.panels import ResultRow, Row
from fgvpl_jax.reports.records import RunRecord, zero_shot_records
from fgvpl_jax.reports.significance import Comparison, compare


class Verdict(NamedTuple):
    """A method compared with the best of the others at the same shots.

    Attributes:
        shots: Training images per class; None for all.
        row: Label of the method with its settings.
        rival: Label of the other method with the highest mean accuracy.
        images: Number of test images that all runs of both methods have predicted.
        comparison: Comparison over the seeds that both methods have.
    """

    shots: int | None
    row: str
    rival: str
    images: int
    comparison: Comparison


class Graded(NamedTuple):
    """The test images that a run predicted, and which of the predictions are correct.

    Attributes:
        indices: Positions of the images in the test split.
        labels: True classes.
        correct: Whether the prediction is correct.
    """

    indices: Int[np.ndarray, "N"]
    labels: Int[np.ndarray, "N"]
    correct: Bool[np.ndarray, "N"]


def verdicts_of(
    records: Sequence[RunRecord], predictions: Mapping[RunRecord, SavedPredictions]
) -> list[Verdict]:
    """Compares every method of one benchmark and backbone with its best rival.

    The rival is the best on these very test images, which favours it: a method that is ahead is
    ahead in spite of that. Zero-shot CLIP is a rival as well. A rival that was tested on other
    images cannot be compared, so the next best replaces it.

    Args:
        records: The runs.
        predictions: Predictions of the runs that saved them; other runs are not compared.
    """
    verdicts = []
    for shots in sorted({record.shots for record in records}, key=shots_order):
        members = [r for r in records if r.shots == shots and r in predictions]
        graded = graded_by_row(members, predictions)
        methods = graded.keys() - {(ZERO_SHOT, ())}
        for row in sorted(
            methods, key=lambda row: (method_order(row[0]), len(row[1]), str(row[1]))
        ):
            found = [
                (accuracy, rival)
                for rival in graded
                if rival[0] != row[0]
                and (accuracy := mean_accuracy(graded, row, rival)) is not None
            ]
            for _, rival in sorted(found, key=lambda pair: pair[0], reverse=True):
                paired = pair_up(graded[row], graded[rival])
                if paired is not None:
                    labels = (ResultRow(*row).label, ResultRow(*rival).label)
                    verdicts.append(Verdict(shots, *labels, paired[0].shape[1], compare(*paired)))
                    break
    return verdicts


def graded_by_row(
    records: Sequence[RunRecord], predictions: Mapping[RunRecord, SavedPredictions]
) -> dict[Row, dict[int, Graded]]:
    """Grades the runs' predictions, by method and settings, then by seed."""
    graded: dict[Row, dict[int, Graded]] = defaultdict(dict)
    for record in records:
        saved = predictions[record]
        if record.method != ZERO_SHOT:
            correct = saved.predicted == saved.labels
            graded[record.row][record.seed] = Graded(saved.indices, saved.labels, correct)
    for record in zero_shot_records(records):
        saved = predictions[record]
        correct = saved.zero_shot_predicted == saved.labels
        graded[ZERO_SHOT, ()][record.seed] = Graded(saved.indices, saved.labels, correct)
    return dict(graded)


def mean_accuracy(graded: Mapping[Row, Mapping[int, Graded]], row: Row, rival: Row) -> float | None:
    """Returns a rival's accuracy over the seeds that it shares with a method; None for no seed."""
    shared = graded[row].keys() & graded[rival].keys()
    if not shared:
        return None
    return float(np.mean([graded[rival][seed].correct.mean() for seed in sorted(shared)]))


def pair_up(
    first: Mapping[int, Graded], second: Mapping[int, Graded]
) -> tuple[Bool[np.ndarray, "S N"], Bool[np.ndarray, "S N"]] | None:
    """Restricts two methods to the seeds and images that they share.

    Returns:
        Which predictions of each method are correct, by seed and image. None where the runs were
        not tested on the same images: labels differ, or no image is shared.
    """
    seeds = sorted(first.keys() & second.keys())
    runs = [found[seed] for found in (first, second) for seed in seeds]
    common = reduce(np.intersect1d, (run.indices for run in runs))
    places = [np.searchsorted(run.indices, common) for run in runs]
    labels = [run.labels[place] for run, place in zip(runs, places, strict=True)]
    if not len(common) or not all(np.array_equal(labels[0], other) for other in labels):
        return None
    correct = np.stack([run.correct[place] for run, place in zip(runs, places, strict=True)])
    return correct[: len(seeds)], correct[len(seeds) :]
