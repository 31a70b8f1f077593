"""Tip-Adapter-F: Tip-Adapter with trained keys."""

import optax

from fgvpl_jax.methods.interface import Recipe
from fgvpl_jax.methods.optimizers import adamw
from fgvpl_jax.methods.tip_adapter import TipAdapter

EPOCHS = {"eurosat": 100}
OTHER_EPOCHS = 20
EPS = 1e-4


class TipAdapterF(TipAdapter):
    """Tip-Adapter whose keys are trained from their initial values and not normalised again."""

    name = "tip_adapter_f"
    title = "Tip-Adapter-F"

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns the recipe of its authors' code.

        Unlike that code, the last epoch is used and never the one that is best on the test set.
        """
        return Recipe(
            epochs=EPOCHS.get(benchmark, OTHER_EPOCHS),
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.01,
        )

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Returns AdamW with Tip-Adapter's eps."""
        return adamw(schedule, weight_decay, eps=EPS)
