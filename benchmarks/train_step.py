"""Times a training step and an evaluation batch against FG-VPL in plain PyTorch.

    python -m benchmarks.train_step [--shape=B/16] [--batch=8] [--microbatch=4] \
      [--dtype=bfloat16] [--torch=compiled|eager|none]

Both use the same weights, images and visual cache. They take turns, and the ratio is the median
over the rounds. Achieved FLOP/s count the matrix products that the method needs; they are compared
with bare matrix products of the model's shapes, timed in the same rounds. On a GPU the reference
runs there too, and XLA must leave it memory: XLA_PYTHON_CLIENT_PREALLOCATE=false.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measuring import (
    SHAPES,
    embedding_flops,
    layer_flops,
    random_model,
    ratio,
    report,
    take_turns,
)
from benchmarks.programs import LEARNING_RATE, WEIGHT_DECAY, programs, steps
from fgvpl_jax.clip import class_token_tower
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.layers import matmul
from fgvpl_jax.defaults import NUM_PROMPTS
from fgvpl_jax.runs.settings import COMPUTE_DTYPES
from fgvpl_jax.training import data_mesh
from fgvpl_jax.training.microbatches import default_microbatch

CLASSES, SHOTS = 100, 16
PRODUCTS = 10  # per call, so that a GPU does not wait for the host


def main(
    shape: str, batch: int, microbatch: int, dtype: str, rounds: int, reference: str
) -> dict[str, Any]:
    """Times our programs and the references, and returns medians and ratios."""
    model, clip = random_model(shape, CLASSES, compute_dtype=dtype)
    mesh = data_mesh()
    if not microbatch:
        microbatch = math.gcd(batch, default_microbatch(model, mesh, CLASSES * SHOTS))
    every = programs(model, batch, CLASSES * SHOTS, mesh, microbatch)
    step, evaluation = every["train_step"](), every["evaluation"]()
    contestants: dict[str, Callable[[], Any]] = {
        "train_step": steps(step.function, step),
        "evaluation": partial(evaluation.function, *evaluation.arguments),
    }
    config = class_token_tower(clip.vision, "this benchmark").config
    sizes = matmul_shape(config, batch)
    contestants["xla_matmul"] = xla_matmul(*sizes, dtype)
    if reference != "none":
        from benchmarks import torch_reference

        _, _, cache, _, given = step.arguments
        contestants |= torch_reference.contestants(
            clip,
            model,
            np.asarray(given.inputs),
            np.asarray(given.labels),
            [np.asarray(array) for array in (cache.image, cache.object, cache.labels)],
            LEARNING_RATE,
            WEIGHT_DECAY,
            dtype,
            compiled=reference == "compiled",
        )
        contestants["torch_matmul"] = torch_reference.matmul(*sizes, PRODUCTS, dtype)
    seconds = take_turns(contestants, rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    matmul_flops = PRODUCTS * 4 * math.prod(sizes)
    peak = matmul_flops / medians["xla_matmul"]
    result: dict[str, Any] = {
        "shape": shape,
        "batch": batch,
        "microbatch": microbatch,
        "dtype": dtype,
        "rounds": rounds,
        "reference": reference,
    }
    for name, flops in (
        ("train_step", train_flops(config)),
        ("evaluation", evaluation_flops(config)),
    ):
        achieved = batch * flops / medians[name]
        result |= {
            f"{name}_seconds": medians[name],
            f"{name}_images_per_second": batch / medians[name],
            f"{name}_gflop_per_image": flops / 1e9,
            f"{name}_gflop_per_second": achieved / 1e9,
            f"{name}_over_xla_matmul_peak": achieved / peak,
        }
        if reference != "none":
            result[f"{name}_over_torch"] = ratio(seconds, name, f"torch_{name}")
    result["xla_matmul_gflop_per_second"] = peak / 1e9
    if reference != "none":
        result["torch_matmul_gflop_per_second"] = matmul_flops / medians["torch_matmul"] / 1e9
    return result


def matmul_shape(config: VisionConfig, batch: int) -> tuple[int, int, int]:
    """Returns (rows, width, hidden width) of the largest matrix products, those of the MLP."""
    gh, gw = config.grid
    return batch * (gh * gw + 2), config.width, config.mlp_width


def xla_matmul(rows: int, width: int, hidden: int, dtype: str) -> Callable[[], Any]:
    """Returns a call that computes the two bare products of the MLP `PRODUCTS` times."""
    rng = np.random.default_rng(0)
    x, up, down = (
        jnp.asarray(rng.normal(size=size), dtype)
        for size in ((rows, width), (width, hidden), (hidden, width))
    )
    product = jax.jit(lambda x, up, down: matmul(matmul(x, up), down))
    return lambda: [product(x, up, down) for _ in range(PRODUCTS)]


def train_flops(config: VisionConfig, num_prompts: int = NUM_PROMPTS) -> int:
    """Counts the FLOPs of the products that a training step needs for one image.

    Heads and mask are not counted. The forward pass goes through all layers, in the last ones for
    the class query only. The backward pass goes down to the prompt: gradients of activations cost
    as much as the forward products, and twice as much in attention. Only the fine-grained layer has
    weight gradients.
    """
    gh, gw = config.grid
    tokens = gh * gw + 1 + num_prompts
    size = (config.width, config.mlp_width)
    full = layer_flops(tokens, tokens, *size)
    full_backward = full + 4 * tokens * tokens * config.width
    last = layer_flops(tokens, 1, *size)
    last_backward = last + 4 * tokens * config.width
    shared = (config.num_layers - 1) * (full + full_backward)
    return embedding_flops(config) + shared + 2 * (last + last_backward) + last


def evaluation_flops(config: VisionConfig, num_prompts: int = NUM_PROMPTS) -> int:
    """Counts the same for one evaluated image: both branches, and plain CLIP for zero-shot."""
    gh, gw = config.grid
    size = (config.width, config.mlp_width)
    total = 0
    for tokens, classes in ((gh * gw + 1 + num_prompts, 2), (gh * gw + 1, 1)):
        total += (config.num_layers - 1) * layer_flops(tokens, tokens, *size)
        total += embedding_flops(config) + classes * layer_flops(tokens, 1, *size)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="B/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--microbatch", type=int, default=0, help="like the config field; 0: the default"
    )
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch", choices=("eager", "compiled", "none"), default="eager")
    options = parser.parse_args()
    if options.microbatch and options.batch % options.microbatch:
        parser.error(f"--batch={options.batch} is no multiple of --microbatch={options.microbatch}")
    report(
        main(
            options.shape,
            options.batch,
            options.microbatch,
            options.dtype,
            options.rounds,
            options.torch,
        )
    )
