"""Measures how far training on several devices or processes differs from a single device.

    python -m benchmarks.devices CLIP DATA [float64|float32] [steps]

Trains on EuroSAT below DATA with 4 shots (40 images a step) and seed 1, on simulated CPU devices:
one, eight, and two processes of two that connect over the loopback interface. Prints the largest
difference of the loss curves, the number of object masks that differ during training, and the
accuracy on every eighth test image, with one JSON line per layout.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import FG_VPL_SETTINGS, report
from configs import eurosat
from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import draw_few_shot, load_coop
from fgvpl_jax.data.benchmarks import BENCHMARKS
from fgvpl_jax.evaluation import Evaluator, score
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.training import (
    PixelInputs,
    TrainState,
    VisualCacheBuilder,
    batch_layout,
    data_mesh,
    is_writer,
    join_processes,
    make_train_step,
    process_share,
    replicate,
    split_batch,
    split_model,
    to_host,
)
from fgvpl_jax.training.train_step import StepBatch

SHOTS, SEED, TEST_STRIDE = 4, 1, 8
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01
# By name: number of devices per process, number of processes.
LAYOUTS = {"1 device": (1, 1), "8 devices": (8, 1), "2 processes x 2 devices": (2, 2)}


def main(clip: str, data: str, dtype: str, steps: int) -> dict[str, dict[str, float]]:
    """Trains under every layout in separate processes, and compares each with the first."""
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for name, (devices, processes) in LAYOUTS.items():
            file = Path(folder) / f"{devices}_{processes}.npz"
            run_job([clip, data, dtype, str(steps), str(file)], devices, processes)
            with np.load(file) as arrays:
                found[name] = dict(arrays)
    one = found["1 device"]
    return {name: compare(one, many) for name, many in found.items()}


def run_job(arguments: list[str], devices: int, processes: int) -> None:
    """Runs `train` in one or more processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "benchmarks.devices", "--worker", address, str(processes)]
    jobs = [
        subprocess.Popen([*command, str(number), *arguments], env=environment)
        for number in range(processes)
    ]
    for job in jobs:
        if job.wait():
            sys.exit(job.returncode)


def train(clip_name: str, data: str, dtype: str, steps: int, file: str) -> None:
    """Trains and evaluates once; process 0 saves losses, masks and predictions."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    config = eurosat.get_config()
    dataset = load_coop(
        data, config.data.split_file, config.data.image_dir, BENCHMARKS[config.benchmark]
    )
    support = draw_few_shot(dataset, SHOTS, SEED, False).support
    clip = load_clip(clip_name)
    text = class_text_features(clip, dataset.class_names, config.data.templates)
    model = FGVPL(clip, text, **FG_VPL_SETTINGS, rngs=nnx.Rngs(SEED))
    graphdef, trainable, frozen = split_model(model)
    mesh = data_mesh()

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda x: np.asarray(x, dtype), jax.device_get(tree))

    trainable, frozen = replicate(mesh, (cast(trainable), cast(frozen)))
    optimizer = adamw(cosine(LEARNING_RATE, steps), WEIGHT_DECAY)
    state = replicate(mesh, TrainState(trainable, optimizer.init(trainable)))
    layout = batch_layout(mesh, len(support), 0)
    inputs = PixelInputs(clip, SEED, None, process_share())
    build_cache = VisualCacheBuilder(
        graphdef, support, inputs=inputs, batch_size=layout.num_rows, max_bytes=0, mesh=mesh
    )
    train_step = make_train_step(graphdef, optimizer, mesh)
    choices = replicate(mesh, {"cache_logit_weight": jnp.ones((), dtype)})

    @jax.jit
    def masks_of(trainable: nnx.State, frozen: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, trainable, frozen).features(images).object_mask

    losses, masks = [], []
    for epoch in range(steps):  # all images are in one batch
        cache = build_cache(state.trainable, frozen)
        (batch,) = inputs.epoch(support, len(support), epoch, num_rows=layout.num_rows)
        weights = batch.weights.astype(dtype)
        rows = split_batch(mesh, StepBatch(batch.inputs, batch.labels, weights, batch.indices))
        masks.append(to_host(masks_of(state.trainable, frozen, rows.inputs))[: len(support)])
        state, metrics = train_step(state, frozen, cache, choices, rows)
        losses.append(float(metrics.loss / metrics.weight))
    cache = build_cache(state.trainable, frozen)
    evaluator = Evaluator(
        graphdef,
        state.trainable,
        frozen,
        cache,
        inputs=inputs,
        batch_size=64,
        mesh=mesh,
    )
    assert dataset.test is not None
    test = dataset.test.select(range(0, len(dataset.test), TEST_STRIDE))
    predictions = evaluator.predict(test, {"cache_logit_weight": 1.0}, name="test")
    assert predictions.object_masks is not None
    if is_writer():
        np.savez(
            file,
            losses=losses,
            masks=np.array(masks),
            test_masks=predictions.object_masks,
            accuracy=score(predictions.logits, predictions.labels).accuracy,
            predictions=predictions.logits.argmax(axis=1),
        )


def compare(one: dict[str, np.ndarray], many: dict[str, np.ndarray]) -> dict[str, float]:
    """Compares the figures of one training with those of the single device."""
    difference = np.abs(many["losses"] - one["losses"]) / one["losses"]
    flipped = many["masks"] != one["masks"]
    test_flipped = many["test_masks"] != one["test_masks"]
    return {
        "first_loss": float(many["losses"][0]),
        "last_loss": float(many["losses"][-1]),
        "largest_relative_loss_difference": float(difference.max()),
        "training_masks": int(flipped[..., 0].size),
        "training_masks_that_differ": int(flipped.any(axis=-1).sum()),
        "test_masks": len(test_flipped),
        "test_masks_that_differ": int(test_flipped.any(axis=-1).sum()),
        "test_accuracy": float(many["accuracy"]),
        "test_predictions_that_differ": int((many["predictions"] != one["predictions"]).sum()),
    }


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        address, processes, number, clip, data, dtype, steps, file = sys.argv[2:]
        if processes != "1":
            join_processes(address, int(processes), int(number))
        train(clip, data, dtype, int(steps), file)
    else:
        clip, data, *options = sys.argv[1:]
        dtype, steps = (*options, *("float64", "50")[len(options) :])
        jax.config.update("jax_platforms", "cpu")  # like the workers
        for name, figures in main(clip, data, dtype, int(steps)).items():
            report({"devices": name} | figures)
