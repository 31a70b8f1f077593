"""A process that waits for others says so, can be stopped, and waits no longer than it says."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fgvpl_jax.training.processes import SILENT_SECONDS, join_processes

ROOT = Path(__file__).parents[2]
SLURM = {
    "SLURM_JOB_ID": str(os.getpid()),
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
LONGEST_SECONDS = 60


# Runs run.py's command, which reports a wait for other processes sooner.
IMPATIENT = """
from fgvpl_jax.commands import command_line

def import_jax():
    imported()
    from fgvpl_jax.training import processes
    processes.SILENT_SECONDS = 0.5

imported, command_line.import_jax = command_line.import_jax, import_jax
command_line.run()
"""


def start(tmp_path, process_id):
    return subprocess.Popen(
        [
            *(sys.executable, "-c", IMPATIENT, "--config=configs/shapes.py"),
            f"--workdir={tmp_path / 'W'}",
        ],
        env=os.environ | SLURM | {"JAX_PLATFORMS": "cpu", "SLURM_PROCID": process_id},
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


@pytest.mark.parametrize(("process_id", "signum"), [("0", "SIGINT"), ("1", "SIGTERM")])
def test_a_wait_for_tasks_that_never_come_is_reported_and_can_be_stopped(
    tmp_path, process_id, signum
):
    waiting = start(tmp_path, process_id)
    line = waiting.stderr.readline()
    assert line.startswith("waiting up to 300 seconds for the other processes of this job")
    assert "--num_processes=1" in line
    time.sleep(0.5)  # a signal during the write would repeat the line
    began = time.monotonic()
    waiting.send_signal(getattr(signal, signum))
    rest = waiting.communicate(timeout=LONGEST_SECONDS)[1]
    assert time.monotonic() - began < SILENT_SECONDS
    assert waiting.returncode == 128 + getattr(signal, signum)
    assert rest.splitlines() == ["interrupted; the same command resumes from the last checkpoint"]


WAITER = """
import sys
from fgvpl_jax.training import processes
processes.SILENT_SECONDS, processes.START_TIMEOUT_SECONDS = 0.5, 1
try:
    processes.join_processes(sys.argv[1], 2, int(sys.argv[2]))
except processes.LostProcesses as error:
    print(error, flush=True)
    processes.os._exit(7)
"""


@pytest.mark.parametrize("process_id", ["0", "1"])
def test_a_wait_ends_with_one_line(process_id):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    done = subprocess.run(
        [sys.executable, "-c", WAITER, address, process_id],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "did not find each other (no answer for 1 seconds)" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_single_process_waits_for_nobody(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    join_processes(None, 1, None)
