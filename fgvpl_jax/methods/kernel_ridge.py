"""Kernel ridge regression of what zero-shot CLIP gets wrong, as in ProKeR."""

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int
from scipy.special import softmax

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import SharedError
from fgvpl_jax.methods.fitted_once import (
    NUM_PASSES,
    FittedOnce,
    relative_sizes,
    unit,
    unit_views,
    validation_of,
)
from fgvpl_jax.methods.held_out import ACCURACY, LIKELIHOOD, HeldOutLogits, groups_of
from fgvpl_jax.methods.interface import FewShotFeatures, Task
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Trainable, to_device

# With more keys than this, augmented views are left out, and β and λ keep their first values: every
# further pair of values would take minutes.
MOST_KEYS = 4096
# With more images, matrices with a row and a column for each would take gigabytes, and inverting
# one minutes.
MOST_IMAGES = 10_000


class Settings(NamedTuple):
    """Values that are chosen.

    Attributes:
        sharpness: β of the kernel.
        regularisation: λ.
        weight: Factor of the regression in the logits.
    """

    sharpness: float
    regularisation: float
    weight: float


FIRST = Settings(sharpness=1.0, regularisation=0.1, weight=10.0)
SHARPNESS_STEPS = (-1, 0, 1)  # exponents of 2
# Exponents of 10. Eleven views of a photo are nearly one photo, so λ per photo is smaller than it
# looks, and held-out likelihood often prefers more of it than ProKeR's authors tried.
REGULARISATION_STEPS = {ACCURACY: (-1, 0, 1), LIKELIHOOD: (-1, 0, 1, 2, 3)}
WEIGHT_STEPS = (-2, -1, 0, 1, 2)  # exponents of sqrt(10)


class Fit(NamedTuple):
    """A solved regression.

    Attributes:
        coefficients: A of (K + λD) A = R.
        left_out: Value at each image's plain view, from a regression without it and its copies.
    """

    coefficients: Float64[np.ndarray, "n k"]
    left_out: Float64[np.ndarray, "s k"]


class KernelRidge(FittedOnce):
    """Logits = scale · f·wᵀ + weight · K(f, keys) A, with f a unit vector.

    The kernel is Gaussian: K(f, g) = exp(-β (1 - f·g)). A solves (K + λD) A = R. R is one-hot
    labels minus zero-shot CLIP's probabilities. The keys are the support images under the
    evaluation transform and in ten augmented passes. D is diagonal, with the number of images of
    the key's class divided by its mean over classes: the squared errors of each class weigh the
    same. With equally many images D is I, as in ProKeR; with others, large classes would otherwise
    take most photos of the small ones.

    Attributes:
        keys: Unit vectors [n, e].
        coefficients: A, [n, k].
        settings: β, λ and the weight, [3].
    Raises:
        SharedError: If there are more than `MOST_IMAGES` support images.
    """

    name = "kernel_ridge"
    title = "Kernel ridge (ProKeR)"
    adds_to_zero_shot = True

    def __init__(self, clip: CLIP, task: Task, rule: str):
        super().__init__(clip, task, rule)
        num_classes, dim = task.text_features.shape
        num_images = len(task.support_labels)
        if num_images > MOST_IMAGES:
            raise SharedError(
                f"{self.name} takes at most {MOST_IMAGES:,} training images, not {num_images:,}: "
                "lower shots, or choose gda or gda_pool"
            )
        num_keys = num_images * (1 + num_passes(num_images))
        self.keys = Trainable(to_device(np.zeros((num_keys, dim))))
        self.coefficients = Trainable(to_device(np.zeros((num_keys, num_classes))))
        self.settings = Trainable(to_device(np.zeros(3)))

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Chooses β, λ and the weight, and solves.

        By likelihood, the best values are chosen and not those within a standard error nearest to
        the first ones, which are the authors' and regularise too little on some data.
        """
        views = unit_views(few_shot, num_passes(len(few_shot.labels)))
        features, validation_labels = validation_of(few_shot)
        queries, keys = unit(features), views.reshape(-1, views.shape[-1])
        num_classes = self.coefficients.shape[1]
        targets = np.eye(num_classes)[np.repeat(few_shot.labels, views.shape[1])]
        text = HeldOutLogits(self.zero_shot(views[:, 0]), self.zero_shot(queries))
        if self.adds_to_zero_shot:
            targets -= softmax(self.zero_shot(keys), axis=1)
        else:
            text = HeldOutLogits(*(np.zeros_like(logits) for logits in text))
        steps: tuple[tuple[int, ...], tuple[int, ...]] = (
            SHARPNESS_STEPS,
            REGULARISATION_STEPS[self.rule],
        )
        if len(keys) > MOST_KEYS:
            steps = ((0,), (0,))
        sizes, copies, fits = relative_sizes(few_shot.labels), np.asarray(self.copies[...]), {}
        for sharpness_step, step in product(*steps):
            settings = settings_at(sharpness_step, step, 0)
            fit = solve(keys, targets, settings, sizes, copies)
            values = gaussian(queries, keys, settings.sharpness) @ fit.coefficients
            fits[sharpness_step, step] = (fit, HeldOutLogits(fit.left_out, values))

        def logits(sharpness_step: int, step: int, weight_step: int) -> HeldOutLogits:
            weight = settings_at(sharpness_step, step, weight_step).weight
            parts = zip(text, fits[sharpness_step, step][1], strict=True)
            return HeldOutLogits(*(plain + weight * values for plain, values in parts))

        rule = self.selection_rule(validation_labels)
        candidates = sorted(
            product(steps[0], steps[1], WEIGHT_STEPS if self.adds_to_zero_shot else (0,)),
            key=lambda candidate: sum(map(abs, candidate)),
        )
        losses = [rule.losses(logits(*candidate)) for candidate in candidates]
        chosen = candidates[rule.choose(losses, standard_errors=0.0)]
        self.keys.set_value(to_device(keys))
        self.coefficients.set_value(to_device(fits[chosen[:2]][0].coefficients))
        self.settings.set_value(to_device(settings_at(*chosen)))
        self.held_out.set_value(to_device(logits(*chosen).support))

    def facts(self) -> dict[str, Any]:
        """Returns β, λ and the weight."""
        sharpness, regularisation, weight = map(float, np.asarray(self.settings[...]))
        return {
            "kernel_sharpness": sharpness,
            "kernel_regularisation": regularisation,
            "kernel_weight": weight,
        }

    def contributions(
        self, features: Float[Array, "b e"], support: None
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the terms of zero-shot CLIP and of the regression."""
        sharpness, _, weight = self.settings[...]
        # Coefficients of both signs add up to small values, which rounded products would hide.
        matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
        kernel = jnp.exp(-sharpness * (1 - matmul(normalize(features), self.keys[...].T)))
        values = weight * matmul(kernel, self.coefficients[...])
        return {"image_text": self.text_logits(features), "image_cache": values}


def num_passes(num_images: int) -> int:
    """Returns the number of augmented passes, such that all keys are at most `MOST_KEYS`."""
    return min(NUM_PASSES, max(MOST_KEYS // num_images - 1, 0))


def settings_at(sharpness_step: int, regularisation_step: int, weight_step: int) -> Settings:
    """Returns the settings that are some steps away from the first ones."""
    return Settings(
        sharpness=FIRST.sharpness * 2.0**sharpness_step,
        regularisation=FIRST.regularisation * 10.0**regularisation_step,
        weight=FIRST.weight * 10.0 ** (weight_step / 2),
    )


def gaussian(
    queries: Float64[np.ndarray, "q e"], keys: Float64[np.ndarray, "n e"], sharpness: float
) -> Float64[np.ndarray, "q n"]:
    """Returns exp(-β (1 - query·key)) for unit vectors."""
    return np.exp(-sharpness * (1 - queries @ keys.T))


def solve(
    keys: Float64[np.ndarray, "n e"],
    targets: Float64[np.ndarray, "n k"],
    settings: Settings,
    sizes: Float64[np.ndarray, "s"],
    copies: Int[np.ndarray, "s"],
) -> Fit:
    """Solves the regression and, exactly, those without one group of copies and with the same D.

    With the inverse G of K + λD, a regression without the views v of a group has the values
    R_v - (G_vv)⁻¹ A_v at them.

    Args:
        keys: Views of the support images, those of an image next to each other, the plain one
            first.
        targets: R.
        settings: β and λ.
        sizes: Diagonal of D, by image; see `relative_sizes`.
        copies: Number of each image's group of copies.
    """
    num_images = len(sizes)
    num_views = len(keys) // num_images
    matrix = gaussian(keys, keys, settings.sharpness)
    matrix[np.diag_indices_from(matrix)] += settings.regularisation * np.repeat(sizes, num_views)
    inverse = np.linalg.inv(matrix)
    coefficients = inverse @ targets
    left_out = targets[::num_views].copy()
    for places in groups_of(copies):
        rows = (places[:, None] * num_views + np.arange(num_views)).reshape(-1)
        residuals = np.linalg.solve(inverse[np.ix_(rows, rows)], coefficients[rows])
        left_out[places] -= residuals[::num_views]
    return Fit(coefficients, left_out)
