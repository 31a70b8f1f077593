"""JAX's persistent compilation cache, in the user's cache folder unless the user chose another."""

import errno
import hashlib
import os
import platform
import shutil
import sys
import time
import warnings
import zlib
from functools import cache
from pathlib import Path

import jax
from absl import logging
from filelock import UnixFileLock, WindowsFileLock

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
LOCK_SECONDS = 2.0
# Names of JAX's files.
LOCK, PROGRAM, LAST_USE = ".lockfile", "-cache", "-atime"
CHECKED = ".checked"  # its time is that of the last check of the files
ZLIB = b"\x78"  # first byte; JAX uses zstandard instead where that is installed


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
    folder = _usable_folder(os.environ.get("XDG_CACHE_HOME"))
    if folder is None:
        return
    for name, (default, value) in SETTINGS.items():
        if name.upper() not in os.environ and settings[name] == default:
            jax.config.update(name, value)
    # JAX would warn of each program, for instance where the disk has become full.
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
    """Creates the folder if it does not exist, and removes damaged files from it.

    Raises:
        OSError: If this user cannot write to the folder, others can, or it has no file locks.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if sys.platform != "win32" and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        # JAX runs whatever is in the files.
        raise PermissionError(errno.EPERM, "other users can write to it", str(folder))
    if shutil.disk_usage(folder).free < FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    # Without file locks, JAX would wait for the marker of a killed process, at each program.
    native = WindowsFileLock if sys.platform == "win32" else UnixFileLock
    with native(folder / LOCK, timeout=LOCK_SECONDS, fallback_to_soft=False):
        _remove_damaged(folder)


def _remove_damaged(folder: Path) -> None:
    """Removes programs that JAX could not read, and would never replace.

    A killed process and a full disk leave such files. Each file is read once after it changed.
    """
    stamp = folder / CHECKED
    started = time.time()
    checked = stamp.stat().st_mtime if stamp.exists() else 0.0
    for program in folder.glob(f"*{PROGRAM}"):
        last_use = program.with_name(program.name.removesuffix(PROGRAM) + LAST_USE)
        # A file system may round times down to whole seconds.
        is_new = program.stat().st_mtime > checked - 2
        has_last_use = last_use.is_file() and last_use.stat().st_size > 0
        if not has_last_use or (is_new and not _is_whole(program.read_bytes())):
            program.unlink()
            last_use.unlink(missing_ok=True)
    stamp.touch()
    os.utime(stamp, (started, started))


def _is_whole(content: bytes) -> bool:
    if not content.startswith(ZLIB):
        return bool(content)
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


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
