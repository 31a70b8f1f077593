"""Tip-Adapter-F: Tip-Adapter with keys that are trained."""

import optax

from fgvpl_jax.methods.interface import Recipe
from fgvpl_jax.methods.optimizers import adamw
from fgvpl_jax.methods.tip_adapter import TipAdapter

EPOCHS = {"eurosat": 100}
OTHER_EPOCHS = 20
EPS = 1e-4


class TipAdapterF(TipAdapter):
    """The keys begin as Tip-Adapter's and are not normalised again."""

    name = "tip_adapter_f"
    title = "Tip-Adapter-F"

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Of its authors' code, but for the epoch: the last, never the best on the test set."""
        return Recipe(
            epochs=EPOCHS.get(benchmark, OTHER_EPOCHS),
            batch_size=256,
            learning_rate=1e-3,
            weight_decay=0.01,
        )

    @staticmethod
    def optimizer(schedule: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """AdamW with Tip-Adapter's eps."""
        return adamw(schedule, weight_decay, eps=EPS)
