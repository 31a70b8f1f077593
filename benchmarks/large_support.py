"""Measures the cost of a growing visual cache: 20,000 to 160,000 keys, forward and backward.

    python -m benchmarks.large_support [--batch=16]

Runs only the second path (Eqs. 13-18) with e = 512 and k = 1,000: the votes, and their gradient
with respect to the adapter and the queries. Prints the median seconds and XLA's temporary memory,
then one JSON line.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import ratio, report, take_turns
from fgvpl_jax.recognition import FeatureAdapter, VisualCache
from fgvpl_jax.recognition.visual_cache import class_votes

SIZES = (20_000, 40_000, 80_000, 160_000)
DIM, CLASSES = 512, 1000


def main(batch: int, rounds: int) -> dict[str, Any]:
    """Runs all sizes in turns and returns their seconds and memory."""
    adapter = FeatureAdapter(DIM, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(adapter)
    rng = np.random.default_rng(0)
    queries = jnp.asarray(rng.normal(size=(batch, DIM)), jnp.float32)
    wanted = jnp.asarray(rng.integers(0, CLASSES, batch))

    @jax.jit
    @jax.value_and_grad
    def loss(varied: tuple[nnx.State, jax.Array], keys: jax.Array, cache: VisualCache) -> jax.Array:
        state, queries = varied
        adapter = nnx.merge(graphdef, state)
        votes = class_votes(queries, keys, cache, CLASSES, adapter=adapter)
        return -jax.nn.log_softmax(votes)[jnp.arange(batch), wanted].mean()

    contestants: dict[str, Callable[[], Any]] = {}
    result: dict[str, Any] = {"batch": batch}
    for size in SIZES:
        keys = jnp.asarray(rng.normal(size=(size, DIM)), jnp.float32)
        labels = jnp.arange(size, dtype=jnp.int32) % CLASSES
        cache = VisualCache(keys, None, labels, jnp.ones(size, bool))
        compiled = loss.lower((state, queries), keys, cache).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        result[f"temporary_mib_{size}"] = memory.temp_size_in_bytes / 2**20
        contestants[str(size)] = partial(compiled, (state, queries), keys, cache)
    seconds = take_turns(contestants, rounds)
    for size in SIZES:
        result[f"seconds_{size}"] = float(np.median(seconds[str(size)]))
    result["160000_over_20000"] = ratio(seconds, "160000", "20000")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    report(main(arguments.batch, arguments.rounds))
