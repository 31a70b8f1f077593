"""JAX's persistent compilation cache, in the user's cache folder unless the user chose another."""

import errno
import hashlib
import os
import platform
import shutil
import stat
import sys
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import jax
from absl import logging
from filelock import Timeout, UnixFileLock, WindowsFileLock

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import user_cache_folder

# Defaults of JAX, and the values that replace them.
SETTINGS = {
    "jax_compilation_cache_max_size": (-1, 500_000_000),
    # Smaller programs compile about as fast as they are read, and every write counts the files.
    "jax_persistent_cache_min_compile_time_secs": (1.0, 0.1),
    # The size limit does not cover XLA's own files.
    "jax_persistent_cache_enable_xla_caches": ("xla_gpu_per_fusion_autotune_cache_dir", "none"),
}
FREE_BYTES = 100_000_000  # least free space of the disk
# Names of JAX's files.
LOCK, PROGRAM, LAST_USE = ".lockfile", "-cache", "-atime"


def keep_compiled_programs() -> None:
    """Makes JAX keep compiled programs on disk, so that the next start does not compile them again.

    Does nothing if the user chose a folder of JAX's cache or switched it off, by a variable or by
    `jax.config`, and in a job of several processes, where JAX lets only the first one write. If the
    folder cannot be used, one warning says why.
    """
    settings = jax.config.values
    chosen = settings["jax_compilation_cache_dir"] is not None
    if chosen or not settings["jax_enable_compilation_cache"] or jax.process_count() > 1:
        return
    for name, (default, value) in SETTINGS.items():
        if name.upper() not in os.environ and settings[name] == default:
            jax.config.update(name, value)
    folder = _usable_folder(os.environ.get("XDG_CACHE_HOME"))
    if folder is None:
        return
    # JAX compiles a program that it cannot read or write, and would warn of each.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(folder))


@cache
def _usable_folder(cache_home: str | None) -> Path | None:
    """Returns the folder of the programs, or None with a warning if it cannot be used.

    Args:
        cache_home: The variable XDG_CACHE_HOME; another value may make the folder usable.
    """
    try:
        folder = user_cache_folder("programs") / _cpu_kind()
        _prepare(folder)
    except (OSError, UserError) as error:
        logging.warning(
            "compiled programs cannot be kept (%s), so every start compiles them again: set "
            "XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR to a folder that can be written, or "
            "JAX_ENABLE_COMPILATION_CACHE=0",
            error,
        )
        return None
    return folder


def _prepare(folder: Path) -> None:
    """Creates the folder if it does not exist, and removes unfinished programs from it.

    Raises:
        OSError: If the folder is not this user's alone, is full, or has no file locks.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if sys.platform != "win32":
        _check_private(folder.resolve())
    if shutil.disk_usage(folder).free < FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    # Without file locks, JAX would wait for the marker of a killed process, at each program.
    native = WindowsFileLock if sys.platform == "win32" else UnixFileLock
    lock = native(folder / LOCK, blocking=False, fallback_to_soft=False)
    with suppress(Timeout), lock:  # if another process has the lock, file locks work
        if jax.config.values["jax_compilation_cache_max_size"] != -1:
            _remove_unfinished(folder)


def _check_private(folder: Path) -> None:
    """Checks that no other user can change the folder's files, since JAX runs what is in them.

    Raises:
        PermissionError: If somebody can.
    """
    status = folder.stat()
    if status.st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to another user", str(folder))
    if status.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "other users can write to it", str(folder))
    for parent in folder.parents:  # in such a parent, others could replace the folder
        if parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise PermissionError(errno.EPERM, "other users can write to it", str(parent))


def _remove_unfinished(folder: Path) -> None:
    """Removes programs whose writing a full disk or a killed process interrupted.

    They have no time of last use, which JAX writes next if the cache has a size limit. As long as
    it is missing, JAX keeps no further program.
    """
    for program in folder.glob(f"*{PROGRAM}"):
        if not program.with_name(program.name.removesuffix(PROGRAM) + LAST_USE).exists():
            program.unlink()


def _cpu_kind() -> str:
    """Returns an identifier of this CPU's kind: machines of several kinds may share a home folder.

    Programs compiled for one kind may use instructions that another does not have.
    """
    facts = [platform.machine(), platform.processor()]
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        facts += sorted({x for x in lines if x.startswith(("model name", "flags", "Features"))})
    except OSError:  # not Linux
        pass
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
