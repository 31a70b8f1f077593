"""Compares training from kept tokens, with a prompt in a high layer, with training from pixels.

    python -m benchmarks.cached_tokens [--shape=B/16] [--prompt_layer=12] [--images=8]

Times four programs of one random model in turns, per image: a train step of the paper's prompt from
pixels, a train step from tokens, the computation of tokens, and the features of the visual cache
from tokens. Prints them, the ratio of the steps, and the time that a whole training takes by them:
tokens of one plain and of some augmented passes, then the epochs. CPU seconds, of all cores
together, depend less on other work of the machine than seconds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import nnx

from benchmarks.measuring import SHAPES, random_model, ratio, report, take_turns
from benchmarks.programs import Program, programs, steps
from fgvpl_jax.defaults import ATTENTION_MAP
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.training import data_mesh
from fgvpl_jax.training.microbatches import default_microbatch, images_at_once
from fgvpl_jax.training.token_inputs import below_prompt

CLASSES, SHOTS = 10, 16


def main(
    shape: str,
    prompt_layer: int,
    attention_map: str,
    images: int,
    tiles: int,
    microbatch: int,
    epochs: int,
    passes: int,
    rounds: int,
) -> dict[str, Any]:
    """Times the programs and returns the medians per image, their ratio, and whole trainings."""
    layer = prompt_layer or SHAPES[shape].num_layers
    mesh, settings = data_mesh(), {"attention_map": attention_map}
    paper, _ = random_model(shape, CLASSES, **settings)
    model, _ = random_model(shape, CLASSES, prompt_layer=layer, **settings)
    of_paper = programs(
        paper, images, CLASSES * SHOTS, mesh, default_microbatch(paper, mesh, CLASSES * SHOTS)
    )
    pixels = of_paper["train_step"]()
    encode = tokens_of(model, pixels.arguments[4].inputs)
    tokens = jax.tree.map(lambda x: np.tile(x, (tiles, *[1] * (x.ndim - 1))), encode())
    batch = images * tiles
    microbatch = microbatch or default_microbatch(model, mesh, CLASSES * SHOTS)
    ours = programs(model, batch, CLASSES * SHOTS, mesh, microbatch)
    step, refresh = ours["train_step"](), ours["cache_refresh"]()
    given = step.arguments[4]._replace(inputs=tokens)
    step = Program(step.function, (*step.arguments[:4], given))
    contestants: dict[str, tuple[int, Callable[[], Any]]] = {
        "pixels_step": (images, steps(pixels.function, pixels)),
        "tokens_step": (batch, steps(step.function, step)),
        "tokens": (images, encode),
        "cache_from_tokens": (batch, partial(refresh.function, *refresh.arguments[:2], tokens)),
    }
    cpu: dict[str, list[float]] = {name: [] for name in contestants}

    def timed(name: str, call: Callable[[], Any]) -> None:
        started = time.process_time()
        jax.block_until_ready(call())
        cpu[name].append(time.process_time() - started)

    seconds = take_turns(
        {name: partial(timed, name, call) for name, (_, call) in contestants.items()}, rounds
    )
    result: dict[str, Any] = {
        "shape": shape,
        "prompt_layer": layer,
        "attention_map": attention_map,
        "images": images,
        "batch_of_tokens": batch,
        "microbatch_of_tokens": microbatch,
        "kib_per_image": sum(x.nbytes for x in jax.tree.leaves(tokens)) / batch / 1024,
    }
    for unit, measured in (("seconds", seconds), ("cpu_seconds", cpu)):
        # The first call of each, which compiles, is no round.
        each = {
            name: statistics.median(measured[name][-rounds:]) / count
            for name, (count, _) in contestants.items()
        }
        result |= {f"{name}_{unit}_per_image": value for name, value in each.items()}
        photos = CLASSES * SHOTS
        once = photos * (1 + passes) * each["tokens"]
        result |= {
            f"tokens_of_{passes}_passes_{unit}": once,
            f"{epochs}_epochs_from_tokens_{unit}": photos * epochs * each["tokens_step"],
            f"{epochs}_epochs_from_pixels_{unit}": photos * epochs * each["pixels_step"],
        }
    result["tokens_step_over_pixels_step"] = ratio(seconds, "tokens_step", "pixels_step") / tiles
    return result


def tokens_of(model: FGVPL, images: jax.Array) -> Callable[[], Any]:
    """Returns a call that computes the tokens of images."""
    graphdef, state = nnx.split(model)
    size = images_at_once(model.image_encoder.vision)
    return lambda: below_prompt(graphdef, size, state, images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="B/16")
    parser.add_argument("--prompt_layer", type=int, default=0, help="0 for the last layer")
    parser.add_argument("--attention_map", default=ATTENTION_MAP)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--tiles", type=int, default=4, help="batch of tokens / images")
    parser.add_argument("--microbatch", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    report(main(**vars(parser.parse_args())))
