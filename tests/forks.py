"""Starts processes that are forked from one which has already imported the package.

Importing it takes longer than a small run. The process that is forked has not imported the hub's
client, which reads its environment when it is imported, and has not started XLA, which reads
XLA_FLAGS then. JAX has read its own variables, so a test that sets one needs a new interpreter.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import fgvpl_jax.runs.experiment  # noqa: F401  # imported for the processes that are forked

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload([__name__])
ROOT = Path(__file__).parents[1]


class ForkedRun:
    """`run.py` in a process that is forked, with the methods of `subprocess.Popen` that tests use.

    Args:
        arguments: The command's arguments.
        environment: All environment variables of the process.
        log: File to which it appends its output.
        stacks: File to which it writes the stacks of all threads on SIGUSR1.
    """

    def __init__(
        self, arguments: list[str], environment: Mapping[str, str], log: Path, stacks: Path
    ):
        self._process = FORKS.Process(target=_run, args=(arguments, dict(environment), log, stacks))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Waits for the process to end and returns its exit status.

        Raises:
            TimeoutExpired: If it still runs after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("run.py", timeout)
        return self._process.exitcode

    def send_signal(self, signum: int) -> None:
        """Sends a signal to a process that has not ended."""
        if self._process.exitcode is None:
            os.kill(self._process.pid, signum)


def _run(arguments: list[str], environment: dict[str, str], log: Path, stacks: Path) -> None:
    import faulthandler

    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Written from C code, which works even inside XLA.
    faulthandler.register(signal.SIGUSR1, stacks.open("w"))
    os.chdir(ROOT)
    sys.argv = ["run.py", *arguments]
    runpy.run_path("run.py", run_name="__main__")
