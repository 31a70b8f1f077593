"""Each method against its best rival, from what runs kept of their answers."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from fgvpl_jax.displays.labels import ZERO_SHOT, method_order, shots_order
from fgvpl_jax.evaluation import Answers
from fgvpl_jax.reports.panels import ResultRow, Row
from fgvpl_jax.reports.records import RunRecord, zero_shot_records
from fgvpl_jax.reports.significance import Comparison, compare


class Verdict(NamedTuple):
    """A method and the best of the others at the same shots.

    Attributes:
        shots: Training images per class; None for all.
        row: Label of the method with its settings.
        rival: Label of the method with the highest mean accuracy among those of another name.
        images: Test images that all runs of both have answered.
        comparison: Over the seeds that both have.
    """

    shots: int | None
    row: str
    rival: str
    images: int
    comparison: Comparison


class Graded(NamedTuple):
    """Which test images a run got right.

    Attributes:
        indices: Places of the images in the test split.
        labels: True classes.
        correct: Whether the answer was right.
    """

    indices: Int[np.ndarray, "N"]
    labels: Int[np.ndarray, "N"]
    correct: Bool[np.ndarray, "N"]


def verdicts_of(
    records: Sequence[RunRecord], answers: Mapping[RunRecord, Answers]
) -> list[Verdict]:
    """Compares every method of one benchmark and backbone with its best rival.

    The rival is the best on these very test images, so that luck is on its side: a method that is
    ahead of it is so in spite of that. Zero-shot CLIP is a rival as well. One that was tested on
    other images cannot be compared, and the next best stands in for it.

    Args:
        records: The runs.
        answers: Of those that kept them; the others are not compared.
    """
    verdicts = []
    for shots in sorted({record.shots for record in records}, key=shots_order):
        graded = graded_by_row([r for r in records if r.shots == shots and r in answers], answers)
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
    records: Sequence[RunRecord], answers: Mapping[RunRecord, Answers]
) -> dict[Row, dict[int, Graded]]:
    """By method and settings, then by seed."""
    graded: dict[Row, dict[int, Graded]] = {}
    for record in records:
        kept = answers[record]
        if record.method != ZERO_SHOT:
            right = kept.predicted == kept.labels
            graded.setdefault(record.row, {})[record.seed] = Graded(
                kept.indices, kept.labels, right
            )
    for record in zero_shot_records(records):
        kept = answers[record]
        right = kept.zero_shot_predicted == kept.labels
        graded.setdefault((ZERO_SHOT, ()), {})[record.seed] = Graded(
            kept.indices, kept.labels, right
        )
    return graded


def mean_accuracy(graded: Mapping[Row, Mapping[int, Graded]], row: Row, rival: Row) -> float | None:
    """A rival's accuracy over the seeds that it shares with a method; None where it shares none."""
    shared = graded[row].keys() & graded[rival].keys()
    if not shared:
        return None
    return float(np.mean([graded[rival][seed].correct.mean() for seed in sorted(shared)]))


def pair_up(
    first: Mapping[int, Graded], second: Mapping[int, Graded]
) -> tuple[Bool[np.ndarray, "S N"], Bool[np.ndarray, "S N"]] | None:
    """Brings two methods to the same seeds and images.

    Returns:
        None where the runs were not tested on the same images: labels differ, or none is shared.
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
