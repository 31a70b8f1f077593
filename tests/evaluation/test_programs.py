"""The number of compiled programs that a process keeps is bounded."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from PIL import Image

from fgvpl_jax.evaluation.evaluator import compile_programs
from fgvpl_jax.inference.programs import compile_inference
from fgvpl_jax.methods import Method
from fgvpl_jax.training import data_mesh
from fgvpl_jax.training.train_step import make_resident_train_step, make_train_step
from fgvpl_jax.training.visual_cache_builder import compile_support_features

NUM_STRUCTURES = 10


class Scaled(Method):
    """A model whose structure, not its parameters, holds a factor."""

    def __init__(self, factor):
        self.factor = factor

    def features(self, inputs):
        return inputs * self.factor


def structure(factor):
    return nnx.split(Scaled(factor))[0]


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (compile_programs, ()),
        (compile_inference, ()),
        (compile_support_features, ()),
        (make_train_step, (optax.sgd(0.1), data_mesh())),
        (make_resident_train_step, (optax.sgd(0.1), data_mesh(), 1, 8, Image.Resampling.BICUBIC)),
    ],
)
def test_only_the_programs_of_the_newest_structures_are_kept(make, arguments):
    made = [make(structure(factor), *arguments) for factor in range(NUM_STRUCTURES)]
    assert make(structure(NUM_STRUCTURES - 1), *arguments) is made[-1]
    assert make.cache_info().currsize <= make.cache_info().maxsize < NUM_STRUCTURES


def test_programs_that_are_dropped_are_freed():
    client = jax.devices()[0].client
    state, inputs = (nnx.State({}), nnx.State({})), jnp.ones(3)
    compile_programs.cache_clear()
    before = len(client.live_executables())
    for factor in range(NUM_STRUCTURES):
        compile_programs(structure(factor)).features(state, inputs)
    assert len(client.live_executables()) - before <= compile_programs.cache_info().maxsize
