"""Builds tables from finished runs, in the shapes of the paper's tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from fgvpl_jax.displays.labels import (
    FG_VPL,
    ZERO_SHOT,
    benchmark_label,
    method_label,
    shots_label,
    shots_order,
)
from fgvpl_jax.reports.panels import Panel, ResultRow, Spread, rows_of, spread
from fgvpl_jax.reports.paper_numbers import (
    paper_accuracy,
    paper_average,
    paper_average_lead,
    paper_epochs,
    paper_gain,
    paper_setting,
)
from fgvpl_jax.reports.records import (
    TEMPLATES,
    RunRecord,
    Variant,
    variant_label,
    zero_shot_records,
)

NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Attributes:
        title: Heading of the table.
        columns: Headings of the columns.
        rows: Rows, each with one entry per column.
        notes: Lines below the table.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def shots_table(panel: Panel) -> Table:
    """Returns methods by shots (the shape of Table 2), with the paper's number where it has one."""
    rows = [[method_label(ZERO_SHOT), *(zero_shot_entry(panel, n) for n in panel.shots)]]
    rows += [
        [row.label, *(entry(row.spread(n), paper_of(panel, row, n)) for n in panel.shots)]
        for row in panel.rows
    ]
    columns = ["method", *map(shots_label, panel.shots)]
    notes = [*seed_notes(panel), *epoch_notes(panel), *text_notes(panel), *shared_notes(panel)]
    return Table(panel.title, columns, rows, notes)


def average_table(panel: Panel) -> Table:
    """Returns methods by shots, averaged over benchmarks.

    Args:
        panel: An average from `averages_of`.
    """
    rows = [[method_label(ZERO_SHOT), *[f"{panel.zero_shot:.2f}"] * len(panel.shots)]]
    rows += [
        [row.label, *(entry(row.spread(n), paper_of(panel, row, n)) for n in panel.shots)]
        for row in panel.rows
    ]
    ours, rival = panel.row((FG_VPL, ())), panel.row(("tip_adapter_f", ()))
    if ours is not None and rival is not None:
        leads = []
        for n in panel.shots:
            first, second = ours.accuracies.get(n, {}), rival.accuracies.get(n, {})
            lead = [first[seed] - second[seed] for seed in first.keys() & second.keys()]
            paper_lead = (
                paper_average_lead(panel.averaged, panel.backbone, n)
                if all(has_default_settings(panel, row, n) for row in (ours, rival))
                else None
            )
            leads.append(entry(spread(lead) if lead else None, paper_lead, "+"))
        rows.append([f"{ours.label} above {rival.label}", *leads])
    columns = ["method", *map(shots_label, panel.shots)]
    names = ", ".join(benchmark_label(name) for name in sorted(panel.averaged))
    notes = [
        f"Mean over {names}; only of methods that were run on all of them.",
        *seed_notes(panel),
        *epoch_notes(panel),
        *shared_notes(panel),
    ]
    return Table(panel.title, columns, rows, notes)


def backbone_table(panels: Sequence[Panel]) -> Table | None:
    """Returns methods by backbone for one benchmark (the shape of Table 3), at the most shots.

    Args:
        panels: Panels of one benchmark, one per backbone; for a single one the result is None.
    """
    if len(panels) < 2:
        return None
    shots = max((panel.most_shots for panel in panels), key=shots_order)
    rows = [[method_label(ZERO_SHOT), *(zero_shot_entry(panel, shots) for panel in panels)]]
    for key in rows_of(panels):
        entries = []
        for panel in panels:
            row = panel.row(key)
            paper = None if row is None else paper_of(panel, row, shots)
            entries.append(entry(None if row is None else row.spread(shots), paper))
        rows.append([ResultRow(*key).label, *entries])
    notes = [
        f"{panel.backbone}: {note}"
        for panel in panels
        for note in (*seed_notes(panel), *epoch_notes(panel), *shared_notes(panel))
    ]
    return Table(
        f"{benchmark_label(panels[0].benchmark)}, {shots_label(shots)}, by backbone",
        ["method", *(panel.backbone for panel in panels)],
        rows,
        notes,
    )


def setting_tables(panel: Panel) -> list[Table]:
    """Returns one table per varied setting (the shape of Tables 4 and 5), others at defaults."""
    shots = panel.most_shots
    tables = []
    for name in sorted({name for row in panel.rows for name, _ in row.variant}):
        found: dict[str, dict[object, ResultRow]] = {}
        for record in panel.records:
            others = {other for other, _ in record.variant} - {name}
            row = panel.row(record.row)
            if record.shots == shots and not others and name in record.settings and row is not None:
                found.setdefault(record.method, {})[record.settings[name]] = row
        found = {method: by_value for method, by_value in found.items() if len(by_value) > 1}
        if not found:
            continue
        values = sorted({value for by_value in found.values() for value in by_value}, key=_by_size)
        rows = [
            [
                method_label(method),
                *(
                    entry(by_value[value].spread(shots), paper_of(panel, by_value[value], shots))
                    if value in by_value
                    else NOTHING
                    for value in values
                ),
            ]
            for method, by_value in found.items()
        ]
        title = f"{panel.title}: {name} at {shots_label(shots)}"
        notes = [f"For the number of seeds and the training, see the notes below {panel.title}."]
        tables.append(Table(title, ["method", *map(str, values)], rows, notes))
    return tables


def gains_table(panels: Sequence[Panel]) -> Table:
    """Returns the numbers of Figure 3: points above zero-shot CLIP at the most shots."""
    keys = rows_of(panels)
    rows = []
    for panel in panels:
        shots = panel.most_shots
        entries = []
        for key in keys:
            row = panel.row(key)
            value = None if row is None else row.spread(shots)
            gain = value and value._replace(mean=value.mean - panel.zero_shot)
            paper = None if row is None else paper_gain_of(panel, row, shots)
            entries.append(entry(gain, paper, sign="+"))
        rows.append([f"{panel.title}, {shots_label(shots)}", *entries])
    columns = ["benchmark", *(ResultRow(*key).label for key in keys)]
    notes = [
        "For the number of seeds and the training, see the notes below each benchmark's own table."
    ]
    return Table("Points above zero-shot CLIP", columns, rows, notes)


def zero_shot_entry(panel: Panel, shots: int | None) -> str:
    """Returns the entry of zero-shot CLIP in a column."""
    return entry(Spread(panel.zero_shot, None, 1), paper_zero_shot(panel, shots))


def paper_zero_shot(panel: Panel, shots: int | None) -> float | None:
    """Returns the paper's accuracy of zero-shot CLIP; None where all runs use other templates."""
    if not any(record.has_default_texts for record in panel.records):
        return None
    return paper_accuracy(panel.benchmark, panel.backbone, ZERO_SHOT, shots)


def paper_of(panel: Panel, row: ResultRow, shots: int | None) -> float | None:
    """Returns the paper's number for a row; for a varied setting, that of Tables 4 and 5."""
    if any(record.shared for record in _runs_of_entry(panel, row, shots)):
        return None
    if len(row.variant) == 1:
        where = (panel.benchmark, panel.backbone, row.method, shots)
        return paper_setting(*where, *row.variant[0])
    if row.variant:
        return None
    if panel.averaged:
        return paper_average(panel.averaged, panel.backbone, row.method, shots)
    return paper_accuracy(panel.benchmark, panel.backbone, row.method, shots)


def paper_gain_of(panel: Panel, row: ResultRow, shots: int | None) -> float | None:
    """Returns the paper's points above zero-shot CLIP for a row at its defaults."""
    if not has_default_settings(panel, row, shots):
        return None
    return paper_gain(panel.benchmark, panel.backbone, row.method, shots)


def has_default_settings(panel: Panel, row: ResultRow, shots: int | None) -> bool:
    """Whether all runs of an entry have the default settings, except for the epochs."""
    return not row.variant and not any(
        record.shared for record in _runs_of_entry(panel, row, shots)
    )


def _runs_of_entry(panel: Panel, row: ResultRow, shots: int | None) -> list[RunRecord]:
    return [r for r in panel.records if (r.row, r.shots) == (row.key, shots)]


def entry(value: Spread | None, paper: float | None = None, sign: str = "") -> str:
    """Returns `72.19 ± 0.11`, followed by `(paper 75.5, -3.31)` where the paper has a number."""
    if value is None:
        return NOTHING
    text = f"{value.mean:{sign}.2f}"
    if value.deviation is not None:
        text += f" ± {value.deviation:.2f}"
    if paper is not None:
        text += f" (paper {paper:{sign}.1f}, {value.mean - paper:+.2f})"
    return text


def seed_notes(panel: Panel) -> list[str]:
    """Returns notes on the number of seeds of the means, and on the entries with fewer."""
    counts = {
        (row.label, n): found.seeds
        for row in panel.rows
        for n in panel.shots
        if (found := row.spread(n)) is not None
    }
    most = max(counts.values())
    notes = [
        f"Accuracy on the test split in %, mean ± standard deviation over {most} seeds."
        if most > 1
        else "Accuracy on the test split in %, of one seed."
    ]
    fewer = [
        f"{label} at {shots_label(n)}: {count}"
        for (label, n), count in counts.items()
        if count < most
    ]
    if fewer:
        notes.append(f"Fewer seeds so far: {'; '.join(fewer)}.")
    return notes


def epoch_notes(panel: Panel) -> list[str]:
    """Returns notes on each method's epochs, and on the paper's where they differ."""
    rows_by_note: dict[str, list[str]] = defaultdict(list)
    for row in panel.rows:
        members = [r for r in panel.records if r.row == row.key and r.results.epochs]
        shots_by_epochs: dict[int, list[int | None]] = defaultdict(list)
        for shots, epochs in sorted(
            {(r.shots, r.results.epochs) for r in members},
            key=lambda p: (shots_order(p[0]), p[1]),
        ):
            shots_by_epochs[epochs].append(shots)
        parts = [
            f"{epochs} epochs" + f" at {_listed(shots)}" * (len(shots_by_epochs) > 1)
            for epochs, shots in shots_by_epochs.items()
        ]
        full = paper_epochs(panel.benchmark, row.method)
        if parts and full is not None and shots_by_epochs.keys() != {full}:
            parts.append(f"the paper has {full}")
        if parts:
            rows_by_note["; ".join(parts)].append(row.label)
    return [f"{', '.join(labels)}: {note}." for note, labels in rows_by_note.items()]


def shared_notes(panel: Panel) -> list[str]:
    """Returns notes on settings that all runs of a method share, which no row label names."""
    labels_by_setting: dict[tuple[Variant, str], list[str]] = defaultdict(list)
    for method in dict.fromkeys(row.method for row in panel.rows):
        members = [r for r in panel.records if r.method == method]
        shots = {r.shots for r in members}
        for shared in dict.fromkeys(r.shared for r in members):
            own = {r.shots for r in members if r.shared == shared}
            where = "" if own == shots else f" at {_listed(sorted(own, key=shots_order))}"
            if shared:
                labels_by_setting[shared, where].append(method_label(method))
    return [
        f"{', '.join(labels)}{where}: {variant_label(shared)}, which is not the default."
        for (shared, where), labels in labels_by_setting.items()
    ]


def text_notes(panel: Panel) -> list[str]:
    """Returns a note on zero-shot CLIP's templates, where runs use different ones."""
    texts = {record.settings.get(TEMPLATES) for record in panel.records}
    if len(texts) < 2:
        return []
    (used,) = {record.settings.get(TEMPLATES) for record in zero_shot_records(panel.records)}
    return [f"{method_label(ZERO_SHOT)}: {TEMPLATES}={used}."]


def _listed(shots: Sequence[int | None]) -> str:
    """Returns shots in words, such as `1, 2 and 4 shots`."""
    *first, last = map(shots_label, shots)
    return ", ".join(label.removesuffix(" shots").removesuffix(" shot") for label in first) + (
        f" and {last}" if first else last
    )


def _by_size(value: object) -> tuple[int, float, str]:
    """Returns a sort key: numbers by size, then everything else by its text."""
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
