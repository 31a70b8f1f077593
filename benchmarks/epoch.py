"""Compares an epoch with resident photos with one whose batches the host decodes and crops.

    python -m benchmarks.epoch CLIP [--images=160] [--side=512] [--batch=32] [--dtype=bfloat16]

Trains FG-VPL over the CLIP in the folder on random JPEG photos, which are also the cache. Both take
turns in one process. Prints the seconds per epoch and their ratio, then one JSON line.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import FG_VPL_SETTINGS, ratio, report, smooth_photo, take_turns
from fgvpl_jax.clip import load_clip
from fgvpl_jax.data import Split
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.runs.settings import COMPUTE_DTYPES
from fgvpl_jax.training import (
    PixelInputs,
    TrainState,
    VisualCacheBuilder,
    batch_layout,
    data_mesh,
    make_train_step,
    replicate,
    split_model,
)
from fgvpl_jax.training.batch_sources import BatchSource, HostBatches, Pace, ResidentBatches
from fgvpl_jax.training.loop import run_spans
from fgvpl_jax.training.microbatches import default_microbatch
from fgvpl_jax.training.resident import decode_resident
from fgvpl_jax.training.train_step import make_resident_train_step

CLASSES, SEED, LEARNING_RATE, WEIGHT_DECAY = 10, 1, 1e-3, 0.01
ALL_BYTES = 2**40


def main(
    clip_dir: str, num_images: int, side: int, batch_size: int, dtype: str, rounds: int
) -> dict[str, Any]:
    """Runs the epochs and returns their medians and ratio."""
    clip, mesh = load_clip(clip_dir), data_mesh()
    text = np.random.default_rng(0).normal(size=(CLASSES, clip.vision.config.embed_dim))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    settings = FG_VPL_SETTINGS | {"compute_dtype": dtype}
    model = FGVPL(clip, jnp.asarray(text, jnp.float32), **settings, rngs=nnx.Rngs(0))
    graphdef, trainable, frozen = split_model(model)
    optimizer = adamw(cosine(LEARNING_RATE, 10_000), WEIGHT_DECAY)
    layout = batch_layout(mesh, batch_size, default_microbatch(model, mesh, num_images))
    choices = replicate(mesh, {"cache_logit_weight": jnp.float32(1)})
    with tempfile.TemporaryDirectory() as folder:
        support = random_photos(Path(folder), num_images, side)
        inputs = PixelInputs(clip, SEED, None)
        cache = VisualCacheBuilder(
            graphdef, support, inputs=inputs, batch_size=batch_size, max_bytes=0, mesh=mesh
        )(trainable, frozen)
        photos = decode_resident(support, ALL_BYTES, resample=inputs.resample)
        assert photos is not None
        ways: dict[str, BatchSource] = {
            "host": HostBatches(
                make_train_step(graphdef, optimizer, mesh, layout.num_passes),
                inputs,
                support,
                batch_size,
                layout,
                mesh,
            ),
            "resident": ResidentBatches(
                make_resident_train_step(
                    graphdef,
                    optimizer,
                    mesh,
                    layout.num_passes,
                    image_size=clip.image_size,
                    resample=inputs.resample,
                ),
                photos,
                support.labels,
                batch_size,
                layout,
                SEED,
                mesh,
            ),
        }
        states = {
            name: replicate(mesh, TrainState(copy, optimizer.init(copy)))
            for name in ways
            for copy in [jax.tree.map(jnp.copy, trainable)]
        }
        epochs = dict.fromkeys(ways, 0)
        paces = {name: Pace() for name in ways}

        def epoch(name: str) -> TrainState:
            source, pace = ways[name], paces[name]
            calls = source.epoch(epochs[name], 0, pace)
            spans = run_spans(source, calls, states[name], frozen, cache, choices, pace)
            for after, _ in spans:
                states[name] = after
            epochs[name] += 1
            return states[name]

        seconds = take_turns({name: partial(epoch, name) for name in ways}, rounds)
    return {
        "images": num_images,
        "side": side,
        "batch": batch_size,
        "dtype": dtype,
        "host_seconds": float(np.median(seconds["host"])),
        "resident_seconds": float(np.median(seconds["resident"])),
        "resident_over_host": ratio(seconds, "resident", "host"),
        "resident_mib": photos.canvases.nbytes / 2**20,
    }


def random_photos(folder: Path, count: int, side: int) -> Split:
    """Writes JPEG files that decode as fast as photos, and returns their split."""
    rng = np.random.default_rng(0)
    for number in range(count):
        smooth_photo(rng, side).save(folder / f"{number}.jpg")
    keys = tuple(f"{number}.jpg" for number in range(count))
    return Split(folder, keys, (np.arange(count) % CLASSES).astype(np.int32))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    report(
        main(
            options.clip,
            options.images,
            options.side,
            options.batch,
            options.dtype,
            options.rounds,
        )
    )
