"""The modes that make runs: train, evaluate, data and sweep.

Each function takes the workdir and the positional arguments, and returns the exit code. It imports
what it needs when it is called, so that `--help` and mistakes do not wait for jax.
"""

import os
from collections.abc import Callable
from typing import Any

from fgvpl_jax.commands.console import LOST_PROCESS, MISTAKE, complain
from fgvpl_jax.commands.flags import (
    CONFIG,
    COORDINATOR,
    NUM_PROCESSES,
    PROCESS_ID,
    TENSORBOARD,
    WANDB,
)
from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.errors import UserError


def train(workdir: str, arguments: list[str]) -> int:
    """Trains and evaluates; resumes a run that was interrupted."""

    def call() -> dict[str, Any]:
        from fgvpl_jax.runs import experiment
        from fgvpl_jax.runs.watching import Watch
        from fgvpl_jax.runs.workdir import Workdir

        watch = Watch(TENSORBOARD.value, WANDB.value)
        return experiment.train_and_evaluate(CONFIG.value, Workdir(workdir), watch)

    return _run_and_print(call)


def evaluate(workdir: str, arguments: list[str]) -> int:
    """Evaluates a trained run again."""

    def call() -> dict[str, Any]:
        from fgvpl_jax.runs import experiment
        from fgvpl_jax.runs.workdir import Workdir

        return experiment.evaluate(Workdir(workdir), CONFIG.value)

    return _run_and_print(call)


def _run_and_print(call: Callable[[], dict[str, Any]]) -> int:
    """Joins the processes of the job, runs, and prints the results on process 0."""
    import jax

    from fgvpl_jax.runs.summary import summary_lines
    from fgvpl_jax.training import is_writer, join_processes

    join_processes(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    try:
        results = call()
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        # If jax notices first, it ends the process itself and says that another task died.
        reason = str(error).splitlines()[0]
        complain(
            f"another process of this job died or cannot be reached ({reason}): start all of them "
            "again with the same commands, to resume from the last checkpoint"
        )
        os._exit(LOST_PROCESS)  # an ordinary exit would wait for the lost process
    if is_writer():
        for line in summary_lines(results):
            print(line)
    return 0


def check_data(workdir: str, arguments: list[str]) -> int:
    """Prints what the data holds; returns exit code 2 if something is wrong with it."""
    from fgvpl_jax.runs import check_data as checking
    from fgvpl_jax.runs.workdir import Workdir

    lines, problems = checking.check_data(CONFIG.value, Workdir(workdir))
    print("\n".join(lines))
    for problem in problems:
        complain(problem)
    return MISTAKE if problems else 0


def sweep(workdir: str, arguments: list[str]) -> int:
    """Runs the cells of a sweep that have no results yet; returns exit code 2 if a cell failed."""
    from fgvpl_jax.sweeps.worker import run_sweep

    config = CONFIG.value
    if "grid" not in config:
        raise UserError(
            "--config names a single run: name a sweep's config, such as configs/sweep.py"
        )
    cells = run_sweep(config, workdir, config_named)
    failed = [cell for cell in cells if cell.problem is not None]
    if failed:
        return complain(
            f"{len(failed)} of {len(cells)} cells failed. The first is {failed[0].name}: "
            f"{failed[0].problem}; {workdir}/errors lists all of them, and the same command tries "
            "them again"
        )
    return 0
