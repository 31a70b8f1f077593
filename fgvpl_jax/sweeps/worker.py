"""`--mode=sweep`: many runs in one folder, by one worker or several, here or on other machines.

A cell is an ordinary run's folder, and finished when its `results.json` is there. Nothing else is
remembered, so that workers need no word from each other: each takes the first cell that is neither
finished nor held by another, until none is left. Whoever is killed loses the cell it was at, which
goes on from its last checkpoint.
"""

import shutil
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fgvpl_jax.clip import Identity, identity_of
from fgvpl_jax.data import Dataset, few_shot_record
from fgvpl_jax.displays.live_table import CellProgress, Status, showing
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json
from fgvpl_jax.runs.data_loading import draw, load_dataset
from fgvpl_jax.runs.experiment import carry_out
from fgvpl_jax.runs.prepare import check_is_same_backbone, check_is_same_draw
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.settings import with_recipe
from fgvpl_jax.runs.workdir import Workdir, WorkdirInUse
from fgvpl_jax.sweeps.cells import Cell, ConfigNamed, cells_of

CELLS, ERRORS = "cells", "errors"
POLL_SECONDS = 5.0  # between two looks at cells that others hold


def run_sweep(
    config: ConfigDict, place: str | Path, config_named: ConfigNamed
) -> list[CellProgress]:
    """Does what is left of a sweep, and returns when every cell is finished or has failed.

    A cell that fails is told of, recorded in `errors/`, and tried again by the next command.

    Args:
        config: From `sweep_config`.
        place: Folder of the sweep; other sweeps' cells may be in it.
        config_named: Gives the config of a benchmark's name.
    Raises:
        UserError: If a cell has settings that no run can have; nothing is done then.
    """
    cells = cells_of(config, config_named)
    worker = Worker(Workdir(place).path, cells)
    with showing(worker.progress) as tell:
        while not all(progress.is_settled for progress in worker.progress):
            before = [progress.status for progress in worker.progress]
            for cell, progress in zip(cells, worker.progress, strict=True):
                if not progress.is_settled:
                    worker.advance(cell, progress)
                    if progress.is_settled:
                        tell(progress)
            if before == [progress.status for progress in worker.progress]:
                time.sleep(POLL_SECONDS)
    return worker.progress


class Worker:
    """One process that works on a sweep.

    Attributes:
        progress: Of each cell, as far as this worker knows.
    """

    def __init__(self, place: Path, cells: Sequence[Cell]):
        self._place = place
        self.progress = [progress_of(cell, self._folder(cell)) for cell in cells]
        self._errors_before = {cell.name: _age(self._error_file(cell)) for cell in cells}
        self._identities: dict[str, Identity | None] = {}
        self._draws: dict[str, dict[str, Any] | None] = {}
        self._datasets: dict[str, Dataset] = {}

    def advance(self, cell: Cell, progress: CellProgress) -> None:
        """Runs a cell, unless it is finished, failed in another worker's hands or is held by one.

        Raises:
            KeyboardInterrupt: As it comes.
        """
        error_file = self._error_file(cell)
        workdir = Workdir(self._folder(cell))
        is_finished = workdir.results_file.exists()
        if not is_finished and _age(error_file) not in (None, self._errors_before[cell.name]):
            progress.problem = read_json(error_file)["problem"]
            progress.status = Status.FAILED
            return
        # A file, as a handler of signals may write to where the standard error goes.
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as output:
            try:
                with workdir.locked():
                    with redirect_stdout(output), redirect_stderr(output):
                        if workdir.results_file.exists():
                            self._check_finished(cell.config, workdir)
                        else:
                            progress.status = Status.RUNNING
                            carry_out(cell.config, workdir)
                    results = RunResults.read(workdir)
                    if not cell.keeps_model:
                        shutil.rmtree(workdir.checkpoints, ignore_errors=True)
                        workdir.support_file.unlink(missing_ok=True)
            except WorkdirInUse:
                progress.status = Status.ELSEWHERE
            except Exception as error:  # one cell's, whatever it is; the others may be sound
                progress.status = Status.FAILED
                progress.problem = problem_of(error)
                output.seek(0)
                record = {
                    "problem": progress.problem,
                    "traceback": traceback.format_exc().splitlines(),
                    "output": output.read().splitlines(),
                }
                error_file.parent.mkdir(parents=True, exist_ok=True)
                Workdir(self._place).write(error_file, record)
            else:
                progress.status = Status.DONE
                progress.accuracy = results.test_accuracy
                progress.seconds = results.wall_seconds
                error_file.unlink(missing_ok=True)

    def _check_finished(self, config: ConfigDict, workdir: Workdir) -> None:
        """Refuses a finished run of other settings, images or weights, as `prepare` would.

        What is not on this machine cannot be compared, and need not be there for a finished run.
        """
        results = RunResults.read(workdir)
        workdir.check_is_free_for(with_recipe(config, results.counts.train, results.num_classes))
        record = self._draw_of(config)
        if record is not None:
            check_is_same_draw(workdir, config, record)
        identity = self._identity_of(config.clip, workdir.stored_backbone()["name"])
        if identity is not None:
            check_is_same_backbone(workdir, config.clip, identity)

    def _draw_of(self, config: ConfigDict) -> dict[str, Any] | None:
        """What `few_shot.json` would hold, made once for all methods."""
        source = repr((config.benchmark, config.data.to_dict()))
        key = repr((source, config.shots, config.seed, config.allow_fewer))
        if key not in self._draws:
            try:
                if source not in self._datasets:
                    self._datasets = {source: load_dataset(config)}  # large: one at a time
                self._draws[key] = few_shot_record(draw(config, self._datasets[source]))
            except UserError:
                self._draws[key] = None
        return self._draws[key]

    def _identity_of(self, clip: str, stored_name: str) -> Identity | None:
        """Hashed once; a hub's checkpoint is not fetched for what has its name already."""
        if clip == stored_name and not Path(clip).expanduser().is_dir():
            return None
        if clip not in self._identities:
            try:
                self._identities[clip] = identity_of(clip)
            except UserError:
                self._identities[clip] = None
        return self._identities[clip]

    def _folder(self, cell: Cell) -> Path:
        return self._place / CELLS / cell.name

    def _error_file(self, cell: Cell) -> Path:
        return self._place / ERRORS / f"{cell.name}.json"


def progress_of(cell: Cell, folder: Path) -> CellProgress:
    """A cell as the table shows it before anything is known of it."""
    benchmark, backbone, method, settings = cell.name.split("/")
    own = ",".join(settings.split(",")[2:])
    return CellProgress(
        name=cell.name,
        row=(benchmark, backbone, method, own),
        shots=cell.config.shots,
        epochs=cell.config.epochs,
        metrics_file=Workdir(folder).metrics_file,
    )


def problem_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _age(file: Path) -> int | None:
    """Changes whenever a file is written."""
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:
        return None
