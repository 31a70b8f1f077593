"""Records of finished runs, in the form that tables and figures read."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgvpl_jax.evaluation import SavedPredictions, read_saved_predictions
from fgvpl_jax.runs.results import RunResults

PREDICTIONS = "predictions.npz"
TEMPLATES = "data.templates"

Variant = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, eq=False)  # hashed by identity, as its fields hold dicts
class RunRecord:
    """A finished run.

    Attributes:
        folder: Folder of the run.
        benchmark: Benchmark in its config; for a folder of photos, the name of the folder.
        backbone: Last part of the hub id or folder, with the start of its hash where two backbones
            have the same name.
        method: Method in its config.
        shots: Training images per class; None for all.
        seed: Seed of the few-shot draw and of the training.
        settings: All other fields that change what is computed, by dotted name.
        results: Results of the run.
        variant: Settings that differ both from the default and from other runs of the same group.
        shared: Settings that differ from the default but are the same in all runs of the group.
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
        """Accuracy on the test split, in percent; the run has one."""
        assert self.results.test_accuracy is not None
        return 100 * self.results.test_accuracy

    @property
    def row(self) -> tuple[str, Variant]:
        """Key of the run's row in a table of one benchmark and backbone."""
        return self.method, self.variant

    @property
    def has_default_texts(self) -> bool:
        """Whether the run measured zero-shot CLIP with the default templates."""
        return all(name != TEMPLATES for name, _ in (*self.variant, *self.shared))

    def saved_predictions(self) -> SavedPredictions | None:
        """Returns the predictions that the run saved; None where they cannot be read."""
        try:
            return read_saved_predictions(self.folder / PREDICTIONS)
        except (OSError, ValueError, KeyError):  # a run of an older version, or a damaged file
            return None


def variant_label(variant: Variant) -> str:
    """Returns settings as tables show them."""
    return ", ".join(f"{name}={value}" for name, value in variant)


def zero_shot_records(records: Sequence[RunRecord]) -> Sequence[RunRecord]:
    """Returns the runs that measured zero-shot CLIP with the same templates.

    These are the default templates or, where no run used them, those of the first run.
    """
    found = [record for record in records if record.has_default_texts] or records
    return [r for r in found if r.settings.get(TEMPLATES) == found[0].settings.get(TEMPLATES)]


def by_panel(records: Sequence[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    """Groups runs by benchmark and backbone; each group has its own table."""
    panels: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for record in records:
        panels[record.benchmark, record.backbone].append(record)
    return dict(panels)
