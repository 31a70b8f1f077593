"""Compares maps of the object, by their cost, with full products and the forward pass.

    python -m benchmarks.roll_out [--shape=B/16] [--batch=8] [--dtype=bfloat16]

The attention roll-out by its class row is compared with full products of the layers' attention;
every map of `config.attention_map`, together with its object mask, with the forward pass of the
plain tower.
"""

import argparse
import statistics
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.measuring import SHAPES, random_model, ratio, report, take_turns
from fgvpl_jax import attention_map, object_mask
from fgvpl_jax.clip import class_token_tower
from fgvpl_jax.runs.settings import COMPUTE_DTYPES
from fgvpl_jax.visual_prompt import ATTENTION_MAPS
from fgvpl_jax.visual_prompt.attention_map import ROLL_OUTS, RollOut
from fgvpl_jax.visual_prompt.border_contrast import middle_contrast
from fgvpl_jax.visual_prompt.encoder import BORDER_CONTRAST


def main(shape: str, batch: int, dtype: str, rounds: int) -> dict[str, Any]:
    """Times all variants and returns medians and ratios."""
    _, clip = random_model(shape, num_classes=10)
    vision = class_token_tower(clip.vision, "this benchmark")
    config = vision.config
    gh, gw = config.grid
    tokens = gh * gw + 2
    rng = np.random.default_rng(0)
    size = (batch, config.num_heads, tokens, tokens)
    attentions = [
        jax.nn.softmax(jnp.asarray(rng.normal(size=size), jnp.float32)).astype(dtype)
        for _ in range(config.num_layers - 1)
    ]
    images = jnp.asarray(rng.normal(size=(batch, clip.image_size, clip.image_size, 3)), jnp.float32)
    graphdef, state = nnx.split(vision)

    def below(product: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.matmul(weights, product, precision="highest")

    @jax.jit
    def full_products(attentions: list[jax.Array]) -> jax.Array:
        rolled = reduce(below, [weights.astype(jnp.float32) for weights in attentions])
        return rolled[:, :, 0, 1 : 1 + gh * gw].sum(axis=1)

    by_row = jax.jit(attention_map)

    def map_and_mask(roll_out: RollOut, attentions: list[jax.Array]) -> jax.Array:
        top = attentions[-roll_out.num_layers :] if roll_out.num_layers else attentions
        return object_mask(attention_map(top, residual=roll_out.residual), (gh, gw))

    roll_outs = {name: jax.jit(partial(map_and_mask, one)) for name, one in ROLL_OUTS.items()}
    contrast = jax.jit(
        lambda state, tokens: object_mask(
            middle_contrast(nnx.merge(graphdef, state), tokens), (gh, gw)
        )
    )
    entering = jnp.asarray(rng.normal(size=(batch, tokens, config.width)), dtype)
    forward = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images, dtype))
    np.testing.assert_allclose(by_row(attentions), full_products(attentions), rtol=1e-4)
    seconds = take_turns(
        {
            "by_row": lambda: by_row(attentions),
            "full_products": lambda: full_products(attentions),
            **{name: partial(one, attentions) for name, one in roll_outs.items()},
            BORDER_CONTRAST: lambda: contrast(state, entering),
            "forward": lambda: forward(state, images),
        },
        rounds,
    )
    result: dict[str, Any] = {"shape": shape, "batch": batch, "dtype": dtype}
    result |= {f"{name}_ms": 1e3 * statistics.median(values) for name, values in seconds.items()}
    result["by_row_over_full_products"] = ratio(seconds, "by_row", "full_products")
    for name in ATTENTION_MAPS:
        result[f"{name}_and_mask_over_forward"] = ratio(seconds, name, "forward")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="B/16")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", choices=COMPUTE_DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    report(main(options.shape, options.batch, options.dtype, options.rounds))
