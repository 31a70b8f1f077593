"""Linear probe: logistic regression on CLIP's image features, by the protocol of CoOp's authors."""

import warnings
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float, Float64, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import SharedError
from fgvpl_jax.methods.fitted_once import ABSENT_CLASS_MARGIN
from fgvpl_jax.methods.held_out import ACCURACY, first_of_the_best, tempered_losses
from fgvpl_jax.methods.interface import FeatureMethod, FewShotFeatures, Task
from fgvpl_jax.variables import Trainable, to_device

# C is scikit-learn's: the weight of the summed loss relative to half the squared norm of the
# weights.
FIRST_CS = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
BINARY_STEPS = 8
LIKELY_CS = (1.0, 0.1, 10.0, 1e-2, 1e2, 1e-3, 1e3, 1e-4, 1e4)  # nearest to 1 first
MAX_ITERATIONS = 1000
# Newton steps follow L-BFGS, which stops once float64 cannot resolve a further fall of its
# objective.
MAX_NEWTON_STEPS = 20
# Bound on the largest gradient component of the mean objective at which the solver stops.
# scikit-learn's default, 1e-4, stops far from the minimum.
TOLERANCE = 1e-9
LARGEST_GRADIENT = 1e-6  # largest gradient norm at which the result counts as a solution


class LinearProbe(FeatureMethod):
    """Multinomial logistic regression with L2, solved by L-BFGS in float64 on raw features.

    Attributes:
        kernel: Matrix [e, k].
        bias: Vector [k], not regularised.
        rule: Value of `config.selection_rule`.
        inverse_regularisation: C.
        gradient_norm: Norm of the mean objective's gradient at the stored kernel and bias.
    """

    name = "linear_probe"
    title = "Linear probe"

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"], rule: str):
        super().__init__(clip, text_features)
        self.rule = rule
        num_classes, dim = text_features.shape
        self.kernel = Trainable(to_device(np.zeros((dim, num_classes))))
        self.bias = Trainable(to_device(np.zeros(num_classes)))
        self.inverse_regularisation = Trainable(to_device(1.0))
        self.gradient_norm = Trainable(to_device(0.0))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "LinearProbe":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.text_features, config.selection_rule)

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Chooses C on the validation images by the run's rule, or 1 without any, and solves.

        Raises:
            SharedError: If all support images are of one class.
        """
        if len(np.unique(few_shot.labels)) < 2:
            raise SharedError("linear_probe needs training images of two classes: add some")
        num_classes = self.bias.shape[0]
        features, validation = few_shot.plain(), few_shot.validation()
        c = 1.0
        if validation is not None:
            choose = choose_c if self.rule == ACCURACY else most_likely_c
            c = choose(features, few_shot.labels, *validation)
        solution = solve(features, few_shot.labels, c, num_classes)
        kernel, bias = (weights.astype(np.float32) for weights in solution)
        norm = gradient_norm(features, few_shot.labels, kernel, bias, c)
        if norm > LARGEST_GRADIENT:
            logging.warning(
                "the linear probe's solver stopped with C = %.3g after at most %d steps, at a "
                "gradient norm of %.1e, above %g: results.json records it as gradient_norm",
                c,
                MAX_ITERATIONS + MAX_NEWTON_STEPS,
                norm,
                LARGEST_GRADIENT,
            )
        self.gradient_norm.set_value(to_device(norm))
        self.kernel.set_value(to_device(kernel))
        self.bias.set_value(to_device(bias))
        self.inverse_regularisation.set_value(to_device(c))

    def facts(self) -> dict[str, Any]:
        """Returns C and the gradient norm, which shows how near the solution is."""
        return {
            "inverse_regularisation": float(self.inverse_regularisation[...]),
            "gradient_norm": float(self.gradient_norm[...]),
        }

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns features · kernel + bias."""
        return features @ self.kernel[...] + self.bias[...]


def choose_c(
    features: Float[np.ndarray, "s e"],
    labels: Int[np.ndarray, "s"],
    validation_features: Float[np.ndarray, "v e"],
    validation_labels: Int[np.ndarray, "v"],
) -> float:
    """Returns the C of the best validation accuracy.

    Tries seven powers of ten, then searches around the best of them, in a tie the largest. The
    search begins with the interval from a tenth of it to ten times it. Each step compares the two
    ends, in a tie preferring the smaller C, and halves the interval on the logarithmic scale
    towards the better end. The last step returns that end.
    """
    num_classes = int(max(labels.max(), validation_labels.max())) + 1

    def accuracy(c: float) -> float:
        kernel, bias = solve(features, labels, c, num_classes)
        guesses = (validation_features @ kernel + bias).argmax(axis=1)
        return float((guesses == validation_labels).mean())

    best = max(FIRST_CS, key=accuracy)  # in a tie, the first
    ends = {c: accuracy(c) for c in (best / 10, best * 10)}
    for _ in range(BINARY_STEPS - 1):
        low, high = sorted(ends)
        middle = float(np.sqrt(low * high))
        kept = low if ends[low] >= ends[high] else high
        ends = {kept: ends[kept], middle: accuracy(middle)}
    low, high = sorted(ends)
    return low if ends[low] >= ends[high] else high


def most_likely_c(
    features: Float[np.ndarray, "s e"],
    labels: Int[np.ndarray, "s"],
    validation_features: Float[np.ndarray, "v e"],
    validation_labels: Int[np.ndarray, "v"],
) -> float:
    """Returns the C with the best likelihood on validation, or one that is hardly worse; see above.

    "Hardly worse" is within one standard error; of those, C is the power of ten nearest to 1.
    """
    num_classes = int(max(labels.max(), validation_labels.max())) + 1

    def losses(c: float) -> Float64[np.ndarray, "v"]:
        kernel, bias = solve(features, labels, c, num_classes)
        return tempered_losses(validation_features @ kernel + bias, validation_labels)[1]

    return LIKELY_CS[first_of_the_best(np.stack([losses(c) for c in LIKELY_CS]))]


def solve(
    features: Float[np.ndarray, "s e"], labels: Int[np.ndarray, "s"], c: float, num_classes: int
) -> tuple[Float64[np.ndarray, "e k"], Float64[np.ndarray, "k"]]:
    """Minimises C · (summed cross-entropy) + ½ ‖kernel‖², in float64.

    Returns:
        Kernel and bias; a class without an image has a kernel of 0 and the lowest bias.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # Features may be centred because the bias is not regularised. CLIP's features have a large
    # common part, with which the solver stops far from the minimum.
    centre = features.mean(axis=0, dtype=np.float64)
    centred = features - centre
    solver = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # `initialise` warns about the final C
        solver.fit(centred, labels)
        solver.set_params(solver="newton-cg", max_iter=MAX_NEWTON_STEPS)
        solver.fit(centred, labels)
    coefficients, intercepts = solver.coef_, solver.intercept_ - solver.coef_ @ centre
    if len(solver.classes_) == 2:  # scikit-learn returns the difference of the two
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    kernel = np.zeros((features.shape[1], num_classes))
    bias = np.full(num_classes, intercepts.min() - ABSENT_CLASS_MARGIN)
    kernel[:, solver.classes_], bias[solver.classes_] = coefficients.T, intercepts
    return kernel, bias


def gradient_norm(
    features: Float[np.ndarray, "s e"],
    labels: Int[np.ndarray, "s"],
    kernel: Float[np.ndarray, "e k"],
    bias: Float[np.ndarray, "k"],
    c: float,
) -> float:
    """Returns the gradient norm of mean cross-entropy + ‖kernel‖² / (2 · C · s), in float64.

    For two classes scikit-learn penalises a single vector, the difference of their weights.
    """
    from scipy.special import softmax

    x, kernel = features.astype(np.float64), kernel.astype(np.float64)
    residual = softmax(x @ kernel + bias.astype(np.float64), axis=1)
    residual[np.arange(len(labels)), labels] -= 1
    share = 2 if len(np.unique(labels)) == 2 else 1
    by_kernel = (x.T @ residual + share * kernel / c) / len(x)
    by_bias = residual.mean(axis=0)
    return float(np.sqrt((by_kernel**2).sum() + (by_bias**2).sum()))
