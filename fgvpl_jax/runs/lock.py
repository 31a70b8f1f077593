"""The lock of a run's folder, also on file systems that have no file locks."""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, SoftFileLock, Timeout, UnixFileLock, WindowsFileLock

from fgvpl_jax.errors import UserError

LOCK = ".lock"
# Exists while a command works in a folder without file locks; a killed command leaves it behind.
MARKER = ".lock_marker"
# Errors by which a file system, such as Lustre or NFS without locks, refuses every lock.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
# Long enough for a second attempt if the previous holder is just removing the file.
TIMEOUT_SECONDS = 0.2


class WorkdirInUse(UserError):
    """Another process is working in the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other commands out of a folder; the system releases the lock with the process.

    Where the file system has no locks, a file marks the folder instead. The next command on the
    same machine removes the marker of a killed command.

    Raises:
        WorkdirInUse: If another command is running in the folder.
    """
    native = WindowsFileLock if sys.platform == "win32" else UnixFileLock
    file = folder / LOCK
    try:
        lock: BaseFileLock = native(file, fallback_to_soft=False)
        _acquire(lock, file)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        file.unlink(missing_ok=True)
        lock, file = SoftFileLock(folder / MARKER), folder / MARKER
        _acquire(lock, file)
    else:
        with suppress(OSError):  # Windows does not let a locked file be written
            file.write_text(f"pid {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    try:
        yield
    finally:
        with suppress(OSError):  # Windows does not let a locked file be removed
            (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, file: Path) -> None:
    try:
        lock.acquire(timeout=TIMEOUT_SECONDS)
    except Timeout:
        raise WorkdirInUse(
            f"another command is running in {file.parent} ({_owner(file)}): wait for it, or choose "
            "another workdir"
        ) from None


def _owner(file: Path) -> str:
    text = ""
    with suppress(OSError, ValueError):
        text = file.read_text(encoding="utf-8")
    if file.name != MARKER:
        return text or "a process that just began"
    pid, host, *_ = (*text.split(), "?", "?")
    return f"pid {pid} on {host}; if it is gone, remove {file}"
