"""A disk that is full or may only be read, as a small tmpfs in a mount namespace of its own.

Where the system gives neither root nor user namespaces, these are skipped.
"""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.faults.conftest import count, outcome_of
from tests.faults.test_moments import LONGEST_SECONDS, ROOT, command

pytestmark = pytest.mark.slow

TRIALS = 8
SMALLEST_KB, PAGE_KB, ENOUGH = 4, 4, "64m"
UNSHARE = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]
# The same command on a disk of $1 KB at $2, then on one that has room; what each left goes to $3.
FULL_THEN_FREE = """
mount -t tmpfs -o size=$1k tmpfs "$2" || exit 77
place=$2; out=$3; shift 3
[ -d "$out/begun" ] && cp -a "$out/begun/." "$place"
"$@" > "$out/log1" 2>&1; echo $? > "$out/code1"
cp -a "$place" "$out/full"
mount -o remount,size=64m "$place"
"$@" > "$out/log2" 2>&1; echo $? > "$out/code2"
cp -a "$place" "$out/free"
"""
READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77
shift
exec "$@"
"""


def in_namespace(script: str, *arguments: str | Path, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*UNSHARE, "sh", "-c", script, "sh", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * LONGEST_SECONDS,
        check=False,
        **options,
    )


@pytest.fixture(scope="module", autouse=True)
def namespaces(tmp_path_factory):
    place = tmp_path_factory.mktemp("probe")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    probe = in_namespace('mount -t tmpfs -o size=64k tmpfs "$1"', place)
    if probe.returncode:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")


def error_lines(log: str) -> list[str]:
    assert "Traceback" not in log, log
    return [line for line in log.splitlines() if line.startswith("error: ")]


def size_kb(folder: Path) -> int:
    return sum(-(-file.stat().st_size // 4096) * 4 for file in folder.rglob("*"))


@pytest.mark.parametrize("trial", range(TRIALS))
def test_the_disk_of_a_run_is_full(undisturbed, tmp_path, trial):
    rng = random.Random(trial)
    full = tmp_path / "disk"
    full.mkdir()
    begun = trial % 2
    if begun:
        shutil.copytree(undisturbed.half, tmp_path / "begun" / "W")
        least = size_kb(tmp_path / "begun")
    else:
        least = SMALLEST_KB
    size = rng.randrange(least, size_kb(undisturbed.path) * 5 // 4, PAGE_KB)
    done = in_namespace(FULL_THEN_FREE, size, full, tmp_path, *command(undisturbed, full / "W"))
    assert done.returncode == 0, done.stderr
    codes = [int((tmp_path / f"code{n}").read_text()) for n in (1, 2)]
    log = (tmp_path / "log1").read_text()
    print(f"{size} KB: exit {codes}, {error_lines(log)}")
    if codes[0] == 0:
        right = outcome_of(tmp_path / "full" / "W") == undisturbed.outcome
        count("disk of the run full", "ended right" if right else "false success")
        assert right
        return
    same = codes[1] == 0 and outcome_of(tmp_path / "free" / "W") == undisturbed.outcome
    kept = not begun or "going on after epoch" in (tmp_path / "log2").read_text()
    right = codes[0] == 2 and len(error_lines(log)) == 1 and same and kept
    count(
        "disk of the run full",
        *(["ended right", "of them refused"] if right else []),
        *([] if same and kept else ["data lost"]),
    )
    assert right, (codes, log, (tmp_path / "log2").read_text())
    left = {file.name for file in (tmp_path / "free" / "W").iterdir()}
    assert left == {file.name for file in undisturbed.path.iterdir()}


@pytest.mark.parametrize("trial", range(TRIALS // 2))
def test_the_disk_of_the_cache_is_full(undisturbed, tmp_path, trial):
    """Which costs time alone."""
    full, cache = tmp_path / "disk", undisturbed.path.parent / "cache"
    full.mkdir()
    size = random.Random(trial).randrange(SMALLEST_KB, size_kb(cache), PAGE_KB)
    arguments = [
        argument if "image_cache_dir" not in argument else f"--config.data.image_cache_dir={full}"
        for argument in command(undisturbed, tmp_path / "W")
    ]
    done = in_namespace(FULL_THEN_FREE, size, full, tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    codes = [int((tmp_path / f"code{n}").read_text()) for n in (1, 2)]
    right = codes == [0, 0] and outcome_of(tmp_path / "W") == undisturbed.outcome
    count("disk of the cache full", "ended right" if right else "false success")
    assert right, (tmp_path / "log1").read_text()
    assert "cannot keep" in (tmp_path / "log1").read_text()


@pytest.mark.parametrize("start", ["nothing", "half", "path"])
def test_a_workdir_that_may_only_be_read(undisturbed, tmp_path, start):
    fixed = tmp_path / "disk"
    fixed.mkdir()
    if start != "nothing":
        shutil.copytree(getattr(undisturbed, start), fixed / "W")
    before = {file: file.read_bytes() for file in fixed.rglob("*") if file.is_file()}
    done = in_namespace(READ_ONLY, fixed, *command(undisturbed, fixed / "W"))
    after = {file: file.read_bytes() for file in fixed.rglob("*") if file.is_file()}
    right = done.returncode == 2 and len(error_lines(done.stderr)) == 1
    count(
        "workdir that may only be read",
        *(["ended right", "of them refused"] if right else []),
        *([] if before == after else ["data lost"]),
        *(["false success"] if done.returncode == 0 else []),
    )
    assert right, done.stderr
    assert before == after
