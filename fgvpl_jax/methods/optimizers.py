"""Schedules and optimizers of the methods' recipes; equal arguments give the same object.

So runs of one structure, such as the folds of an estimate, share one compiled step.
"""

from functools import cache

import jax.numpy as jnp
import optax

WARM_UP_RATE = 1e-5
MOMENTUM = 0.9


@cache
def cosine(learning_rate: float, total_steps: int) -> optax.Schedule:
    """From a step, counting from 0, to its rate: a cosine from `learning_rate` to 0."""
    return optax.cosine_decay_schedule(learning_rate, decay_steps=total_steps)


@cache
def coop_cosine(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """CoOp's, which changes with the epoch.

    The first epoch has the constant rate 1e-5, epoch e > 0 the cosine's value at (e - 1) / epochs.
    """

    def schedule(step):
        epoch = step // steps_per_epoch
        cosine = 0.5 * learning_rate * (1 + jnp.cos(jnp.pi * (epoch - 1) / epochs))
        return jnp.where(epoch == 0, WARM_UP_RATE, cosine)

    return schedule


@cache
def adamw(
    schedule: optax.Schedule, weight_decay: float, eps: float = 1e-8
) -> optax.GradientTransformation:
    """AdamW."""
    return optax.adamw(schedule, eps=eps, weight_decay=weight_decay)


@cache
def coop_sgd(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
    """SGD as CoOp trains: momentum 0.9, L2 in the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum=MOMENTUM)
    )
