"""Frozen features that two processes compute in shares equal those of one process, to the bit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.whole_runs import metrics, stored_results, without_times

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 300  # for one process; catches hangs

WORKER = """
import sys
from pathlib import Path
from fgvpl_jax.errors import UserError
from fgvpl_jax.runs import candidates, experiment
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import inputs, join_processes
from tests.conftest import make_tiny_config

out, address, count, number, clip, photos, *names = sys.argv[1:]
if count != "1":
    join_processes(address, int(count), int(number))
for name in names:
    config = make_tiny_config(Path(clip), Path(photos))
    config.method, _, setting = name.partition(":")
    config.epochs = {"fvp": 2, "linear_probe": 5, "tip_adapter_f": 5}.get(config.method)
    config.batch_size = 4 if config.epochs else None
    if setting == "tokens":
        config.prompt_layer, config.augmented_passes = 2, 2
    config.data.image_cache_gb = 1.0
    config.data.image_cache_dir = str(Path(out) / "cache")
    if setting == "folds":
        config.data.root = str(Path(photos) / "train")
    if config.method == "auto":
        config.minutes = 1e-4  # for the first method alone
    if setting == "fails" and number == "1":
        inputs.feature_batch = None
    if setting == "disk" and number == "1":
        def full(*_):
            raise UserError("the disk is full")
        candidates.fitted = full
    experiment.train_and_evaluate(config, Workdir(Path(out) / name))
    if setting == "again":
        (Path(out) / name / "results.json").unlink(missing_ok=True)
        experiment.evaluate(Workdir(Path(out) / name))
"""


def start(arguments: list[str], out: Path, *, devices: int, processes: int):
    """Starts the processes of one job that does the runs in turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    # XLA's usual optimisations, unlike in other tests: they decide how sums are rounded.
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, out, address, str(processes), str(number), *arguments],
            env=os.environ | environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def assert_equal_runs(tiny_clip_dir, photos_dir, tmp_path, *names):
    """Compares runs of one process on two devices with those of two processes on one each."""
    arguments = [str(tiny_clip_dir), str(photos_dir), *names]
    jobs = [
        *start(arguments, tmp_path / "one", devices=2, processes=1),
        *start(arguments, tmp_path / "two", devices=1, processes=2),
    ]
    for job in jobs:
        _, err = job.communicate(timeout=LONGEST_SECONDS)
        assert job.returncode == 0, err
    for name in names:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        found, expected = (without_times(stored_results(path)) for path in (two, one))
        if name == "auto":
            (found, tried), (expected, others) = map(without_tried, (found, expected))
            assert tried == others
        assert found == expected
        if (one / "metrics.jsonl").exists():
            assert metrics(two) == metrics(one)
        for file in ("predictions.npz", "support.npz", "known_classes.npz"):
            if (one / file).exists():
                assert_equal_arrays(two / file, one / file)


def without_tried(results):
    """Returns results without the methods that "auto" tried, and these without times."""
    return results | {"tried": ()}, [without_times(method) for method in results["tried"]]


def assert_equal_arrays(file: Path, other: Path):
    with np.load(file) as found, np.load(other) as expected:
        assert found.files == expected.files
        for column in expected.files:
            np.testing.assert_array_equal(found[column], expected[column])


@pytest.mark.slow
def test_two_processes_do_the_runs_of_one(tiny_clip_dir, photos_dir, tmp_path):
    names = [
        "gda:again",
        "linear_probe",
        "tip_adapter_f",
        "gda_pool",
        "gda:folds",
        "auto",
        "fvp:tokens",
    ]
    assert_equal_runs(tiny_clip_dir, photos_dir, tmp_path, *names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "message"), [("gda:fails", "TypeError"), ("auto:disk", "the disk is full")]
)
def test_an_error_in_one_process_ends_both(tiny_clip_dir, photos_dir, tmp_path, name, message):
    arguments = [str(tiny_clip_dir), str(photos_dir), name]
    jobs = start(arguments, tmp_path, devices=1, processes=2)
    errors = [job.communicate(timeout=LONGEST_SECONDS)[1] for job in jobs]
    assert all(job.returncode for job in jobs)
    assert message in errors[1]
