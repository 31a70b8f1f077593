"""GDA pool: Gaussian discriminants of image, object and patches, pooled with zero-shot CLIP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float64, Int
from ml_collections import ConfigDict
from scipy.special import log_softmax

from fgvpl_jax.clip import CLIP, FrozenEncoder
from fgvpl_jax.methods.fitted_once import (
    ABSENT_CLASS_MARGIN,
    NUM_PASSES,
    FittedOnce,
    unit,
    validation_of,
)
from fgvpl_jax.methods.gda import Statistics, left_out_scores
from fgvpl_jax.methods.held_out import (
    HeldOutLogits,
    is_judged,
    smoothed_targets,
    tempered_losses,
)
from fgvpl_jax.methods.interface import FewShotFeatures, Task
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Trainable, to_device
from fgvpl_jax.visual_prompt import FeatureKinds, FeatureKindsEncoder

# docs/ablations.md says how these values were chosen: never on a test split.
KINDS = ("image", "object", "patches")
RIDGES = (0.25, 1.0, 4.0, 16.0, 64.0)  # values of τ
# τ is chosen if so large a share of the classes has two different support images: images of fewer
# classes, which are hardly confused, would choose a τ that is too small.
JUDGED_SHARE = 0.75
FIRST_RIDGE = 16.0  # τ otherwise
BETWEEN = 0.1  # ρ per view of an image
PENALTY = 5.0  # nats for a weight that is 1 away from its first value


class GDAPool(FittedOnce):
    """Logits = γ · scale · f·wᵀ + sum over the kinds of features (f_kind·kernel_kind) + bias.

    They are a log-linear pool: a weighted sum of the logits of zero-shot CLIP and of two Gaussian
    discriminants for each kind of feature, one fitted to the support images under the evaluation
    transform, one to these and ten augmented passes. All are calibrated on held-out photos, which
    choose the weights too.

    Attributes:
        kernel: Matrices [3, e, k].
        bias: Vector [k].
        text_weight: γ.
        weights: Weights of the discriminants, with and without augmented passes in turn, and of
            zero-shot CLIP.
        ridges: τ of the discriminants; without effect where no class has two views.
    """

    name = "gda_pool"
    title = "GDA pool"
    finds_objects = True

    def __init__(self, clip: CLIP, task: Task, rule: str):
        super().__init__(clip, task, rule)
        num_classes, dim = task.text_features.shape
        self.kernel = Trainable(to_device(np.zeros((len(KINDS), dim, num_classes))))
        self.bias = Trainable(to_device(np.zeros(num_classes)))
        self.text_weight = Trainable(to_device(1.0))
        self.weights = Trainable(to_device(np.zeros(2 * len(KINDS) + 1)))
        self.ridges = Trainable(to_device(np.zeros(2 * len(KINDS))))

    @classmethod
    def frozen_encoder(cls, clip: CLIP, config: ConfigDict) -> FrozenEncoder:
        """Returns the encoder of the three kinds of features; see `Method.frozen_encoder`."""
        return FeatureKindsEncoder(
            clip.image_encoder,
            attention_map=config.attention_map,
            connectivity=config.connectivity,
        )

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Fits and calibrates the discriminants, then chooses the weights."""
        labels, num_classes = few_shot.labels, self.bias.shape[0]
        passes = [few_shot.plain(), *(few_shot.augmented(epoch) for epoch in range(NUM_PASSES))]
        views = np.stack([self._unit_kinds(packed) for packed in passes], axis=2)
        packed, validation_labels = validation_of(few_shot)
        queries = self._unit_kinds(packed)
        photos = CalibrationPhotos(labels, np.asarray(self.copies[...]), validation_labels)
        text = HeldOutLogits(self.zero_shot(views[0, :, 0]), self.zero_shot(queries[0]))
        text_weight = photos.text_weight(text)
        present = np.bincount(labels, minlength=num_classes) > 0
        judged = np.unique(labels[is_judged(labels, photos.copies)])
        ridges = RIDGES if len(judged) >= JUDGED_SHARE * present.sum() else (FIRST_RIDGE,)
        experts = [
            fitted(used, query, photos, ridges, num_classes)
            for own, query in zip(views, queries, strict=True)
            for used in (own, own[:, :1])
        ]
        text = HeldOutLogits(*(text_weight * logits for logits in text))
        parts = [*(expert.held_out for expert in experts), text]
        weights = photos.weights(parts)
        self._set(experts, weights, text_weight, present)
        held_out = sum(w * part.support for w, part in zip(weights, parts, strict=True))
        self.held_out.set_value(to_device(held_out))

    def _unit_kinds(self, packed: Float[np.ndarray, "b c"]) -> Float64[np.ndarray, "3 b e"]:
        return unit(np.asarray(self.features(to_device(packed)).kinds)).swapaxes(0, 1)

    def _set(
        self,
        experts: Sequence["Expert"],
        weights: Float64[np.ndarray, "w"],
        text_weight: float,
        present: np.ndarray,
    ) -> None:
        kernel, bias = np.zeros(self.kernel.shape), np.zeros(len(present))
        for place, expert in enumerate(experts):
            kernel[place // 2] += weights[place] * expert.kernel
            bias += weights[place] * expert.bias
        # What all classes share changes no probability, and it is large where features are alike.
        kernel -= kernel[..., present].mean(axis=-1, keepdims=True)
        kernel[..., ~present] = 0
        bias -= bias[present].mean()
        bias[~present] = bias[present].min() - ABSENT_CLASS_MARGIN
        ridges = [expert.ridge for expert in experts]
        self.kernel.set_value(to_device(kernel))
        self.bias.set_value(to_device(bias))
        self.text_weight.set_value(to_device(weights[-1] * text_weight))
        self.weights.set_value(to_device(weights))
        self.ridges.set_value(to_device(ridges))

    def facts(self) -> dict[str, Any]:
        """Returns weights and τ of the discriminants by kind, and the weight of zero-shot CLIP."""
        weights = [round(float(weight), 4) for weight in self.weights[...]]
        ridges = [float(ridge) for ridge in self.ridges[...]]
        names = [name for kind in KINDS for name in (kind, f"{kind} without augmented passes")]
        return {
            "pool_weights": dict(zip([*names, "text"], weights, strict=True)),
            "pool_ridges": dict(zip(names, ridges, strict=True)),
            "pool_text_scale": float(self.text_weight[...]),
        }

    def features(self, inputs: Float[Array, "b c"]) -> FeatureKinds:
        """Returns the three features of each photo, and where its object is."""
        return FeatureKinds.unpacked(inputs, self.text_features.shape[1])

    def zero_shot_logits(self, inputs: Float[Array, "b c"]) -> Float[Array, "b k"]:
        """Returns plain CLIP's logits (Eq. 1)."""
        return self.text_logits(self.features(inputs).kinds[:, 0])

    def contributions(
        self, features: FeatureKinds, support: None
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the terms of zero-shot CLIP, of image and patches, and of the object."""
        units = normalize(features.kinds)
        image, object_, patches = (units[:, i] @ self.kernel[...][i] for i in range(len(KINDS)))
        return {
            "image_text": self.text_weight[...] * self.text_logits(features.kinds[:, 0]),
            "image_cache": image + patches + self.bias[...],
            "object_cache": object_,
        }


class Expert(NamedTuple):
    """A calibrated discriminant; its logits are features · kernel + bias.

    Attributes:
        kernel: Matrix [e, k].
        bias: Vector [k].
        ridge: τ.
        held_out: Calibrated logits of held-out photos.
    """

    kernel: Float64[np.ndarray, "e k"]
    bias: Float64[np.ndarray, "k"]
    ridge: float
    held_out: HeldOutLogits


@dataclass(frozen=True)
class CalibrationPhotos:
    """Photos that calibrate logits and choose weights: support images left out, and validation.

    Attributes:
        labels: Classes of the support images. Those that `is_judged` leaves out have no say, but
            the only image of a class has one on zero-shot CLIP, which was fitted on no image.
        copies: Number of each one's group of copies; see `is_judged`.
        validation_labels: Classes of the validation images; empty without any.
    """

    labels: Int[np.ndarray, "s"]
    copies: Int[np.ndarray, "s"]
    validation_labels: Int[np.ndarray, "v"]

    def of(self, held_out: HeldOutLogits) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and labels of the photos that have a say on a fit.

        Classes without a support image are left out: smoothed targets give them a share, for which
        their very low scores would cost much.
        """
        known, present = is_judged(self.labels, self.copies), np.unique(self.labels)
        possible = np.isin(self.validation_labels, present)
        logits = np.concatenate([held_out.support[known], held_out.validation[possible]])
        labels = np.concatenate([self.labels[known], self.validation_labels[possible]])
        return logits[:, present], np.searchsorted(present, labels)

    def temperature_and_loss(self, held_out: HeldOutLogits) -> tuple[float, float]:
        """Returns the temperature with the lowest loss, and that loss; 1 and 0 without photos."""
        logits, labels = self.of(held_out)
        if not len(labels):
            return 1.0, 0.0
        temperature, losses = tempered_losses(logits, labels)
        return temperature, float(losses.sum())

    def text_weight(self, text: HeldOutLogits) -> float:
        """Returns the factor that calibrates zero-shot CLIP, 0 if it is no better than guessing.

        With g the gain in log-likelihood over equal probabilities, the factor is 1 / T times the
        positive part of 1 - 1 / (2g), as James and Stein shrink an estimate of squared z-value 2g.
        """
        first = np.unique(self.copies, return_index=True)[1]
        logits = np.concatenate([text.support[first], text.validation])
        labels = np.concatenate([self.labels[first], self.validation_labels])
        temperature, losses = tempered_losses(logits, labels)
        gain = len(labels) * np.log(logits.shape[1]) - losses.sum()
        return float(max(1 - 0.5 / gain, 0.0) / temperature) if gain > 0 else 0.0

    def weights(self, parts: Sequence[HeldOutLogits]) -> Float64[np.ndarray, "w"]:
        """Returns weights of calibrated logits, the last of which are zero-shot CLIP's.

        They maximise the log-likelihood less `PENALTY` times the squared distance from the first
        weights, which are equal and add up to 1 for the fits, and 1 for zero-shot CLIP.
        """
        from scipy.optimize import minimize  # slow to import, and no prediction needs it

        first = np.append(np.full(len(parts) - 1, 1 / (len(parts) - 1)), 1.0)
        logits, labels = zip(*map(self.of, parts), strict=True)
        if not len(labels[0]):
            return first
        stacked = np.stack(logits).astype(np.float64)
        targets = smoothed_targets(labels[0], stacked.shape[2])

        def loss(weights: Float64[np.ndarray, "w"]) -> tuple[float, Float64[np.ndarray, "w"]]:
            log_probabilities = log_softmax(np.tensordot(weights, stacked, 1), axis=1)
            gradient = ((np.exp(log_probabilities) - targets) * stacked).sum(axis=(1, 2))
            moved = weights - first
            value = PENALTY * (moved**2).sum() - (targets * log_probabilities).sum()
            return float(value), gradient + 2 * PENALTY * moved

        bounds = [(0, None)] * len(first)
        found = minimize(loss, first, jac=True, bounds=bounds, method="L-BFGS-B")
        return np.asarray(found.x, np.float64)


def fitted(
    views: Float64[np.ndarray, "s r e"],
    queries: Float64[np.ndarray, "v e"],
    photos: CalibrationPhotos,
    ridges: Sequence[float],
    num_classes: int,
) -> Expert:
    """Fits a discriminant, with the τ of the highest likelihood, and calibrates it."""
    labels = photos.labels
    between = BETWEEN * views.shape[1]
    statistics = Statistics.of(views, labels, num_classes, between, photos.copies)
    # GDA's precision is e times the inverse of a scatter. Views of an image are much alike, so
    # images and not views are counted for the inverse of a covariance.
    factor = len(labels) / views.shape[2]
    best: tuple[float, Expert] | None = None
    left_out = left_out_scores(views, labels, photos.copies, statistics, ridges)
    for ridge, support in zip(ridges, left_out, strict=True):
        kernel, bias = statistics.classifier(ridge)
        held_out = HeldOutLogits(support, queries @ kernel + bias)
        held_out = HeldOutLogits(*(factor * logits for logits in held_out))
        temperature, loss = photos.temperature_and_loss(held_out)
        if best is None or loss < best[0]:
            scale = factor / temperature
            calibrated = HeldOutLogits(*(logits / temperature for logits in held_out))
            best = loss, Expert(scale * kernel, scale * bias, ridge, calibrated)
    assert best is not None
    return best[1]
