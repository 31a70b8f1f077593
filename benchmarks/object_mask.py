"""Compares the compiled object mask with scikit-image's functions in a loop on the host.

    python -m benchmarks.object_mask [--batch=256]

Uses smooth maps at the grids of B/32, B/16 and L/14@336, and compares the masks of both as well.
"""

import argparse
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import gaussian_filter

from benchmarks.measuring import ratio, report, take_turns
from benchmarks.torch_reference import largest_area
from fgvpl_jax import object_mask

GRIDS = (7, 14, 24)


def main(batch: int, rounds: int) -> dict[str, Any]:
    """Times both on each grid and returns medians, ratios and the number of different masks."""
    result: dict[str, Any] = {"batch": batch}
    for side in GRIDS:
        maps = smooth_maps(batch, side)
        rows = jnp.asarray(maps.reshape(batch, -1))
        ours = partial(jax.jit(object_mask, static_argnums=1), rows, (side, side))
        seconds = take_turns({"ours": ours, "scikit_image": partial(host_loop, maps)}, rounds)
        same = np.asarray(ours()).reshape(maps.shape) == host_loop(maps)
        for name, values in seconds.items():
            result[f"grid_{side}_{name}_ms"] = 1e3 * statistics.median(values)
        result[f"grid_{side}_over_scikit_image"] = ratio(seconds, "ours", "scikit_image")
        result[f"grid_{side}_masks_that_differ"] = int((~same.all(axis=(1, 2))).sum())
    return result


def smooth_maps(batch: int, side: int) -> np.ndarray:
    """Returns heavy-tailed maps with blobs, like those of attention."""
    rng = np.random.default_rng(0)
    blobs = [gaussian_filter(rng.standard_normal((side, side)), 1.0) for _ in range(batch)]
    return np.exp(3 * np.stack(blobs)).astype(np.float32)


def host_loop(maps: np.ndarray) -> np.ndarray:
    """Computes the masks one map after the other."""
    return np.stack([largest_area(one, connectivity=2) for one in maps])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    report(main(options.batch, options.rounds))
