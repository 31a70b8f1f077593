"""Compares the cost formulas with the costs that XLA reports for the compiled programs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks import costs
from benchmarks.measuring import model_of
from benchmarks.programs import programs
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import data_mesh, split_model
from fgvpl_jax.training.train_step import StepBatch, weighted_loss

BATCH, CLASSES, SUPPORT, DIM = 4, 100, 400, 128
TOWER = VisionConfig(
    width=256, num_layers=3, num_heads=4, mlp_width=1024, image_size=112, embed_dim=DIM
)


@pytest.fixture(scope="module")
def compiled():
    model, _ = model_of(TOWER, CLASSES)
    every = programs(model, BATCH, SUPPORT, data_mesh())
    return lambda name: every[name]().compile()


@pytest.mark.parametrize(
    ("program", "formula"),
    [
        ("train_step", costs.train_step_flops(TOWER, BATCH, CLASSES, SUPPORT)),
        ("evaluation", costs.evaluation_step_flops(TOWER, BATCH, CLASSES, SUPPORT)),
        ("cache_refresh", BATCH * costs.cache_refresh_flops(TOWER)),
    ],
)
def test_formulas_match_the_flops_that_xla_counts(compiled, program, formula):
    """XLA counts slightly more, because it includes elementwise operations."""
    counted = compiled(program).cost_analysis()["flops"]
    assert formula < counted < 1.04 * formula


@pytest.mark.parametrize(("num_layers", "support"), [(6, 40), (12, 40), (6, 4000)])
def test_formula_matches_the_bytes_kept_for_the_backward_pass(num_layers, support):
    config = replace(TOWER, num_layers=num_layers)
    graphdef, trainable, frozen = split_model(nnx.eval_shape(lambda: model_of(config, CLASSES)[0]))
    shape = jax.ShapeDtypeStruct
    keys = shape((support, DIM), jnp.float32)
    cache = VisualCache(keys, keys, shape((support,), jnp.int32), shape((support,), bool))
    side = config.image_size
    batch = StepBatch(
        shape((BATCH, side, side, 3), jnp.uint8),
        shape((BATCH,), jnp.int32),
        shape((BATCH,), jnp.float32),
    )

    def backward(trainable, frozen, cache, batch):
        def loss(trainable):
            model = nnx.merge(graphdef, trainable, frozen)
            logits = model(batch.inputs, cache, cache_logit_weight=1.0)
            return weighted_loss(logits, batch)[0]

        return jax.vjp(loss, trainable)[1]

    leaves = jax.tree.leaves(jax.eval_shape(backward, trainable, frozen, cache, batch))
    # The backward pass also keeps weights, but these are arguments of the step in any case.
    kept = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in leaves
        if leaf.shape[:1] == (BATCH,) or support in leaf.shape
    )
    assert costs.kept_bytes(config, BATCH, CLASSES, support) == pytest.approx(kept, rel=0.1)


def test_formula_matches_the_number_of_trainable_parameters():
    _, trainable, _ = split_model(nnx.eval_shape(lambda: model_of(TOWER, CLASSES)[0]))
    counted = sum(leaf.size for leaf in jax.tree.leaves(trainable))
    assert costs.trainable_parameters(TOWER) == counted
