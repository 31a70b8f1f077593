"""Methods that are fitted in one go, and that know their logits of held-out support images."""

import numpy as np
from flax import nnx
from jaxtyping import Float, Float64, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.held_out import LabelledLogits, SelectionRule, is_judged
from fgvpl_jax.methods.interface import FeatureMethod, FewShotFeatures, Task
from fgvpl_jax.variables import Frozen, Trainable, to_device

NUM_PASSES = 10  # augmented passes over the support images, those of Tip-Adapter
# A class without an image is never predicted: its score is this far below the lowest other score.
ABSENT_CLASS_MARGIN = 30.0
FOLDS = 5  # fits for held-out logits where leave-one-out would take long


class FittedOnce(FeatureMethod):
    """A method on frozen features that trains for no epoch.

    Attributes:
        labels: Classes [s] of the support images.
        copies: Number [s] of the group of copies of each support image; a group is of one class.
        held_out: Logits [s, k] of the support images, each from a fit without it and its copies.
        rule: Value of `config.selection_rule`.
    """

    def __init__(self, clip: CLIP, task: Task, rule: str):
        super().__init__(clip, task.text_features)
        labels = task.support_labels
        self.labels = Frozen(to_device(labels, np.int32))
        self.copies = Frozen(
            to_device(copies_within_classes(labels, task.support_copies), np.int32)
        )
        self.held_out = Trainable(to_device(np.zeros((len(labels), len(task.text_features)))))
        self.rule = rule

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "FittedOnce":
        """Builds the model; see `Method.build`."""
        return cls(clip, task, config.selection_rule)

    def held_out_logits(self) -> LabelledLogits:
        """Returns logits of the support images that judge a fit; see `Method` and `is_judged`."""
        labels = np.asarray(self.labels[...])
        known = is_judged(labels, np.asarray(self.copies[...]))
        return LabelledLogits(np.asarray(self.held_out[...])[known], labels[known])

    def selection_rule(self, validation_labels: Int[np.ndarray, "v"]) -> SelectionRule:
        """Returns the run's rule for these validation images."""
        labels, copies = np.asarray(self.labels[...]), np.asarray(self.copies[...])
        return SelectionRule(self.rule, labels, copies, validation_labels)

    def zero_shot(self, features: Float64[np.ndarray, "*b e"]) -> Float64[np.ndarray, "*b k"]:
        """Returns zero-shot CLIP's logits of unit features, in float64."""
        weights = np.asarray(self.text_features[...], np.float64)
        return float(self.logit_scale[...]) * features @ weights.T


def unit(features: Float[np.ndarray, "*b e"]) -> Float64[np.ndarray, "*b e"]:
    """Returns features of unit length, in float64; a zero vector stays zero."""
    exact = features.astype(np.float64)
    return exact / np.maximum(np.linalg.norm(exact, axis=-1, keepdims=True), 1e-12)


def unit_views(few_shot: FewShotFeatures, num_passes: int) -> Float64[np.ndarray, "s r e"]:
    """Returns unit features of each support image: the plain view first, then augmented ones."""
    views = [few_shot.plain(), *(few_shot.augmented(epoch) for epoch in range(num_passes))]
    return unit(np.stack(views, axis=1))


def validation_of(
    few_shot: FewShotFeatures,
) -> tuple[Float[np.ndarray, "v e"], Int[np.ndarray, "v"]]:
    """Returns features and labels of the validation images; empty arrays without any."""
    found = few_shot.validation()
    if found is not None:
        return found
    return np.empty((0, few_shot.plain().shape[1]), np.float32), np.empty(0, np.int64)


def relative_sizes(labels: Int[np.ndarray, "s"]) -> Float64[np.ndarray, "s"]:
    """Returns the number of images of each image's class, divided by its mean over classes."""
    counts = np.bincount(labels)
    return counts[labels] / counts[counts > 0].mean()


def copies_within_classes(
    labels: Int[np.ndarray, "s"], copies: Int[np.ndarray, "s"] | None
) -> Int[np.ndarray, "s"]:
    """Returns the number of each image's group of copies, where each group is of one class.

    A copy in another class stays in the fit without the image, where it can only mislead.

    Args:
        labels: Classes of the images.
        copies: Numbers of groups of any classes; None if no image is a copy.
    """
    if copies is None:
        return np.arange(len(labels))
    return np.unique(np.stack([copies, labels]), axis=1, return_inverse=True)[1].reshape(-1)


def folds_of(labels: Int[np.ndarray, "s"], copies: Int[np.ndarray, "s"]) -> Int[np.ndarray, "s"]:
    """Returns each image's fold; -1, which is never held out, if its class has copies of it alone.

    Args:
        labels: Classes of the images.
        copies: Number of each one's group of copies, which share a fold.
    """
    folds = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        groups = np.unique(copies[places], return_inverse=True)[1]
        folds[places] = groups % FOLDS if groups.any() else -1
    return folds
