"""Runs processes that are forked from a server process, which has imported the package.

Importing the package takes longer than a small run. The server has neither imported the hub's
client nor started XLA, so both read the forked process's environment. JAX has already read its own
variables: a test that sets one needs a new interpreter, as does one of the interpreter's start and
end.
"""

import faulthandler
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
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

    def finish(self, timeout: float) -> int:
        """Waits for the process to end and returns its exit status; kills one that hangs.

        Raises:
            TimeoutExpired: If it still runs after `timeout` seconds.
        """
        try:
            return self.wait(timeout)
        except BaseException:  # pytest would wait for the process without a limit
            self._process.kill()
            raise

    def send_signal(self, signum: int) -> None:
        """Sends a signal to a process that has not ended."""
        if self._process.exitcode is None:
            with suppress(ProcessLookupError):  # the server has just waited for its end
                os.kill(self._process.pid, signum)


def _run(arguments: list[str], environment: dict[str, str], log: Path, stacks: Path) -> None:
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Written from C code, which works even inside XLA.
    faulthandler.register(signal.SIGUSR1, stacks.open("w"))
    os.chdir(ROOT)
    sys.argv = ["run.py", *arguments]
    runpy.run_path("run.py", run_name="__main__")
