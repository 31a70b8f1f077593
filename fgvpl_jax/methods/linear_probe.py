"""Linear probe: logistic regression on CLIP's image features, as CoOp's authors measure it."""

import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, Float64, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.interface import FeatureMethod, FewShotFeatures, Task
from fgvpl_jax.variables import Trainable

# C is scikit-learn's: the weight of the summed loss beside half the squared norm of the weights.
FIRST_CS = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
BINARY_STEPS = 8
MOST_ITERATIONS = 1000
# Of the largest gradient component of the mean objective; scikit-learn's 1e-4 stops far from it.
TOLERANCE = 1e-9
# A class without an image is never predicted: its logit lies this far below the lowest bias.
ABSENT_CLASS_MARGIN = 30.0


class LinearProbe(FeatureMethod):
    """Multinomial logistic regression with L2, solved by L-BFGS in float64 on raw features.

    Attributes:
        kernel: [e, k].
        bias: [k], not regularised.
        inverse_regularisation: C.
        solver_converged: 1 if the tolerance was reached within the recipe's iterations, else 0.
    """

    name = "linear_probe"
    title = "Linear probe"

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"]):
        super().__init__(clip, text_features)
        num_classes, dim = text_features.shape
        self.kernel = Trainable(jnp.zeros((dim, num_classes)))
        self.bias = Trainable(jnp.zeros((num_classes,)))
        self.inverse_regularisation = Trainable(jnp.ones(()))
        self.solver_converged = Trainable(jnp.zeros(()))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "LinearProbe":
        """The model; see `Method.build`."""
        return cls(clip, task.text_features)

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Chooses C on validation and solves.

        Raises:
            UserError: If all images are of one class.
        """
        if len(np.unique(few_shot.labels)) < 2:
            raise UserError("linear_probe needs training images of two classes: add some")
        num_classes = self.bias.shape[0]
        features, validation = few_shot.plain(), few_shot.validation()
        c = 1.0 if validation is None else choose_c(features, few_shot.labels, *validation)
        kernel, bias, converged = solve(features, few_shot.labels, c, num_classes)
        if not converged:
            logging.warning(
                "the linear probe's solver stopped at %d iterations with C = %.3g, as the recipe "
                "has it, before its tolerance of %g was reached: results.json says so",
                MOST_ITERATIONS,
                c,
                TOLERANCE,
            )
        self.solver_converged.set_value(jnp.asarray(float(converged)))
        self.kernel.set_value(jnp.asarray(kernel, jnp.float32))
        self.bias.set_value(jnp.asarray(bias, jnp.float32))
        self.inverse_regularisation.set_value(jnp.asarray(c, jnp.float32))

    def facts(self) -> dict[str, Any]:
        """C, which validation chose; 1 where there was none. Whether the solver converged."""
        return {
            "inverse_regularisation": float(self.inverse_regularisation[...]),
            "solver_converged": bool(self.solver_converged[...]),
        }

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Features · kernel + bias."""
        return features @ self.kernel[...] + self.bias[...]


def choose_c(
    features: Float[np.ndarray, "s e"],
    labels: Int[np.ndarray, "s"],
    validation_features: Float[np.ndarray, "v e"],
    validation_labels: Int[np.ndarray, "v"],
) -> float:
    """C by validation accuracy: seven powers of ten, then a binary search around the best.

    The search begins a power of ten to both sides of the best, of equals the largest. Each step
    compares the two ends, of equals the smaller C counts as better, and halves the interval in
    the logarithm towards the better one, which in the last step is taken.
    """
    num_classes = int(max(labels.max(), validation_labels.max())) + 1

    def accuracy(c: float) -> float:
        kernel, bias, _ = solve(features, labels, c, num_classes)
        guesses = (validation_features @ kernel + bias).argmax(axis=1)
        return float((guesses == validation_labels).mean())

    best = max(FIRST_CS, key=accuracy)  # of equals the first
    ends = {c: accuracy(c) for c in (best / 10, best * 10)}
    for _ in range(BINARY_STEPS - 1):
        low, high = sorted(ends)
        middle = float(np.sqrt(low * high))
        kept = low if ends[low] >= ends[high] else high
        ends = {kept: ends[kept], middle: accuracy(middle)}
    low, high = sorted(ends)
    return low if ends[low] >= ends[high] else high


def solve(
    features: Float[np.ndarray, "s e"], labels: Int[np.ndarray, "s"], c: float, num_classes: int
) -> tuple[Float64[np.ndarray, "e k"], Float64[np.ndarray, "k"], bool]:
    """Minimises C · (summed cross-entropy) + ½ ‖kernel‖², in float64.

    Returns:
        kernel and bias; a class without an image has weights of 0 and the lowest bias. Last,
        whether the tolerance was reached.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=c, max_iter=MOST_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told of once, for the final C
        solver.fit(features.astype(np.float64), labels)
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(solver.classes_) == 2:  # scikit-learn gives the difference of the two
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    kernel = np.zeros((features.shape[1], num_classes))
    bias = np.full(num_classes, intercepts.min() - ABSENT_CLASS_MARGIN)
    kernel[:, solver.classes_], bias[solver.classes_] = coefficients.T, intercepts
    return kernel, bias, bool((solver.n_iter_ < MOST_ITERATIONS).all())
