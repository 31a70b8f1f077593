"""Memory of one training step at ViT-B/16's size: batch 256, 224 pixels, random weights.

    python -m benchmarks.step_memory [--run] [microbatch ...]

For each microbatch (0: the whole batch at once), without and with rematerialising, what the
compiled float32 step needs by XLA's own account: arguments, results and temporaries; and what one
pass keeps for its way back, parameters included. (For CPUs XLA turns only a part of what
rematerialising does not keep into smaller temporaries.) With --run the first of them is carried
out once, without rematerialising, and the process's largest resident size stands beside it. 100
classes, a cache of 1,600 images. Prints text, then one JSON line.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from flax import nnx

from benchmarks.measuring import random_model
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import (
    TrainState,
    batch_layout,
    data_mesh,
    make_train_step,
    replicate,
    split_batch,
    split_model,
)
from fgvpl_jax.training.step import StepBatch, weighted_loss

BATCH_SIZE, CLASSES, SUPPORT, EMBED = 256, 100, 1600, 512
GIB = 2**30


def main(microbatches: list[int], carry_out: bool) -> dict[str, dict[str, float]]:
    """Compiles every step; GiB by microbatch."""
    result = {}
    for number, microbatch in enumerate(microbatches):
        for rematerialise in (False, True):
            compiled, make_arguments, kept = compile_step(microbatch, rematerialise)
            memory = compiled.memory_analysis()
            figures = {
                "arguments": memory.argument_size_in_bytes / GIB,
                "results": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB,
                "temporaries": memory.temp_size_in_bytes / GIB,
            }
            figures["together"] = sum(figures.values())
            figures["kept_for_the_way_back"] = kept / GIB
            if carry_out and number == 0 and not rematerialise:
                started = time.perf_counter()
                _, metrics = compiled(*make_arguments())
                assert np.isfinite(metrics.loss)
                figures["seconds"] = time.perf_counter() - started
                largest_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                figures["largest_resident"] = largest_kib * 1024 / GIB
            name = f"microbatch {microbatch}" + ", rematerialised" * rematerialise
            result[name] = {key: round(value, 2) for key, value in figures.items()}
            print(name, result[name], flush=True)
    return result


def compile_step(microbatch: int, rematerialise: bool) -> tuple[Any, Callable, int]:
    """The compiled step, what makes its arguments, and the bytes that a pass keeps."""
    model, _ = random_model("B/16", CLASSES, rematerialise=rematerialise)
    mesh, optimizer = data_mesh(), adamw(cosine(1e-3, 10), 0.01)
    graphdef, trainable, frozen = split_model(model)
    num_rows, num_passes = batch_layout(mesh, BATCH_SIZE, microbatch)

    def make_arguments():
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (num_rows, 224, 224, 3), np.uint8)
        labels = rng.integers(0, CLASSES, num_rows).astype(np.int32)
        features = rng.normal(size=(2, SUPPORT, EMBED)).astype(np.float32)
        of_support = (np.arange(SUPPORT, dtype=np.int32) % CLASSES, np.ones(SUPPORT, bool))
        return (
            *replicate(mesh, (TrainState(trainable, optimizer.init(trainable)), frozen)),
            split_batch(mesh, VisualCache(*features, *of_support)),
            replicate(mesh, {"cache_logit_weight": np.float32(1)}),
            split_batch(mesh, StepBatch(images, labels, np.ones(num_rows, np.float32))),
        )

    step = cast(Any, make_train_step(graphdef, optimizer, mesh, num_passes))
    arguments = make_arguments()

    def way_back(trainable, frozen, support, choices, batch):
        def loss(trainable):
            logits = nnx.merge(graphdef, trainable, frozen)(batch.inputs, support, **choices)
            return weighted_loss(logits, batch)[0]

        return jax.vjp(loss, trainable)[1]  # a tree of what it keeps

    state, *others, batch = arguments
    part = jax.tree.map(lambda rows: rows[: num_rows // num_passes], batch)
    kept = jax.tree.leaves(jax.eval_shape(way_back, state.trainable, *others, part))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    return step.lower(*arguments).compile(), make_arguments, num_bytes


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--run"]
    chosen = [int(argument) for argument in arguments] or [16, 32, 64, 0]
    print(json.dumps(main(chosen, "--run" in sys.argv)))
