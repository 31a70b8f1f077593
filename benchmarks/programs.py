"""The programs of an FG-VPL run with random arguments, ready to be compiled."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from fgvpl_jax.evaluation.evaluator import compile_programs
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import (
    TrainState,
    make_train_step,
    replicate,
    split_batch,
    split_model,
)
from fgvpl_jax.training.mesh import batch_layout
from fgvpl_jax.training.microbatches import images_at_once, in_parts
from fgvpl_jax.training.train_step import StepBatch
from fgvpl_jax.training.visual_cache_builder import compile_support_features

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.01


class Program(NamedTuple):
    """A jitted function and its arguments."""

    function: Any
    arguments: tuple[Any, ...]

    def compile(self) -> Any:
        """Compiles the function for these arguments."""
        return self.function.lower(*self.arguments).compile()


def programs(
    model: FGVPL, batch: int, support: int, mesh: Mesh, microbatch: int = 0
) -> dict[str, Callable[[], Program]]:
    """Returns by name the builders of the programs that an FG-VPL run executes on the devices.

    Args:
        model: Model with real or random weights.
        batch: Number of images in a batch, a multiple of the number of devices.
        support: Number of images in the cache, a multiple of the number of devices.
        mesh: Devices to run on.
        microbatch: Microbatch of the train step, a divisor of the batch; 0 means the whole batch,
            on a CPU too. The other programs have parts there; see `images_at_once`.
    """
    graphdef, trainable, frozen = split_model(model)
    num_classes, dim = model.text_features.shape
    side = model.image_encoder.vision.config.image_size
    rng = np.random.default_rng(0)
    images = split_batch(mesh, rng.integers(0, 256, (batch, side, side, 3), np.uint8))
    labels = rng.integers(0, num_classes, batch).astype(np.int32)
    image_keys, object_keys = rng.normal(size=(2, support, dim)).astype(np.float32)
    key_labels = np.arange(support, dtype=np.int32) % num_classes
    valid = np.ones(support, bool)
    cache = VisualCache(*split_batch(mesh, (image_keys, object_keys, key_labels, valid)))
    choices = replicate(mesh, {"cache_logit_weight": np.float32(1)})
    weights = replicate(mesh, (trainable, frozen))

    def train_step() -> Program:
        optimizer = adamw(cosine(LEARNING_RATE, 10_000), WEIGHT_DECAY)
        # A copy, because the step donates its state's memory.
        copied = jax.tree.map(lambda leaf: leaf.copy(), weights[0])
        state = replicate(mesh, TrainState(copied, optimizer.init(copied)))
        rows = split_batch(mesh, (labels, np.ones(batch, np.float32)))
        num_passes = batch_layout(mesh, batch, microbatch).num_passes
        step = make_train_step(graphdef, optimizer, mesh, num_passes)
        return Program(step, (state, weights[1], cache, choices, StepBatch(images, *rows)))

    def evaluation() -> Program:
        return Program(compile_programs(graphdef).outputs, (weights, cache, choices, images))

    def cache_refresh() -> Program:
        return Program(compile_support_features(graphdef), (*weights, images))

    def plain_clip() -> Program:
        graph, state = nnx.split(model.image_encoder)
        size = images_at_once(model.image_encoder.vision)
        forward = jax.jit(lambda state, images: in_parts(nnx.merge(graph, state), images, size))
        return Program(forward, (replicate(mesh, state), images))

    return {
        "train_step": train_step,
        "evaluation": evaluation,
        "cache_refresh": cache_refresh,
        "plain_clip": plain_clip,
    }


def steps(function: Callable[..., Any], program: Program) -> Callable[[], Any]:
    """Returns a call that runs one train step from the state that the last call left.

    Args:
        function: The program's function, or the compiled one.
        program: Program of a train step.
    """
    state, *others = program.arguments
    states = [state]

    def step() -> tuple[Any, Any]:
        states[0], metrics = function(states[0], *others)
        return metrics, states[0].trainable

    return step
