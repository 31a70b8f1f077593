"""Runs on a full or read-only disk: a small tmpfs in a mount namespace of its own.

The tests are skipped if the system allows neither root nor user namespaces.
"""

import json
import os
import random
import select
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import LONGEST_SECONDS, ROOT, count, outcome_of

pytestmark = pytest.mark.slow

TRIALS = 16
SMALLEST_KB, PAGE_KB = 4, 4
UNSHARE = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]


class Namespace:
    """Worker process in a mount namespace, with disks that no other process sees."""

    def __init__(self):
        self._worker = subprocess.Popen(
            [*UNSHARE, sys.executable, "-m", "tests.faults.namespace_worker"],
            cwd=ROOT,
            env=os.environ
            | {"SLURM_NTASKS": "1"},  # jax looks for other tasks of the job only once
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, *arguments: str | Path) -> int:
        """Runs a program in the namespace; returns its exit code."""
        self._worker.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._worker.stdin.flush()
        answered, _, _ = select.select([self._worker.stdout], [], [], LONGEST_SECONDS)
        if not answered:
            self._worker.kill()
            pytest.fail(f"{arguments[0]} hung for {LONGEST_SECONDS} s")
        return int(self._worker.stdout.readline())

    def mount(self, *arguments: str | Path) -> None:
        assert self.do("mount", *arguments) == 0

    def run(self, arguments: list[str], log: Path) -> tuple[int, str]:
        """Runs `run.py` in the namespace; returns its exit code and its output."""
        code = self.do("run.py", log, *arguments)
        text = log.read_text()
        assert "Traceback" not in text, text
        return code, text

    def close(self) -> None:
        self._worker.stdin.close()
        self._worker.wait()


@pytest.fixture(scope="module")
def namespace(tmp_path_factory):
    place = tmp_path_factory.mktemp("probe")
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    probe = [*UNSHARE, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("this system does not allow mounts")
    namespace = Namespace()
    yield namespace
    namespace.close()


def error_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("error: ")]


def size_kb(folder: Path) -> int:
    """Returns the space that files take up in whole pages of 4 KB."""
    return sum(-(-file.stat().st_size // 4096) * 4 for file in folder.rglob("*"))


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_run_on_a_full_disk_resumes_when_there_is_space(undisturbed, namespace, tmp_path, trial):
    """The command fails; with enough space it resumes and ends like an undisturbed run."""
    rng = random.Random(trial)
    disk, full, free = (tmp_path / name for name in ("disk", "full", "free"))
    disk.mkdir()
    begun = trial % 2
    least = size_kb(undisturbed.half) if begun else SMALLEST_KB
    size = rng.randrange(least, size_kb(undisturbed.path) * 5 // 4, PAGE_KB)
    namespace.mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk)
    if begun and namespace.do("cp", "-a", undisturbed.half, disk / "W"):
        pytest.skip("the half-finished run needs more space on the disk than its files are large")
    arguments = undisturbed.command(disk / "W")[2:]
    code, log = namespace.run(arguments, tmp_path / "log1")
    namespace.do("cp", "-a", disk, full)
    namespace.mount("-o", "remount,size=64m", disk)
    code_after, log_after = namespace.run(arguments, tmp_path / "log2")
    namespace.do("cp", "-a", disk, free)
    namespace.do("umount", "--lazy", disk)
    print(f"{size} KB: exit {code}, {code_after}, {error_lines(log)}")
    if code == 0:
        right = outcome_of(full / "W") == undisturbed.outcome
        count("disk of the run full", "ended right" if right else "false success")
        assert right
        return
    same = code_after == 0 and outcome_of(free / "W") == undisturbed.outcome
    kept = not begun or "resuming after epoch" in log_after
    right = code == 2 and len(error_lines(log)) == 1 and same and kept
    count(
        "disk of the run full",
        *(["ended right", "of them refused"] if right else []),
        *([] if same and kept else ["data lost"]),
    )
    assert right, (code, code_after, log, log_after)
    left = {file.name for file in (free / "W").iterdir()}
    assert left == {file.name for file in undisturbed.path.iterdir()}


@pytest.mark.parametrize("trial", range(TRIALS // 2))
def test_a_full_disk_of_the_image_cache_does_not_stop_a_run(
    undisturbed, namespace, tmp_path, trial
):
    """The run only takes longer."""
    disk, cache = tmp_path / "disk", undisturbed.path.parent / "cache"
    disk.mkdir()
    size = random.Random(trial).randrange(SMALLEST_KB, size_kb(cache), PAGE_KB)
    namespace.mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk)
    arguments = [
        argument if "image_cache_dir" not in argument else f"--config.data.image_cache_dir={disk}"
        for argument in undisturbed.command(tmp_path / "W")[2:]
    ]
    code, log = namespace.run(arguments, tmp_path / "log")
    namespace.do("umount", "--lazy", disk)
    right = code == 0 and outcome_of(tmp_path / "W") == undisturbed.outcome
    count("disk of the cache full", "ended right" if right else "false success")
    assert right, log
    assert "cannot keep" in log


@pytest.mark.parametrize("start", ["nothing", "half", "path"])
def test_a_read_only_workdir_is_refused(undisturbed, namespace, tmp_path, start):
    fixed = tmp_path / "disk"
    fixed.mkdir()
    if start != "nothing":
        shutil.copytree(getattr(undisturbed, start), fixed / "W")
    before = {file: file.read_bytes() for file in fixed.rglob("*") if file.is_file()}
    namespace.mount("--bind", fixed, fixed)
    namespace.mount("-o", "remount,bind,ro", fixed)
    code, log = namespace.run(undisturbed.command(fixed / "W")[2:], tmp_path / "log")
    namespace.do("umount", "--lazy", fixed)
    after = {file: file.read_bytes() for file in fixed.rglob("*") if file.is_file()}
    right = code == 2 and len(error_lines(log)) == 1
    count(
        "read-only workdir",
        *(["ended right", "of them refused"] if right else []),
        *([] if before == after else ["data lost"]),
        *(["false success"] if code == 0 else []),
    )
    assert right, log
    assert before == after
