"""Draws the scenes in demo/scenes, which `make demo` predicts and no split contains.

python demo/draw_scenes.py
"""

from pathlib import Path

import numpy as np

from fgvpl_jax.data.shapes import BENCHMARK_PAIRS, draw_scene

OUT = Path(__file__).parent / "scenes"
COUNT = 6


def main() -> None:
    """Writes one scene for every second class, and a second scene of the first class."""
    OUT.mkdir(exist_ok=True)
    for i in range(COUNT):
        colour, shape = BENCHMARK_PAIRS[2 * i % len(BENCHMARK_PAIRS)]
        # Uses its own random stream: scenes of the splits are seeded by triples, those for training
        # the tiny CLIP by (2023, i).
        scene = draw_scene(colour, shape, np.random.default_rng((2024, i)))
        scene.image.save(OUT / f"{i + 1}_{colour}_{shape}.png")


if __name__ == "__main__":
    main()
