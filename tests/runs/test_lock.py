"""A folder is locked also where the file system has no locks."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from fgvpl_jax.errors import UserError
from fgvpl_jax.runs.lock import LOCK, MARKER, WorkdirInUse, locked

# Holds the lock of the folder in a process without file locks until its input ends.
HOLDER = """
import errno, fcntl, os, sys
from pathlib import Path
from fgvpl_jax.runs.lock import locked

def flock(stream, operation):
    raise OSError(int(sys.argv[2]), os.strerror(int(sys.argv[2])))

fcntl.flock = flock
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Starts a process that holds the lock of tmp_path without file locks."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), str(errno.ENOSYS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"locked\n"
    yield process
    process.kill()
    process.communicate()


def without_locks(monkeypatch, number):
    def flock(stream, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_has_a_marker(tmp_path, monkeypatch, number):
    without_locks(monkeypatch, number)
    with locked(tmp_path):
        assert os.listdir(tmp_path) == [MARKER]
        refused = pytest.raises(WorkdirInUse, match=rf"pid {os.getpid()} on .* remove .*{MARKER}")
        with refused, locked(tmp_path):
            pytest.fail("the folder is marked")
    assert os.listdir(tmp_path) == []


def test_the_marker_of_a_killed_command_is_removed(holder, tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.ENOLCK)
    with pytest.raises(UserError, match=rf"pid {holder.pid} on "), locked(tmp_path):
        pytest.fail("another process holds the lock")
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_another_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
        pytest.fail("the disk is broken")


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        assert os.listdir(tmp_path) == [LOCK]
        raise KeyError
    with locked(tmp_path):
        pass


def test_python_without_fcntl_has_a_marker(tmp_path):
    """Simulates a Python without the module, such as the one of Windows."""
    code = (
        "import sys; sys.modules['fcntl'] = None\n"
        "import os; from pathlib import Path; from fgvpl_jax.runs.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print(os.listdir({str(tmp_path)!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == f"['{MARKER}']\n", done.stderr
