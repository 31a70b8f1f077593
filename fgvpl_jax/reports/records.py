"""Finished runs, as tables and figures want them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvpl_jax.evaluation import Answers, read_answers
from fgvpl_jax.runs.results import RunResults

PREDICTIONS = "predictions.npz"
TEMPLATES = "data.templates"

Variant = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)  # a key by itself, as its fields hold dicts
class RunRecord:
    """A finished run with a test accuracy.

    Attributes:
        folder: Where it lies.
        benchmark: As in its config; a folder of photos by the folder's name.
        backbone: Last part of the hub id or folder, with some of its hash where two have one name.
        method: As in its config.
        shots: Training images per class; None for all.
        seed: Of the draw and the training.
        settings: All other fields that make a difference, under names with dots.
        results: Results of the run; its test accuracy is not None.
        variant: Those settings in which it differs from the default and from runs beside it.
        shared: Those in which it differs from the default as all runs beside it do.
    """

    folder: Path
    benchmark: str
    backbone: str
    method: str
    shots: int | None
    seed: int
    settings: Mapping[str, Any]
    results: RunResults
    variant: Variant = ()
    shared: Variant = ()

    @property
    def accuracy(self) -> float:
        """On the test split, in percent."""
        assert self.results.test_accuracy is not None
        return 100 * self.results.test_accuracy

    @property
    def row(self) -> tuple[str, Variant]:
        """What has a row of its own in a table of one benchmark and backbone."""
        return self.method, self.variant

    @property
    def has_default_texts(self) -> bool:
        """Whether zero-shot CLIP, as it measured it, read the texts of the default."""
        return all(name != TEMPLATES for name, _ in (*self.variant, *self.shared))

    def answers(self) -> Answers | None:
        """What it said of each test image; None where that was not kept."""
        try:
            return read_answers(self.folder / PREDICTIONS)
        except (OSError, ValueError, KeyError):  # a run of an older version, or a damaged file
            return None


def variant_label(variant: Variant) -> str:
    """Settings in a table."""
    return ", ".join(f"{name}={value}" for name, value in variant)


def zero_shot_records(records: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """Those that measured zero-shot CLIP by one text: the default's or, without such, the first."""
    found = [record for record in records if record.has_default_texts] or records
    return [r for r in found if r.settings.get(TEMPLATES) == found[0].settings.get(TEMPLATES)]


def by_panel(records: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """The runs of each benchmark and backbone: what may stand in one table."""
    panels: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        panels[record.benchmark, record.backbone].append(record)
    return dict(panels)
