"""Times FG-VPL on a backbone of each family against plain forward passes, and reports its memory.

    python -m benchmarks.families [--batch=4] [--rounds=3] [FAMILY ...]

Weights are random, with the sizes of real image towers. Per family, the plain forward pass, the
features that FG-VPL's cache takes, its evaluation (which computes zero-shot logits too) and its
training step take turns; ratios are medians over the rounds. Memory is XLA's own account of each
compiled float32 program: arguments, results and temporaries. Prints each family when it is
measured, then all as text and as one JSON line.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from flax import nnx

from benchmarks.measuring import SHAPES, clip_on, model_on, ratio, report, take_turns
from benchmarks.programs import programs, steps
from fgvpl_jax.clip import ImageTower, VisionTower
from fgvpl_jax.clip.families.open_clip_resnet import ResNetConfig, ResNetTower
from fgvpl_jax.clip.families.pe_core import PEVisionTower
from fgvpl_jax.clip.families.siglip import SiglipVisionTower
from fgvpl_jax.training import data_mesh

CLASSES, SHOTS = 10, 16
MIB = 2**20
# Our name of a program -> its name in the results.
PROGRAMS = {
    "plain_clip": "plain_pass",
    "cache_refresh": "features",
    "evaluation": "evaluation",
    "train_step": "train_step",
}
RN50 = ResNetConfig(blocks=(3, 4, 6, 3), width=64, num_heads=32, image_size=224, embed_dim=1024)
SIGLIP_B16 = replace(
    SHAPES["B/16"], activation="gelu_pytorch_tanh", layer_norm_eps=1e-6, embed_dim=768
)
PE_CORE_B16 = replace(SHAPES["B/16"], activation="gelu", embed_dim=1024)
TOWERS: dict[str, Callable[[], ImageTower]] = {
    "ViT-B/32": lambda: VisionTower(SHAPES["B/32"], rngs=nnx.Rngs(0)),
    "ViT-B/16": lambda: VisionTower(SHAPES["B/16"], rngs=nnx.Rngs(0)),
    "RN50": lambda: ResNetTower(RN50, rngs=nnx.Rngs(0)),
    "SigLIP-B/16": lambda: SiglipVisionTower(SIGLIP_B16, rngs=nnx.Rngs(0)),
    "PE-Core-B/16": lambda: PEVisionTower(PE_CORE_B16, rngs=nnx.Rngs(0)),
}


def main(families: list[str], batch: int, rounds: int) -> dict[str, Any]:
    """Measures the families one after the other."""
    result: dict[str, Any] = {"batch": batch, "rounds": rounds}
    for name in families:
        figures = measure(name, batch, rounds)
        print(name, {key: round(value, 3) for key, value in figures.items()}, flush=True)
        result |= {f"{name} {key}": value for key, value in figures.items()}
    return result


def measure(family: str, batch: int, rounds: int) -> dict[str, float]:
    """Returns seconds per image, ratios to the plain pass, and MiB of each program."""
    model = model_on(clip_on(TOWERS[family]()), CLASSES)
    every = programs(model, batch, CLASSES * SHOTS, data_mesh())
    calls: dict[str, Callable[[], Any]] = {}
    result: dict[str, float] = {}
    for ours, name in PROGRAMS.items():
        program = every[ours]()
        compiled = program.compile()
        memory = compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        result[f"{name}_arguments_mib"] = memory.argument_size_in_bytes / MIB
        result[f"{name}_results_mib"] = results / MIB
        result[f"{name}_temporaries_mib"] = memory.temp_size_in_bytes / MIB
        is_step = ours == "train_step"
        calls[name] = steps(compiled, program) if is_step else partial(compiled, *program.arguments)
    seconds = take_turns(calls, rounds)
    for name, values in seconds.items():
        result[f"{name}_seconds_per_image"] = statistics.median(values) / batch
        result[f"{name}_over_plain_pass"] = ratio(seconds, name, "plain_pass")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", help=f"of {', '.join(TOWERS)}; all by default")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    unknown = sorted(set(options.families) - set(TOWERS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: choose from {', '.join(TOWERS)}")
    report(main(options.families or list(TOWERS), options.batch, options.rounds))
