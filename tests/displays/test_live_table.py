"""Progress of a sweep, on a terminal and elsewhere."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from fgvpl_jax.displays.live_table import (
    CellProgress,
    Status,
    counts_line,
    duration,
    live_table,
    running_lines,
    seconds_left,
)


def cell(shots, status=Status.OPEN, accuracy=None, seconds=None, method="fg_vpl", **fields):
    row = ("eurosat", "clip", method, "")
    return CellProgress(
        f"{method}/{shots}",
        row,
        shots,
        10,
        fields.pop("metrics_file", Path("/none")),
        status=status,
        accuracy=accuracy,
        seconds=seconds,
        **fields,
    )


def test_the_time_left_is_estimated_from_the_most_similar_cells():
    cells = [
        cell(1, Status.DONE, 0.5, 10.0),
        cell(1, Status.DONE, 0.6, 20.0),
        cell(16, Status.DONE, 0.7, 90.0),
        cell(2, Status.DONE, 0.7, 200.0, method="coop"),
    ]
    assert seconds_left([cell(1)]) is None
    assert seconds_left([*cells, cell(1)]) == 15.0
    assert seconds_left([*cells, cell(8)]) == pytest.approx((10 + 20 + 90) / 3)
    assert seconds_left([*cells, cell(1, method="tar")]) == pytest.approx(320 / 4)
    assert seconds_left([*cells, cell(1, Status.FAILED, problem="x")]) == 0.0
    running = [cell(1, Status.RUNNING), cell(1, Status.ELSEWHERE), cell(1), cell(1)]
    assert seconds_left([*cells, *running]) == 30.0  # 4 times 15, shared by two workers


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(42.0, "42 s"), (89.4, "89 s"), (200.0, "3 min"), (7500.0, "2 h 5 min"), (3.6e5, "4 d 4 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counts(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{}\n{}\n")
    cells = [
        cell(1, Status.DONE, 0.5, 60.0),
        cell(2, Status.RUNNING, metrics_file=metrics),
        cell(4, Status.FAILED, problem="no photos"),
        cell(8),
    ]
    assert counts_line(cells) == "1 of 4 done, 1 running, 1 failed; about 2 min left"
    assert running_lines(cells) == ["running: fg_vpl/2 (2 of 10 epochs done)"]


def test_without_a_terminal_each_cell_gets_a_line_and_a_table_follows(capsys):
    cells = [cell(1), cell(1), cell(16), cell(1, method="<b>[red]")]
    with live_table(cells) as on_cell:
        cells[0].status, cells[0].accuracy, cells[0].seconds = Status.DONE, 0.5, 3.0
        on_cell(cells[0])
        cells[2].status, cells[2].problem = Status.FAILED, "no photos"
        on_cell(cells[2])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fg_vpl/1: 50.00% (3 s); 1 of 4 done, 0 running; about 9 s left"
    assert lines[1] == "failed: fg_vpl/16: no photos"
    assert re.split(r" {2,}", lines[2].strip()) == ["method", "1 shot", "16 shots"]
    assert re.split(r" {2,}", lines[3].strip()) == ["FG-VPL", "50.00 1/2", "0/1 failed"]
    assert lines[4].startswith("<b>[red]")


def test_a_terminal_gets_a_live_table(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("fgvpl_jax.displays.live_table.Console", lambda **_: terminal)
    cells = [cell(1)]
    with live_table(cells) as on_cell:
        while "0 of 1 done" not in screen.getvalue():
            pass
        cells[0].status, cells[0].accuracy, cells[0].seconds = Status.DONE, 0.5, 3.0
        on_cell(cells[0])
    assert "1 of 1 done" in screen.getvalue().rpartition("0 of 1 done")[2]
    assert "50.00" in screen.getvalue()
