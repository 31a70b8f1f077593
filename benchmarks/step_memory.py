"""Measures the memory of a training step at ViT-B/16's size: batch 256, 224 pixels.

    python -m benchmarks.step_memory [--run] [microbatch ...]  # divisors of 256

For each microbatch, without and with rematerialising, prints the memory of the compiled float32
step by XLA's own account (arguments, results and temporaries) and the bytes that one pass keeps for
its backward pass, parameters included. Microbatch 0 is the whole batch at once, and the reference
if it is given. On CPUs XLA turns only a part of what rematerialising does not keep into smaller
temporaries. With --run the first step is carried out once, without rematerialising, and the
process's largest resident size is printed too. Weights are random, with 100 classes and a cache of
1,600 images. Prints text, then one JSON line.
"""

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.measuring import random_model, report
from benchmarks.programs import Program, programs
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import data_mesh, split_model
from fgvpl_jax.training.train_step import StepBatch, weighted_loss

BATCH_SIZE, CLASSES, SUPPORT = 256, 100, 1600
GIB = 2**30


def main(microbatches: list[int], carry_out: bool) -> dict[str, dict[str, float]]:
    """Compiles every step and returns GiB by microbatch."""
    result = {}
    for number, microbatch in enumerate(microbatches):
        for rematerialise in (False, True):
            compiled, program, kept = compile_step(microbatch, rematerialise)
            memory = compiled.memory_analysis()
            figures = {
                "arguments": memory.argument_size_in_bytes / GIB,
                "results": (memory.output_size_in_bytes - memory.alias_size_in_bytes) / GIB,
                "temporaries": memory.temp_size_in_bytes / GIB,
            }
            figures["together"] = sum(figures.values())
            figures["kept_for_the_backward_pass"] = kept / GIB
            if carry_out and number == 0 and not rematerialise:
                started = time.perf_counter()
                _, metrics = compiled(*program.arguments)
                assert np.isfinite(metrics.loss)
                figures["seconds"] = time.perf_counter() - started
                largest_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                figures["largest_resident"] = largest_kib * 1024 / GIB
            name = f"microbatch {microbatch}" + ", rematerialised" * rematerialise
            result[name] = {key: round(value, 2) for key, value in figures.items()}
            print(name, result[name], flush=True)
    whole = result.get("microbatch 0")
    if whole is not None:
        for figures in result.values():
            figures["of_the_whole_batch"] = round(figures["together"] / whole["together"], 3)
    return result


def compile_step(microbatch: int, rematerialise: bool) -> tuple[Any, Program, int]:
    """Returns the compiled step, its program, and the bytes that a pass keeps."""
    model, _ = random_model("B/16", CLASSES, rematerialise=rematerialise)
    program = programs(model, BATCH_SIZE, SUPPORT, data_mesh(), microbatch)["train_step"]()
    graphdef, *_ = split_model(model)

    def backward(
        trainable: nnx.State,
        frozen: nnx.State,
        support: VisualCache,
        choices: dict[str, jax.Array],
        batch: StepBatch,
    ) -> Callable[..., Any]:
        def loss(trainable: nnx.State) -> jax.Array:
            logits = nnx.merge(graphdef, trainable, frozen)(batch.inputs, support, **choices)
            return weighted_loss(logits, batch)[0]

        return jax.vjp(loss, trainable)[1]  # a tree of the arrays that it keeps

    state, *others, batch = program.arguments
    part = jax.tree.map(lambda rows: rows[: microbatch or BATCH_SIZE], batch)
    kept = jax.tree.leaves(jax.eval_shape(backward, state.trainable, *others, part))
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in kept)
    return program.compile(), program, num_bytes


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--run"]
    chosen = [int(argument) for argument in arguments] or [16, 32, 64, 0]
    report(main(chosen, "--run" in sys.argv))
