"""Runs on eight simulated devices, or on two processes of two, equal runs on one device."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import FAST_COMPILATION
from tests.whole_runs import metrics, stored_results

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 300  # for one process; catches hangs

STEP = """
import sys
import jax, numpy as np, optax
from flax import nnx
from jax.sharding import AxisType, Mesh
from fgvpl_jax import VisualCache, load_clip
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.recognition import class_text_features, visual_cache
from fgvpl_jax.training import (
    TrainState, batch_layout, data_mesh, make_train_step, replicate, split_batch, split_model
)
from fgvpl_jax.training.train_step import StepBatch
from tests.compiled import run
from tests.method_settings import FG_VPL_SETTINGS

clip = load_clip(sys.argv[1])
text_features = class_text_features(clip, ("a", "b"), ("a {}.",))
model = FGVPL(clip, text_features, **FG_VPL_SETTINGS, rngs=nnx.Rngs(0))
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (7, clip.image_size, clip.image_size, 3), dtype=np.uint8)
labels = (np.arange(16) % 2).astype(np.int32)
features = run(FGVPL.support_features, model, images[np.arange(16) % 7])
cache = VisualCache(*features, labels, np.arange(16) < 13)
graphdef, *state = split_model(model)

def step(mesh, microbatch):
    rows, passes = batch_layout(mesh, 7, microbatch)
    pad = [(0, rows - 7)]
    batch = StepBatch(
        np.pad(images, pad + 3 * [(0, 0)]), np.pad(labels[:7], pad), np.pad(np.ones(7), pad)
    )
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype == np.float32 else np.asarray(x),
            jax.device_get((state, cache)),
        )
        (trainable, frozen), support = replicate(mesh, wide[0]), split_batch(mesh, wide[1])
        optimizer = optax.sgd(1.0)
        new, metrics = make_train_step(graphdef, optimizer, mesh, passes)(
            replicate(mesh, TrainState(trainable, jax.jit(optimizer.init)(trainable))),
            frozen, support, {"cache_logit_weight": np.float64(1)}, split_batch(mesh, batch),
        )
        assert metrics.weight == 7 and metrics.loss.dtype == np.float64
        return jax.device_get((jax.tree.leaves(new.trainable), metrics))

assert data_mesh().size == 8
one = Mesh(np.array(jax.devices()[:1]), ("data",), axis_types=(AxisType.Auto,))
expected, metrics = step(one, 0)
for chunk in (visual_cache.CHUNK, 8):  # the whole cache at once; two chunks of one row per device
    visual_cache.CHUNK = chunk
    found, other_metrics = step(data_mesh(), 4)  # two passes of one row per device
    np.testing.assert_allclose(metrics, other_metrics, rtol=1e-10)
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
"""


def environment(num_devices: int) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def compiling_fast(variables: dict[str, str]) -> dict[str, str]:
    """Returns environment variables that make a process compile as the default tests do."""
    flags = " ".join([*FAST_COMPILATION, variables["XLA_FLAGS"]])
    return variables | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def test_a_step_on_eight_devices_equals_one(tiny_clip_dir):
    """Uses seven images in two padded passes, and sixteen cached images, in float64."""
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(tiny_clip_dir)],
        env=compiling_fast(environment(8)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def arguments(tiny_clip_dir, photos_dir):
    """Arguments of run.py; the devices divide neither the nine images nor batches of four."""
    return [
        "--config=configs/folder.py",
        "--config.method=fg_vpl",
        f"--config.clip={tiny_clip_dir}",
        f"--config.data.root={photos_dir}",
        "--config.shots=3",
        "--config.batch_size=4",
        "--config.eval_batch_size=8",
        "--config.checkpoint_every_epochs=2",
    ]


def start(arguments: list[str], workdir: Path, *, devices: int, processes: int = 1):
    """Starts the processes of one job on this machine."""
    jobs = [[]]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        jobs = [
            [
                f"--coordinator_address={address}",
                f"--num_processes={processes}",
                f"--process_id={number}",
            ]
            for number in range(processes)
        ]
    return [
        subprocess.Popen(
            [sys.executable, "run.py", f"--workdir={workdir}", *arguments, *job],
            env=environment(devices),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for job in jobs
    ]


def finish(jobs) -> list[str]:
    """Waits until all processes end successfully; returns what each printed."""
    outputs = []
    for job in jobs:
        out, err = job.communicate(timeout=LONGEST_SECONDS)
        assert job.returncode == 0, err
        outputs.append(out)
    return outputs


def losses(workdir: Path) -> list[float]:
    return [line["loss"] for line in metrics(workdir)]


def wait_for_checkpoint(workdir: Path, jobs) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*")):
        assert time.monotonic() < deadline and all(job.poll() is None for job in jobs)
        time.sleep(0.05)


SIGNALLED = """
import os, signal, socket, time
from fgvpl_jax import interruption
from fgvpl_jax.training import join_processes

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
with interruption.handling_signals(), interruption.deferred():
    join_processes(address, 1, 0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print(interruption.requested(), flush=True)
    os._exit(0)
"""


def test_sigterm_reaches_a_process_that_joined_a_job():
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED],
        env=environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(int(signal.SIGTERM)), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("signalled", "resident_gb"), [(0, 2.0), (1, 0.0)])
def test_a_signal_to_one_process_ends_all_after_the_same_step(
    arguments, signalled, resident_gb, tmp_path
):
    arguments += ["--config.epochs=60", f"--config.data.resident_gb={resident_gb}"]
    finish(start(arguments, tmp_path / "whole", devices=2, processes=2))
    jobs = start(arguments, tmp_path / "cut", devices=2, processes=2)
    wait_for_checkpoint(tmp_path / "cut", jobs)
    jobs[signalled].send_signal(signal.SIGTERM)
    ends = [(job.communicate(timeout=LONGEST_SECONDS), job.returncode) for job in jobs]
    assert [code for _, code in ends] == [143, 143], ends
    assert not (tmp_path / "cut" / "results.json").exists()
    outputs = finish(start(arguments, tmp_path / "cut", devices=2, processes=2))
    assert "resuming after epoch" in outputs[0]
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    cut, whole = (stored_results(tmp_path / name) for name in ("cut", "whole"))
    assert cut["test_nll"] == whole["test_nll"]


@pytest.mark.slow
def test_features_of_an_uneven_number_of_images_are_the_same_on_eight_devices(arguments, tmp_path):
    """Uses a method that computes from all nine images at once."""
    arguments += ["--config.method=linear_probe", "--config.batch_size=256"]
    for name, devices in (("one", 1), ("eight", 8)):
        finish(start(arguments, tmp_path / name, devices=devices))
    one, eight = (stored_results(tmp_path / name) for name in ("one", "eight"))
    assert eight["test_nll"] == pytest.approx(one["test_nll"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "processes"), [(8, 1), (2, 2)])
def test_a_run_on_several_devices_equals_one(arguments, devices, processes, tmp_path):
    arguments.append("--config.epochs=4")
    finish(start(arguments, tmp_path / "one", devices=1))
    parts = [*arguments, "--config.microbatch=2"]
    outputs = finish(start(parts, tmp_path / "many", devices=devices, processes=processes))
    assert ["test images" in output for output in outputs] == [True] + [False] * (processes - 1)
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "many"), rtol=1e-4)
    one, many = (stored_results(tmp_path / name) for name in ("one", "many"))
    assert many["test_accuracy"] == pytest.approx(one["test_accuracy"], abs=0.1)
    assert many["test_images_read"] == one["test_images_read"] == 15
    with np.load(tmp_path / "one/support.npz") as a, np.load(tmp_path / "many/support.npz") as b:
        assert a["keys"].tolist() == b["keys"].tolist()
        np.testing.assert_array_equal(a["labels"], b["labels"])
        np.testing.assert_allclose(a["image"], b["image"], atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_the_job_resumes(arguments, killed, tmp_path):
    workdir = tmp_path / "run"
    arguments.append("--config.epochs=20")
    jobs = start(arguments, workdir, devices=2, processes=2)
    wait_for_checkpoint(workdir, jobs)
    jobs[killed].send_signal(signal.SIGKILL)
    survivor = jobs[1 - killed]
    _, err = survivor.communicate(timeout=LONGEST_SECONDS)
    jobs[killed].communicate()
    assert survivor.returncode != 0
    assert re.search("another (process of this job|task) died", err)
    assert not (workdir / "results.json").exists()
    done = len(losses(workdir))
    outputs = finish(start(arguments, workdir, devices=2, processes=2))
    assert "resuming after epoch" in outputs[0]
    assert 0 < done < 20 == len(losses(workdir))
    assert (workdir / "results.json").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_removed_once_all_processes_have_read_it(arguments, tmp_path):
    arguments.append("--config.epochs=4")
    workdir = tmp_path / "run"
    finish(start(arguments, workdir, devices=2, processes=2))
    expected, first = losses(workdir), stored_results(workdir)
    newest = max((workdir / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    (newest / "_CHECKPOINT_METADATA").write_bytes(b"{")
    (workdir / "results.json").unlink()
    jobs = start(arguments, workdir, devices=2, processes=2)
    (out, err), (_, other_err) = (job.communicate(timeout=LONGEST_SECONDS) for job in jobs)
    assert [job.returncode for job in jobs] == [0, 0], (err, other_err)
    assert "resuming after epoch 2 of 4" in out
    assert [text.count("is damaged") for text in (err, other_err)] == [1, 0]
    again = stored_results(workdir)
    assert losses(workdir) == expected
    assert again["test_nll"] == first["test_nll"]
