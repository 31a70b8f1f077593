"""Schedules and optimizers of the methods' recipes; equal arguments return the same object.

Compiled train steps are keyed by the optimizer, so runs of one structure, such as the folds of an
estimate, share one compiled step.
"""

from functools import lru_cache

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

WARM_UP_RATE = 1e-5
MOMENTUM = 0.9
# Objects of each kind to remember; bounds what a process that trains many models, such as a sweep's
# worker, holds in memory. A run needs one schedule and one optimizer for its model and at most one
# more of each for every fold (4 by default), so it does not evict its own. After an eviction, a
# later run with equal arguments compiles its step again.
CACHE_SIZE = 32


@lru_cache(CACHE_SIZE)
def cosine(learning_rate: float, total_steps: int, final_rate: float = 0.0) -> optax.Schedule:
    """Returns a schedule, from a step counted from 0 to its rate: a cosine to `final_rate`."""
    alpha = final_rate / learning_rate if learning_rate else 0.0
    return optax.cosine_decay_schedule(learning_rate, decay_steps=total_steps, alpha=alpha)


@lru_cache(CACHE_SIZE)
def coop_cosine(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Returns CoOp's schedule, which is constant within each epoch.

    The first epoch has the rate 1e-5, epoch e > 0 the cosine's value at (e - 1) / epochs.
    """

    def schedule(step: Int[Array, ""] | int) -> Float[Array, ""]:
        epoch = step // steps_per_epoch
        cosine = 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * (epoch - 1) / epochs))
        return jnp.where(epoch == 0, WARM_UP_RATE, cosine)

    return schedule


@lru_cache(CACHE_SIZE)
def adamw(
    schedule: optax.Schedule, weight_decay: float, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Returns AdamW."""
    return optax.adamw(schedule, eps=eps, weight_decay=weight_decay)


@lru_cache(CACHE_SIZE)
def coop_sgd(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """Returns CoOp's SGD: momentum 0.9, weight decay added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=MOMENTUM)
    )
