"""The workers of a sweep, which run its cells, on one machine or several.

A cell is an ordinary run's folder, and it is finished when its `results.json` exists. Nothing else
is stored, so workers need not communicate: each takes the first cell that is neither finished nor
held by another worker, until none is left. A killed worker abandons its cell; the next worker
resumes it from its last checkpoint.
"""

import gc
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from fgvpl_jax.clip import Identity, identity_of
from fgvpl_jax.data import Dataset, few_shot_record
from fgvpl_jax.displays.live_table import CellProgress, Status, live_table
from fgvpl_jax.errors import UserError, problem_of
from fgvpl_jax.files import expand_user, read_json
from fgvpl_jax.runs.data_loading import draw, load_dataset
from fgvpl_jax.runs.experiment import carry_out
from fgvpl_jax.runs.lock import WorkdirInUse
from fgvpl_jax.runs.prepare import (
    check_is_outside_photos,
    check_is_same_backbone,
    check_is_same_draw,
)
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.settings import with_recipe
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.sweeps.cells import Cell, ConfigNamed, cells_of

CELLS, ERRORS = "cells", "errors"
POLL_SECONDS = 5.0  # between two checks of the cells that other workers hold
# jax keeps every program that a process compiles, and nearly every cell compiles its own. Eight
# cells in a row, such as one method at several shots, share the programs that they can.
RUNS_PER_CLEARING = 8


def run_sweep(
    config: ConfigDict, folder: str | Path, config_named: ConfigNamed
) -> list[CellProgress]:
    """Runs the unfinished cells of a sweep; returns when every cell has finished or failed.

    A cell that fails is reported and recorded in `errors/`; the next command tries it again.

    Args:
        config: Config made by `sweep_config`.
        folder: Folder of the sweep; it may hold other sweeps' cells as well.
        config_named: Returns the config of a benchmark's name.
    Raises:
        UserError: If a cell has invalid settings; no cell runs then.
    """
    cells = cells_of(config, config_named)
    for cell in cells:
        check_is_outside_photos(Workdir(folder), cell.config)
    worker = Worker(Workdir(folder).path, cells)
    with live_table(worker.progress) as on_cell:
        while not all(progress.is_settled for progress in worker.progress):
            before = [progress.status for progress in worker.progress]
            for cell, progress in zip(cells, worker.progress, strict=True):
                if not progress.is_settled:
                    worker.advance(cell, progress)
                    if progress.is_settled:
                        on_cell(progress)
            if before == [progress.status for progress in worker.progress]:
                time.sleep(POLL_SECONDS)
    return worker.progress


class Worker:
    """One process that runs cells of a sweep.

    Args:
        folder: Folder of the sweep.
        cells: Cells of the sweep.

    Attributes:
        progress: Progress of each cell, as far as this worker knows.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell]):
        self._folder = folder
        self.progress = [progress_of(cell, self._cell_folder(cell)) for cell in cells]
        self._errors_before = {cell.name: _age(self._error_file(cell)) for cell in cells}
        self._identities: dict[str, Identity | None] = {}
        self._num_runs = 0
        self._few_shot_records: dict[str, dict[str, Any] | None] = {}
        self._datasets: dict[str, Dataset] = {}

    def advance(self, cell: Cell, progress: CellProgress) -> None:
        """Runs a cell, unless it is finished, another worker holds it, or it failed there.

        Raises:
            KeyboardInterrupt: If the run is interrupted.
        """
        error_file = self._error_file(cell)
        workdir = Workdir(self._cell_folder(cell))
        is_finished = workdir.results_file.exists()
        if not is_finished and _age(error_file) not in (None, self._errors_before[cell.name]):
            progress.problem = read_json(error_file)["problem"]
            progress.status = Status.FAILED
            return
        # A file, because a signal handler may write to the descriptor of standard error.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as output:
            try:
                with workdir.locked():
                    self._run(cell, workdir, progress, output)
                    results = RunResults.read(workdir)
                    if not cell.keeps_model:
                        workdir.remove_model()
            except WorkdirInUse:
                progress.status = Status.ELSEWHERE
            except Exception as error:  # any error fails only this cell; the others may be sound
                progress.status = Status.FAILED
                progress.problem = problem_of(error)
                output.seek(0)
                self._record_failure(error_file, progress.problem, output.read())
            else:
                progress.status = Status.DONE
                progress.accuracy = results.test_accuracy
                progress.seconds = results.wall_seconds
                error_file.unlink(missing_ok=True)

    def _run(self, cell: Cell, workdir: Workdir, progress: CellProgress, output: TextIO) -> None:
        """Runs a cell, or checks a finished one, and keeps what it prints in `output`."""
        with redirect_stdout(output), redirect_stderr(output):
            if workdir.results_file.exists():
                self._check_finished(cell.config, workdir)
            else:
                progress.status = Status.RUNNING
                self._free_programs()
                carry_out(cell.config, workdir)

    def _free_programs(self) -> None:
        """Frees the programs of earlier cells before every eighth run; called before each run."""
        if self._num_runs and self._num_runs % RUNS_PER_CLEARING == 0:
            jax.clear_caches()
            gc.collect()  # programs are held in reference cycles
        self._num_runs += 1

    def _record_failure(self, error_file: Path, problem: str, output: str) -> None:
        """Writes the current exception to a cell's error file, with what the cell printed."""
        record = {
            "problem": problem,
            "traceback": traceback.format_exc().splitlines(),
            "output": output.splitlines(),
        }
        error_file.parent.mkdir(parents=True, exist_ok=True)
        Workdir(self._folder).write(error_file, record)

    def _check_finished(self, config: ConfigDict, workdir: Workdir) -> None:
        """Refuses a finished run with other settings, images or weights, as `prepare` would.

        Data and backbone that are not on this machine cannot be compared, and a finished run does
        not need them.
        """
        results = RunResults.read(workdir)
        workdir.check_is_free_for(with_recipe(config, results.counts.train, results.num_classes))
        record = self._few_shot_record_of(config)
        if record is not None:
            check_is_same_draw(workdir, config, record)
        identity = self._identity_of(config.clip, workdir.stored_backbone()["name"])
        if identity is not None:
            check_is_same_backbone(workdir, config.clip, identity)

    def _few_shot_record_of(self, config: ConfigDict) -> dict[str, Any] | None:
        """Returns the content of `few_shot.json`, computed once for all methods."""
        source = repr((config.benchmark, config.data.to_dict()))
        key = repr((source, config.shots, config.seed, config.allow_fewer))
        if key not in self._few_shot_records:
            try:
                if source not in self._datasets:
                    self._datasets = {
                        source: load_dataset(config)
                    }  # keeps only one, because it is large
                self._few_shot_records[key] = few_shot_record(draw(config, self._datasets[source]))
            except UserError:
                self._few_shot_records[key] = None
        return self._few_shot_records[key]

    def _identity_of(self, clip: str, stored_name: str) -> Identity | None:
        """Returns a backbone's identity, hashed once; None if it cannot or need not be compared.

        A checkpoint of a hub is not fetched if the run's backbone has the same name.
        """
        if clip == stored_name and not expand_user(clip).is_dir():
            return None
        if clip not in self._identities:
            try:
                self._identities[clip] = identity_of(clip)
            except UserError:
                self._identities[clip] = None
        return self._identities[clip]

    def _cell_folder(self, cell: Cell) -> Path:
        return self._folder / CELLS / cell.name

    def _error_file(self, cell: Cell) -> Path:
        return self._folder / ERRORS / f"{cell.name}.json"


def progress_of(cell: Cell, folder: Path) -> CellProgress:
    """Returns a cell's progress before it has started."""
    benchmark, backbone, method, settings = cell.name.split("/")
    own = ",".join(settings.split(",")[2:])
    return CellProgress(
        name=cell.name,
        row=(benchmark, backbone, method, own),
        shots=cell.config.shots,
        epochs=cell.config.epochs,
        metrics_file=Workdir(folder).metrics_file,
    )


def _age(file: Path) -> int | None:
    """Returns a number that changes whenever the file is written; None if there is no file."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
