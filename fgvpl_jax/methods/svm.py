"""Support vector machine on standardised image features, fitted by scikit-learn."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import SharedError
from fgvpl_jax.methods.fitted_once import (
    ABSENT_CLASS_MARGIN,
    FittedOnce,
    folds_of,
    relative_sizes,
)
from fgvpl_jax.methods.interface import FewShotFeatures, Task
from fgvpl_jax.variables import Frozen, Trainable, to_device


class SVM(FittedOnce):
    """Scikit-learn's `SVC` with its defaults (Gaussian kernel, C = 1) after `StandardScaler`.

    Where classes have different numbers of images, the C of a class is divided by its relative size
    (`relative_sizes`): otherwise large classes would take most photos of the small ones.

    Logits are what `SVC.decision_function` returns: for each class, the number of other classes
    that it wins against, plus less than 1/2 for the sum of its margins. Of two classes, they are
    minus and plus the margin. No class name is read. The logits of held-out support images come
    from five more fits, as one for every image would take long.

    Attributes:
        mean: Mean [e] of the features.
        deviation: Standard deviation [e] of the features; 1 where it is 0.
        vectors: Standardised features [s, e].
        coefficients: Dual coefficients [s, c-1] of the c classes that have an image; 0 for an image
            that is no support vector.
        intercepts: Symmetric matrix [c, c] of the intercepts of every pair of classes.
        sharpness: γ of the kernel exp(-γ ‖x - y‖²).
        members: Places [c, m] of each class's images, padded.
        is_member: Which of these places are real.
        present: The c classes that have an image.
    """

    name = "svm"
    title = "SVM"

    def __init__(self, clip: CLIP, task: Task, rule: str):
        super().__init__(clip, task, rule)
        labels = task.support_labels
        present = np.unique(labels)
        dim, num_present = task.text_features.shape[1], len(present)
        self.mean = Trainable(to_device(np.zeros(dim)))
        self.deviation = Trainable(to_device(np.ones(dim)))
        self.vectors = Trainable(to_device(np.zeros((len(labels), dim))))
        self.coefficients = Trainable(to_device(np.zeros((len(labels), max(num_present - 1, 1)))))
        self.intercepts = Trainable(to_device(np.zeros((num_present, num_present))))
        self.sharpness = Trainable(to_device(0.0))
        groups = [np.flatnonzero(labels == c) for c in present]
        most = max(map(len, groups))
        padded = [np.pad(group, (0, most - len(group))) for group in groups]
        self.members = Frozen(to_device(np.stack(padded), np.int32))
        self.is_member = Frozen(to_device([np.arange(most) < len(group) for group in groups], bool))
        self.present = Frozen(to_device(present, np.int32))

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Fits the classifier, and five more for the logits of held-out images.

        Raises:
            SharedError: If all support images are of one class.
        """
        from sklearn.base import clone
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        features, labels = few_shot.plain().astype(np.float64), few_shot.labels
        if len(np.unique(labels)) < 2:
            raise SharedError("svm needs training images of two classes: add some")
        weights = dict(zip(labels.tolist(), 1 / relative_sizes(labels), strict=True))
        unfitted = make_pipeline(StandardScaler(), SVC(class_weight=weights))
        model = clone(unfitted).fit(features, labels)
        scaler, machine = model.named_steps["standardscaler"], model.named_steps["svc"]
        coefficients = np.zeros(self.coefficients.shape)
        coefficients[machine.support_] = machine.dual_coef_.T
        self.mean.set_value(to_device(scaler.mean_))
        self.deviation.set_value(to_device(scaler.scale_))
        self.vectors.set_value(to_device(scaler.transform(features)))
        self.coefficients.set_value(to_device(coefficients))
        self.intercepts.set_value(to_device(symmetric(machine.intercept_)))
        self.sharpness.set_value(to_device(machine._gamma))
        held_out = np.zeros(self.held_out.shape, np.float32)
        folds = folds_of(labels, np.asarray(self.copies[...]))
        for fold in range(folds.max() + 1):
            out = folds == fold
            model = clone(unfitted).fit(features[~out], labels[~out])
            values = model.decision_function(features[out])
            held_out[out] = among_all(values, model.classes_, held_out.shape[1])
        self.held_out.set_value(to_device(held_out))

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns the values of `SVC.decision_function`."""
        x = (features - self.mean[...]) / self.deviation[...]
        vectors = self.vectors[...]
        squares = (x**2).sum(axis=1)[:, None] + (vectors**2).sum(axis=1) - 2 * x @ vectors.T
        kernel = jnp.exp(-self.sharpness[...] * squares)
        members, is_member = self.members[...], self.is_member[...]
        weights = self.coefficients[...][members] * is_member[:, :, None]
        if len(members) == 2:
            margin = jnp.einsum("bcm,cmj->b", kernel[:, members], weights)
            values = (margin + self.intercepts[...][0, 1])[:, None] * jnp.array([-1.0, 1.0])
        else:
            parts = jnp.einsum("bcm,cmj->bcj", kernel[:, members], weights)
            values = pairwise_values(parts, self.intercepts[...])
        lowest = values.min(axis=1, keepdims=True) - ABSENT_CLASS_MARGIN
        shape = (x.shape[0], self.text_features.shape[0])
        return jnp.broadcast_to(lowest, shape).at[:, self.present[...]].set(values)


def pairwise_values(
    parts: Float[Array, "b c j"], intercepts: Float[Array, "c c"]
) -> Float[Array, "b c"]:
    """Returns the number of wins of every class and, below 1/2, its margins.

    Args:
        parts: Contribution of each class's support vectors to its c - 1 duels, in the order of
            its opponents.
        intercepts: Symmetric matrix of the intercepts.
    """
    count = len(intercepts)
    own, opponent = np.indices((count, count))
    column = np.clip(opponent - (opponent > own), 0, count - 2)
    duels = jnp.take_along_axis(parts, jnp.asarray(column)[None], axis=2)
    # scikit-learn's decision for a pair is positive if the class with the lower number wins.
    decisions = duels + duels.swapaxes(1, 2) + intercepts
    margins = jnp.where(own < opponent, decisions, -decisions) * (own != opponent)
    wins = jnp.where(own < opponent, margins >= 0, margins > 0).sum(axis=2)
    confidence = margins.sum(axis=2)
    return wins + confidence / (3 * (jnp.abs(confidence) + 1))


def symmetric(intercepts: Float[np.ndarray, "p"]) -> Float[np.ndarray, "c c"]:
    """Returns the intercepts of all pairs (0, 1), (0, 2), …, (1, 2), … as a symmetric matrix."""
    count = (1 + int(np.sqrt(1 + 8 * len(intercepts)))) // 2
    matrix = np.zeros((count, count))
    matrix[np.triu_indices(count, 1)] = intercepts
    return matrix + matrix.T


def among_all(
    values: Float[np.ndarray, "b *c"], classes: Int[np.ndarray, "c"], num_classes: int
) -> Float32[np.ndarray, "b k"]:
    """Returns a decision function's values as logits of all classes."""
    if values.ndim == 1:
        values = np.stack([-values, values], axis=1)
    lowest = values.min(axis=1, keepdims=True) - ABSENT_CLASS_MARGIN
    logits = np.broadcast_to(lowest, (len(values), num_classes)).astype(np.float32)
    logits[:, classes] = values
    return logits
