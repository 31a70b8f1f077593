"""A sweep run by the command: killed several times, and shared by two workers."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fgvpl_jax.reports.find_runs import read_runs
from fgvpl_jax.reports.panels import panels_of
from fgvpl_jax.reports.tables import shots_table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CELLS = 4
# Each worker is killed as soon as this number of cells has this file.
DEATHS = [
    ("few_shot.json", 1),
    ("metrics.jsonl", 1),
    ("results.json", 1),
    ("metrics.jsonl", 3),
    ("predictions.npz", 3),
]


@pytest.fixture(scope="module")
def start(tiny_clip_dir, photos_dir):
    """Returns a function that starts a worker on a folder."""

    def start_worker(place):
        return subprocess.Popen(
            [
                *(sys.executable, "run.py", "--mode=sweep", "--config=configs/sweep.py"),
                *(f"--workdir={place}", "--config.benchmarks=('folder',)"),
                *(f"--config.run.clip={tiny_clip_dir}", f"--config.run.data.root={photos_dir}"),
                *("--config.run.epochs=3", "--config.run.checkpoint_every_epochs=1"),
                f"--config.run.data.image_cache_dir={place}_images",
                "--config.grid.method=('fg_vpl','tip_adapter_f')",
                *("--config.grid.shots=(1,2)", "--config.grid.seed=(1,)"),
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start_worker


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """Returns the table of an uninterrupted sweep, and its runs' predictions."""
    place = tmp_path_factory.mktemp("whole")
    worker = start(place)
    output, _ = worker.communicate(timeout=500)
    assert worker.returncode == 0, output
    return outcome(place)


def outcome(place):
    """Returns a sweep's table, and its runs' predictions by cell."""
    records, _, left_out = read_runs([place], {})
    assert left_out == []
    (panel,) = panels_of(records)
    predictions = {str(r.folder.relative_to(place)): r.saved_predictions() for r in records}
    return shots_table(panel).rows, predictions


def assert_same(ours, theirs):
    assert ours[0] == theirs[0]
    assert ours[1].keys() == theirs[1].keys()
    assert len(ours[1]) == CELLS
    for cell, predictions in ours[1].items():
        for column, other in zip(predictions, theirs[1][cell], strict=True):
            np.testing.assert_array_equal(column, other)


def test_a_sweep_killed_five_times_ends_with_the_same_table(start, whole, tmp_path):
    finished = 0
    for name, count in DEATHS:
        worker = start(tmp_path)
        while len(list(tmp_path.glob(f"cells/*/*/*/*/{name}"))) < count:
            assert worker.poll() is None, worker.stdout.read()
            time.sleep(0.01)
        worker.kill()
        worker.communicate()
        before, finished = finished, len(list(tmp_path.glob("cells/*/*/*/*/results.json")))
        assert finished >= before
    assert finished < CELLS
    worker = start(tmp_path)
    output, _ = worker.communicate(timeout=500)
    assert worker.returncode == 0, output
    assert_same(outcome(tmp_path), whole)


def test_two_workers_share_a_folder(start, whole, tmp_path):
    workers = [start(tmp_path) for _ in range(2)]
    outputs = [worker.communicate(timeout=500)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert_same(outcome(tmp_path), whole)
    assert not (tmp_path / "errors").exists()
    assert all("4 of 4 done" in output for output in outputs)
