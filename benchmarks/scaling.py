"""Measures how the cost of a train step grows with batch, tokens, classes, shots and devices.

    python -m benchmarks.scaling [--rounds=5]

Uses a small random model and changes one setting at a time. Each line has a cost's ratio to the
first point of its series, and the ratio by the formulas of `costs.py`. Seconds (all points take
turns) and FLOPs are compared with FLOPs, XLA's temporary memory with the bytes kept for the
backward pass. With several devices, which a CPU simulates, nothing is timed: FLOPs and memory are
those of one device, and the bytes of the results of collective operations are compared with those
of all gradients. Then prints one JSON line.
"""

import argparse
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from benchmarks import costs
from benchmarks.measuring import model_of, ratio, report, take_turns
from benchmarks.programs import Program, programs, steps
from fgvpl_jax.clip.config import VisionConfig

TOWER = VisionConfig(width=256, num_layers=3, num_heads=4, mlp_width=1024, embed_dim=512)


class Setting(NamedTuple):
    """Sizes that a train step is compiled for."""

    batch: int = 8
    side: int = 64
    classes: int = 50
    shots: int = 4
    devices: int = 1

    @property
    def support(self) -> int:
        """Number of images in the cache."""
        return self.classes * self.shots

    @property
    def config(self) -> VisionConfig:
        """Config of the tower for images of this side."""
        return replace(TOWER, image_size=self.side)


# Every series starts at the same point.
SERIES = {
    "batch": (8, 16, 32),
    "side": (64, 128, 256),
    "classes": (50, 200, 800),
    "shots": (4, 16, 64),
    "devices": (1, 2, 8),
}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
COLLECTIVE = re.compile(rf"= (.+?) (?:{'|'.join(COLLECTIVES)})(?:-start)?\(")
ARRAY = re.compile(r"\b[a-z]+(\d*)\[([\d,]*)\]")  # pred[] has no number and is a byte


def main(rounds: int) -> dict[str, Any]:
    """Compiles all points, times those on one device, and returns every series."""
    base = Setting()
    points = {
        name: [base._replace(**{name: value}) for value in values]
        for name, values in SERIES.items()
    }
    points["devices"] = [
        point for point in points["devices"] if point.devices <= jax.device_count()
    ]
    compiled: dict[Setting, Any] = {}
    contestants: dict[str, Callable[[], Any]] = {}
    for point in dict.fromkeys(point for series in points.values() for point in series):
        program = train_step(point)
        compiled[point] = program.compile()
        if point.devices == 1:
            contestants[str(point)] = steps(compiled[point], program)
    seconds = take_turns(contestants, rounds)

    base_flops, base_memory = flops_of(compiled[base]), memory_of(compiled[base])
    result: dict[str, Any] = {
        "seconds": statistics.median(seconds[str(base)]),
        "gflop": base_flops / 1e9,
        "gflop_by_formula": flops_by_formula(base) / 1e9,
        "temporary_mib": base_memory / 2**20,
        "kept_mib_by_formula": kept_by_formula(base) / 2**20,
    }
    for name, series in points.items():
        result[name] = list(SERIES[name][: len(series)])
        columns = {
            "flops": [flops_of(compiled[point]) / base_flops for point in series],
            "flops_by_formula": [flops_by_formula(p) / flops_by_formula(base) for p in series],
            "memory": [memory_of(compiled[point]) / base_memory for point in series],
            "memory_by_formula": [kept_by_formula(p) / kept_by_formula(base) for p in series],
        }
        if name == "devices":
            columns["mib_sent"] = [sent_by(compiled[p].as_text()) / 2**20 for p in series]
            gradients = 4 * costs.trainable_parameters(base.config) / 2**20
            columns["mib_of_gradients"] = [gradients] * len(series)
        else:
            columns["seconds"] = [ratio(seconds, str(point), str(base)) for point in series]
        result |= {f"{name}_{kind}": [round(x, 3) for x in c] for kind, c in columns.items()}
    return result


def train_step(point: Setting) -> Program:
    """Returns the train step at a point, with its arguments on the point's devices."""
    model, _ = model_of(point.config, point.classes)
    devices = np.array(jax.devices()[: point.devices])
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    return programs(model, point.batch, point.support, mesh)["train_step"]()


def flops_of(compiled: Any) -> float:
    """Returns the FLOPs of one device, elementwise operations included."""
    return compiled.cost_analysis()["flops"]


def memory_of(compiled: Any) -> int:
    """Returns the bytes of one device's temporaries."""
    return compiled.memory_analysis().temp_size_in_bytes


def flops_by_formula(point: Setting) -> float:
    """Returns the FLOPs of one device by the formulas; every device computes the class weights."""
    sizes = (point.config, point.batch, point.classes, point.support)
    class_weights = 4 * point.classes * point.config.embed_dim**2
    return (costs.train_step_flops(*sizes) - class_weights) / point.devices + class_weights


def kept_by_formula(point: Setting) -> float:
    """Returns the bytes that one device keeps, by the formulas."""
    sizes = (point.config, point.batch, point.classes, point.support)
    return costs.kept_bytes(*sizes) / point.devices


def sent_by(program: str) -> int:
    """Returns the bytes of the results of all collective operations in an HLO text."""
    total = 0
    for shapes in COLLECTIVE.findall(program):
        for bits, sides in ARRAY.findall(shapes):
            total += int(bits or 8) // 8 * math.prod(int(side) for side in sides.split(",") if side)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(SERIES["devices"]))
    report(main(options.rounds))
