"""Times the compilation of train step, evaluation and cache, compared with plain CLIP.

    python -m benchmarks.compile_time [shape ...] [--batch=8] [--rematerialise]

JAX traces and lowers each program, then XLA compiles it; nothing is run. This is repeated with
JAX's persistent cache of compiled programs, as a second start finds it. Weights are random, with
100 classes and 16 shots. The layers are unrolled, so plain CLIP of the same shape is the reference.
Also reports the temporary memory that XLA reserves. Prints text, then one JSON line.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from benchmarks.measuring import SHAPES, random_model, report
from benchmarks.programs import Program, programs
from fgvpl_jax.training import data_mesh

CLASSES, SHOTS = 100, 16
NAMES = ("train_step", "evaluation", "cache_refresh", "plain_clip")


def main(shapes: list[str], batch: int, rematerialise: bool, rounds: int) -> dict[str, Any]:
    """Compiles all programs and returns medians and their ratios to plain CLIP's."""
    result: dict[str, Any] = {"batch": batch, "rematerialise": rematerialise}
    for shape in shapes:
        model, _ = random_model(shape, CLASSES, rematerialise=rematerialise)
        every = programs(model, batch, CLASSES * SHOTS, data_mesh())
        ready = {name: every[name]() for name in NAMES}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(rounds):
            for name, program in ready.items():
                found[name].append(figures_of(program))
        for name in NAMES:
            for figure in found[name][0]:
                median = statistics.median(one[figure] for one in found[name])
                result[f"{shape}_{name}_{figure}"] = median
            if name != "plain_clip":
                pairs = zip(found[name], found["plain_clip"], strict=True)
                ratio = statistics.median(sum_of(one) / sum_of(other) for one, other in pairs)
                result[f"{shape}_{name}_over_plain_clip"] = ratio
    return result


def figures_of(program: Program) -> dict[str, float]:
    """Returns the seconds of each stage, those with a filled persistent cache, and the MiB."""
    with tempfile.TemporaryDirectory() as folder, persistent_cache(folder):
        lowered, compiled, memory = lower_and_compile(program)
        again = sum(lower_and_compile(program)[:2])
    return {"lowered": lowered, "compiled": compiled, "again": again, "temporary_mib": memory}


@contextmanager
def persistent_cache(folder: str) -> Iterator[None]:
    """Makes JAX keep every compiled program in a folder."""
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def use(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # otherwise it keeps the folder that it found first

    use(settings)
    try:
        yield
    finally:
        use(before)


def lower_and_compile(program: Program) -> tuple[float, float, float]:
    """Returns the seconds to lower and to compile, and the MiB of temporaries.

    Only the cache on the disk is left of earlier calls.
    """
    jax.clear_caches()
    started = time.perf_counter()
    lowered = program.function.lower(*program.arguments)
    between = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return between - started, ended - between, temporaries / 2**20


def sum_of(stages: dict[str, float]) -> float:
    """Returns the seconds of a first start."""
    return stages["lowered"] + stages["compiled"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", metavar="shape", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rematerialise", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    shapes = options.shapes or ["B/32", "B/16", "L/14"]
    report(main(shapes, options.batch, options.rematerialise, options.rounds))
