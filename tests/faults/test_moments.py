"""Clocks that jump, and two commands that run in one folder at the same time."""

import itertools
import random
import shutil
import subprocess
import time

import pytest

from tests.faults.conftest import LONGEST_SECONDS, ROOT, count, outcome_of

pytestmark = pytest.mark.slow

YEAR = 365 * 86400
PAIRS = 4
CLOCK_TRIALS = 8
READS = 500  # about as often as a run reads the clock


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
@pytest.mark.parametrize("trial", range(CLOCK_TRIALS))
def test_a_clock_that_jumps_loses_no_data(undisturbed, tmp_path, monkeypatch, jump, trial):
    """The clock jumps before the run, or at one of the moments when the run reads it."""
    copy = tmp_path / "W"
    shutil.copytree(undisturbed.half, copy)
    reads = itertools.count()
    when = random.Random(trial).randrange(READS) if trial else 0
    clocks = {name: getattr(time, name) for name in ("time", "time_ns")}
    for name, unit in (("time", 1), ("time_ns", 10**9)):
        monkeypatch.setattr(
            time,
            name,
            lambda name=name, unit=unit: clocks[name]() + jump * unit * (next(reads) >= when),
        )
    undisturbed.try_damaged("clock that jumps by a year", copy, monkeypatch.undo)
    number = next(reads)
    print(f"after {when} of {number} reads")
    assert when < number, "the run ended before the clock jumped: lower READS"


@pytest.mark.parametrize("pair", range(PAIRS))
def test_the_second_of_two_commands_in_one_folder_is_refused(undisturbed, tmp_path, pair):
    runs = []
    for _ in range(2):
        runs.append(
            subprocess.Popen(
                undisturbed.command(tmp_path / "W"),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        time.sleep(pair / 4)
    outputs = [run.communicate(timeout=LONGEST_SECONDS) for run in runs]
    codes = sorted(run.returncode for run in runs)
    same = outcome_of(tmp_path / "W") == undisturbed.outcome
    refused = next((err for run, (_, err) in zip(runs, outputs, strict=True) if run.returncode), "")
    right = codes == [0, 2] and "another command is running" in refused and same
    count(
        "two commands in one folder",
        *(["ended right", "of them refused"] if right else []),
        *([] if same else ["data lost"]),
    )
    assert right, outputs
