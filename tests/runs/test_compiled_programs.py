"""The cache of compiled programs serves the next process, and no state of it makes one fail."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fgvpl_jax.runs import compiled_programs

# Compiles a program and prints the cache's folder and the number of programs read from it.
PROCESS = """
import json, sys
import jax
from fgvpl_jax.runs.compiled_programs import keep_compiled_programs

events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
keep_compiled_programs()
exec(sys.argv[1])
assert jax.jit(lambda x: 2 * x + 1)(3.0) == 7
names = "jax_compilation_cache_dir", "jax_compilation_cache_max_size"
hits = events.count("/jax/compilation_cache/cache_hits")
print(json.dumps([hits, *(jax.config.values[name] for name in names)]))
"""
# Every write fails from now on, as on a full disk.
FILL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""


def start(home, first="", **variables):
    kept = {name: value for name, value in os.environ.items() if "CACHE" not in name}
    always = {
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(home),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, first],
        env=kept | always | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Returns the hits, the folder, its limit, and what was written to stderr."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return *json.loads(output), errors


def test_a_second_process_reads_the_programs(tmp_path):
    hits, folder, limit, errors = finish(start(tmp_path))
    assert (hits, errors) == (0, "")
    assert limit == 500_000_000
    assert Path(folder).parent == tmp_path / "fgvpl_jax" / "programs"
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
    hits, _, _, errors = finish(start(tmp_path))
    assert hits > 0
    assert errors == ""


@pytest.mark.further
def test_unfinished_programs_are_replaced(tmp_path):
    _, folder, _, _ = finish(start(tmp_path))
    for file in Path(folder).iterdir():
        if file.name.endswith(compiled_programs.LAST_USE):
            file.unlink()
        elif file.name.endswith(compiled_programs.PROGRAM):
            file.write_bytes(b"\x78\x9c truncated")
    hits, _, _, errors = finish(start(tmp_path))
    assert (hits, errors) == (0, "")
    hits, _, _, errors = finish(start(tmp_path))
    assert hits > 0
    assert errors == ""


def test_damaged_programs_are_compiled_without_a_warning(tmp_path):
    _, folder, _, _ = finish(start(tmp_path))
    for file in Path(folder).glob(f"*{compiled_programs.PROGRAM}"):
        file.write_bytes(b"damaged")
    assert finish(start(tmp_path))[3] == ""


def test_a_cache_without_a_limit_keeps_its_programs(tmp_path):
    unlimited = {"JAX_COMPILATION_CACHE_MAX_SIZE": "-1"}
    assert finish(start(tmp_path, **unlimited))[2] == -1
    assert finish(start(tmp_path, **unlimited))[0] > 0


def test_a_disk_that_becomes_full_is_no_failure(tmp_path):
    hits, _, _, errors = finish(start(tmp_path, FILL_DISK))
    assert (hits, errors) == (0, "")
    finish(start(tmp_path))
    hits, _, _, errors = finish(start(tmp_path))
    assert hits > 0
    assert errors == ""


@pytest.mark.further
def test_several_processes_may_begin_at_once(tmp_path):
    processes = [start(tmp_path) for _ in range(4)]
    assert [finish(process)[3] for process in processes] == [""] * 4
    assert finish(start(tmp_path))[0] > 0


def test_settings_of_the_user_stay(tmp_path):
    own = str(tmp_path / "own")
    _, folder, limit, _ = finish(start(tmp_path, JAX_COMPILATION_CACHE_DIR=own))
    assert (folder, limit) == (own, -1)
    _, folder, limit, _ = finish(start(tmp_path, JAX_COMPILATION_CACHE_MAX_SIZE="1000000"))
    assert folder != own
    assert limit == 1_000_000
    _, folder, _, _ = finish(start(tmp_path / "off", JAX_ENABLE_COMPILATION_CACHE="0"))
    assert folder is None
    assert not (tmp_path / "off").exists()


def test_a_folder_that_cannot_be_used_costs_one_warning():
    hits, folder, _, errors = finish(start("/proc/no/such/folder"))
    assert (hits, folder) == (0, None)
    (line,) = errors.splitlines()
    assert "compiled programs cannot be kept" in line
    assert "JAX_ENABLE_COMPILATION_CACHE=0" in line


def test_unsafe_and_full_folders_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    compiled_programs._prepare(folder)
    folder.chmod(0o777)
    with pytest.raises(OSError, match="other users can write to it"):
        compiled_programs._prepare(folder)
    folder.chmod(0o700)
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match="other users can write to it"):
        compiled_programs._prepare(folder)
    tmp_path.chmod(0o1777)
    compiled_programs._prepare(folder)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: 12345)
        with pytest.raises(OSError, match="it belongs to another user"):
            compiled_programs._prepare(folder)
    monkeypatch.setattr(compiled_programs, "FREE_BYTES", 10**30)
    with pytest.raises(OSError, match="No space left"):
        compiled_programs._prepare(folder)
