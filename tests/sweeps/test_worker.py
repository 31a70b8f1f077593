"""The workers of a sweep, with a stand-in for the runs of its cells."""

import json
import shutil
import threading
from dataclasses import asdict
from pathlib import Path

import pytest

from fgvpl_jax.clip import identity_of
from fgvpl_jax.data import few_shot_record
from fgvpl_jax.displays.live_table import Status
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import METHODS
from fgvpl_jax.runs import candidates
from fgvpl_jax.runs.data_loading import draw, load_dataset
from fgvpl_jax.runs.results import ImageCounts
from fgvpl_jax.runs.settings import with_recipe
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.sweeps import worker as sweep
from fgvpl_jax.sweeps.cells import cells_of, sweep_config
from tests.whole_runs import made_up_results


class Runs:
    """Replaces `carry_out`: writes a run's files, and may fail."""

    def __init__(self):
        self.done = []
        self.failures = {}

    def __call__(self, config, workdir):
        name = f"shots={config.shots},seed={config.seed}"
        self.done.append(name)
        print("on the way")
        if name in self.failures:
            raise self.failures[name]
        dataset = load_dataset(config)
        few_shot = draw(config, dataset)
        workdir.write(workdir.few_shot_file, few_shot_record(few_shot))
        resolved = with_recipe(config, len(few_shot.support), len(dataset.class_names))
        workdir.write_config(resolved, asdict(identity_of(config.clip)))
        workdir.checkpoints.mkdir(exist_ok=True)
        workdir.support_file.write_bytes(b"")
        results = made_up_results(
            test_accuracy=0.25,
            wall_seconds=2.0,
            counts=ImageCounts(train=len(few_shot.support), validation=0, test=15),
            num_classes=len(dataset.class_names),
        )
        results.write(workdir)
        return results


@pytest.fixture
def runs(monkeypatch):
    stand_in = Runs()
    monkeypatch.setattr(sweep, "carry_out", stand_in)
    monkeypatch.setattr(sweep, "POLL_SECONDS", 0.05)
    return stand_in


@pytest.fixture
def config(tiny_config):
    config = sweep_config(("fg_vpl",))
    config.benchmarks = ("squares",)
    config.run.clip = tiny_config.clip
    config.grid.shots = (1, 2)
    config.grid.seed = (1, 2)
    return config


@pytest.fixture
def named(tiny_config):
    return lambda name: tiny_config


ALL = ["shots=1,seed=1", "shots=2,seed=1", "shots=1,seed=2", "shots=2,seed=2"]
CELLS = "cells/squares/tiny_clip0/fg_vpl"


def folders(place):
    return {path.name: path for path in (place / "cells").glob("*/*/*/*")}


def test_a_sweep_runs_unfinished_cells_and_keeps_one_model(config, named, runs, tmp_path, capsys):
    progress = sweep.run_sweep(config, tmp_path, named)
    assert runs.done == ALL
    assert [cell.status for cell in progress] == 4 * [Status.DONE]
    printed = capsys.readouterr().out
    assert "4 of 4 done, 0 running" in printed
    assert "on the way" not in printed
    assert [n for n, path in folders(tmp_path).items() if Workdir(path).checkpoints.exists()] == [
        "shots=2,seed=1"
    ]
    (folders(tmp_path)["shots=1,seed=2"] / "results.json").unlink()
    sweep.run_sweep(config, tmp_path, named)
    assert runs.done == [*ALL, "shots=1,seed=2"]


def test_a_cell_may_choose_its_method(config, named, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "METHODS", {"gda": METHODS["gda"]})
    config.grid.method, config.grid.shots, config.grid.minutes = ("auto",), (2, 3), (1.0,)
    config.grid.seed = (1,)
    progress = sweep.run_sweep(config, tmp_path, named)
    assert [cell.problem for cell in progress] == [None, None]
    models = [Workdir(path).candidate("gda").checkpoints for path in folders(tmp_path).values()]
    assert sorted(path.exists() for path in models) == [False, True]


def test_programs_of_earlier_cells_are_freed(config, named, runs, tmp_path, monkeypatch):
    done_before = []
    monkeypatch.setattr(sweep, "RUNS_PER_CLEARING", 2)

    def recorder(name):
        return lambda: done_before.append((name, len(runs.done)))

    monkeypatch.setattr(sweep.jax, "clear_caches", recorder("clear_caches"))
    monkeypatch.setattr(sweep.gc, "collect", recorder("collect"))
    config.grid.seed = (1, 2, 3)
    sweep.run_sweep(config, tmp_path, named)
    assert done_before == [(name, done) for done in (2, 4) for name in ("clear_caches", "collect")]


def test_a_failing_cell_is_reported_recorded_and_tried_again(config, named, runs, tmp_path, capsys):
    runs.failures = {ALL[0]: UserError("no such photo: buy one"), ALL[2]: MemoryError("2 TB")}
    progress = sweep.run_sweep(config, tmp_path, named)
    assert runs.done == ALL
    assert [cell.problem for cell in progress] == [
        *("no such photo: buy one", None),
        *("MemoryError: 2 TB", None),
    ]
    assert "shots=1,seed=1: no such photo: buy one" in capsys.readouterr().out
    records = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("errors/*/*/*/*")}
    assert set(records) == {ALL[0], ALL[2]}
    assert records[ALL[2]]["output"] == ["on the way"]
    assert records[ALL[2]]["traceback"][-1] == "MemoryError: 2 TB"
    runs.failures = {}
    assert all(cell.status is Status.DONE for cell in sweep.run_sweep(config, tmp_path, named))
    assert runs.done == [*ALL, ALL[0], ALL[2]]
    assert not list(tmp_path.glob("errors/*/*/*/*"))


def test_an_interruption_ends_the_sweep(config, named, runs, tmp_path):
    runs.failures = {ALL[1]: KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep.run_sweep(config, tmp_path, named)
    assert runs.done == ALL[:2]
    assert not (tmp_path / "errors").exists()


def test_a_finished_cell_with_other_settings_is_refused(config, named, runs, tmp_path):
    sweep.run_sweep(config, tmp_path, named)
    config.run.learning_rate = 0.5
    progress = sweep.run_sweep(config, tmp_path, named)
    assert runs.done == ALL
    assert all("learning_rate (0.001 there, 0.5 now)" in cell.problem for cell in progress)


def test_a_finished_cell_with_another_backbone_is_refused(
    config, named, runs, tiny_clip_dir, tmp_path
):
    sweep.run_sweep(config, tmp_path, named)
    config.run.clip = str(shutil.copytree(tiny_clip_dir, tmp_path / "moved" / tiny_clip_dir.name))
    assert all(cell.status is Status.DONE for cell in sweep.run_sweep(config, tmp_path, named))
    with open(tmp_path / "moved" / tiny_clip_dir.name / "config.json", "a") as stream:
        stream.write("\n")
    progress = sweep.run_sweep(config, tmp_path, named)
    assert runs.done == ALL
    assert all("is not the one that" in cell.problem for cell in progress)


def test_a_finished_cell_needs_neither_data_nor_backbone(config, named, runs, photos_dir, tmp_path):
    config.run.data.root = str(shutil.copytree(photos_dir, tmp_path / "here" / photos_dir.name))
    cells = cells_of(config, named)
    worker = sweep.Worker(tmp_path, cells)
    sweep.run_sweep(config, tmp_path, named)
    shutil.rmtree(tmp_path / "here")
    config.run.clip = str(tmp_path / "gone" / Path(config.run.clip).name)
    assert all(cell.status is Status.DONE for cell in sweep.run_sweep(config, tmp_path, named))
    for cell, progress in zip(cells, worker.progress, strict=True):
        error_file = tmp_path / "errors" / f"{cell.name}.json"
        error_file.parent.mkdir(parents=True, exist_ok=True)
        error_file.write_text("{}")  # by another worker, which could not check the finished cell
        worker.advance(cell, progress)
    assert all(cell.status is Status.DONE for cell in worker.progress)


def test_a_finished_cell_with_other_photos_is_refused(config, named, runs, photos_dir, tmp_path):
    sweep.run_sweep(config, tmp_path, named)
    config.run.data.root = str(shutil.copytree(photos_dir, tmp_path / "moved" / photos_dir.name))
    assert all(cell.status is Status.DONE for cell in sweep.run_sweep(config, tmp_path, named))
    for photo in list((tmp_path / "moved").rglob("*.png")):
        photo.rename(photo.with_stem(f"new_{photo.stem}"))
    progress = sweep.run_sweep(config, tmp_path, named)
    assert runs.done == ALL
    assert all("the images drawn now are not those" in cell.problem for cell in progress)


def test_a_cell_that_another_worker_holds_is_left_to_it(config, named, runs, tmp_path):
    """The other worker finishes one held cell and abandons one, which this worker takes over."""
    sweep.run_sweep(config, tmp_path / "other", named)
    runs.done.clear()
    first, second = cells_of(config, named)[:2]
    held = [Workdir(tmp_path / "cells" / cell.name) for cell in (first, second)]
    worker = threading.Thread(target=sweep.run_sweep, args=(config, tmp_path, named))
    with held[1].locked(), held[0].locked():
        worker.start()
        while len(runs.done) < 2:
            assert worker.is_alive()
        assert runs.done == ALL[2:]
        shutil.copytree(tmp_path / "other" / "cells" / first.name, held[0].path, dirs_exist_ok=True)
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert runs.done == [*ALL[2:], ALL[1]]


def test_a_cell_that_failed_in_another_worker_is_not_tried_again_by_this_one(
    config, named, runs, tmp_path
):
    cells = cells_of(config, named)
    worker = sweep.Worker(tmp_path, cells)
    runs.failures = {ALL[0]: UserError("broken")}
    sweep.run_sweep(config, tmp_path, named)
    runs.done.clear()
    for cell, progress in zip(cells, worker.progress, strict=True):
        worker.advance(cell, progress)
    assert runs.done == []
    assert [cell.problem for cell in worker.progress] == ["broken", None, None, None]
    later = sweep.Worker(tmp_path, cells)  # it starts after the failure, so it may try again
    runs.failures = {}
    sweep.run_sweep(config, tmp_path, named)
    for cell, progress in zip(cells, later.progress, strict=True):
        later.advance(cell, progress)
    assert all(cell.status is Status.DONE for cell in later.progress)
