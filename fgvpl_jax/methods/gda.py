"""GDA: Gaussian discriminant analysis of frozen features, added to zero-shot CLIP."""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.fitted_once import (
    ABSENT_CLASS_MARGIN,
    NUM_PASSES,
    FittedOnce,
    unit,
    unit_views,
    validation_of,
)
from fgvpl_jax.methods.held_out import ACCURACY, HeldOutLogits, groups_of, is_judged
from fgvpl_jax.methods.interface import FewShotFeatures, Task
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Trainable, to_device

# τ, multiples of the empirical-Bayes ridge, as exponents of 4.
RIDGE_STEPS = (-2, -1, 0, 1, 2)
# α in units of N / e, with which α · P is the inverse of the mean scatter; exponents of sqrt(10).
WEIGHT_STEPS = (-3, -2, -1, 0, 1, 2, 3)
# The time to leave out one image grows as this number plus the number of classes.
COST_OF_IMAGE = 250
# If all images cost more than this, which is some 15 seconds of a core for 11 views of each and
# five values of τ, this many fits replace leave-one-out.
MOST_COST = 2_000_000
NUM_FITS = 10
LEAST_SCATTER = 1e-9  # mean squared distance of unit vectors from their class's mean


class GDA(FittedOnce):
    """Logits = scale · f·wᵀ + α (f·kernel + bias), with f a unit vector.

    With class means μ and one covariance Σ for all classes, kernel = P μᵀ and bias =
    log(1/k) - ½ (μ P μᵀ - excess), see `Statistics.excess`. P = e · ((N - 1) Σ + τ tr(Σ) I)⁻¹
    estimates the inverse of Σ from N views; τ = 1 is the empirical-Bayes ridge (Kubokawa and
    Srivastava 2008). The views are the support images under the evaluation transform and in ten
    augmented passes.

    Attributes:
        kernel: Matrix [e, k].
        bias: Vector [k].
        alpha: α.
        ridge: τ.
    """

    name = "gda"
    title = "GDA"

    def __init__(self, clip: CLIP, task: Task, rule: str):
        super().__init__(clip, task, rule)
        num_classes, dim = task.text_features.shape
        self.kernel = Trainable(to_device(np.zeros((dim, num_classes))))
        self.bias = Trainable(to_device(np.zeros(num_classes)))
        self.alpha = Trainable(to_device(1.0))
        self.ridge = Trainable(to_device(1.0))

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Chooses α, and τ if the rule is the likelihood; then fits.

        The accuracy rule is that of GDA's authors, whose τ is 1.
        """
        views = unit_views(few_shot, NUM_PASSES)
        features, labels = validation_of(few_shot)
        queries, num_classes = unit(features), self.bias.shape[0]
        rule = self.selection_rule(labels)
        copies = np.asarray(self.copies[...])
        statistics = Statistics.of(views, few_shot.labels, num_classes, copies=copies)
        text = HeldOutLogits(self.zero_shot(views[:, 0]), self.zero_shot(queries))
        steps = (0,) if self.rule == ACCURACY else RIDGE_STEPS
        ridges = [4.0**step for step in steps]
        left_out = left_out_scores(views, few_shot.labels, copies, statistics, ridges)
        scores = {}
        for step, ridge, support in zip(steps, ridges, left_out, strict=True):
            kernel, bias = statistics.classifier(ridge)
            scores[step] = HeldOutLogits(support, queries @ kernel + bias)

        # Views of an image are much alike. Where no photo judges how sure the classifier is, only
        # different images are counted.
        judged = len(labels) > 0 or bool(is_judged(few_shot.labels, copies).any())
        count = statistics.num_views if judged else statistics.num_different.sum()

        def alpha_of(weight_step: int) -> float:
            return float(10.0 ** (weight_step / 2) * count / views.shape[-1])

        def logits(ridge_step: int, weight_step: int) -> HeldOutLogits:
            parts = zip(text, scores[ridge_step], strict=True)
            return HeldOutLogits(*(plain + alpha_of(weight_step) * own for plain, own in parts))

        candidates = sorted(product(steps, WEIGHT_STEPS), key=lambda pair: sum(map(abs, pair)))
        chosen = rule.choose([rule.losses(logits(*candidate)) for candidate in candidates])
        ridge_step, weight_step = candidates[chosen]
        kernel, bias = statistics.classifier(4.0**ridge_step)
        self.kernel.set_value(to_device(kernel))
        self.bias.set_value(to_device(bias))
        self.alpha.set_value(to_device(alpha_of(weight_step)))
        self.ridge.set_value(to_device(4.0**ridge_step))
        held_out = logits(ridge_step, weight_step).support
        self.held_out.set_value(to_device(held_out))

    def facts(self) -> dict[str, Any]:
        """Returns α and τ."""
        return {"gda_weight": float(self.alpha[...]), "gda_ridge": float(self.ridge[...])}

    def contributions(
        self, features: Float[Array, "b e"], support: None
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the terms of zero-shot CLIP and of the discriminant."""
        scores = normalize(features) @ self.kernel[...] + self.bias[...]
        return {
            "image_text": self.text_logits(features),
            "image_cache": self.alpha[...] * scores,
        }


class Statistics(NamedTuple):
    """Class means and the eigenvectors of the scatter that is inverted.

    That scatter is (N - 1) Σ + ρ B, where B is the scatter of the class means about their mean.
    GDA has ρ = 0.

    Attributes:
        means: Means of the views of each class; 0 for a class without an image.
        counts: Number of views of each class.
        num_different: Number of images of each class, copies counted once.
        trace: Trace of (N - 1) Σ.
        between: ρ.
        eigenvalues: Eigenvalues of the scatter that is inverted.
        eigenvectors: Its eigenvectors, in columns.
        spread: Variance of the images' mean views within their classes along each eigenvector; 0
            if no class has two different images.
    """

    means: Float64[np.ndarray, "k e"]
    counts: Int[np.ndarray, "k"]
    num_different: Int[np.ndarray, "k"]
    trace: float
    between: float
    eigenvalues: Float64[np.ndarray, "e"]
    eigenvectors: Float64[np.ndarray, "e e"]
    spread: Float64[np.ndarray, "e"]

    @classmethod
    def of(
        cls,
        views: Float64[np.ndarray, "s r e"],
        labels: Int[np.ndarray, "s"],
        num_classes: int,
        between: float = 0.0,
        copies: Int[np.ndarray, "s"] | None = None,
    ) -> "Statistics":
        """Returns the statistics of all views, with ρ = `between`.

        `copies` are the numbers of the images' groups of copies; None if no image is a copy.
        """
        sums = np.zeros((num_classes, views.shape[-1]))
        np.add.at(sums, labels, views.sum(axis=1))
        counts = np.bincount(labels, minlength=num_classes) * views.shape[1]
        means = sums / np.maximum(counts, 1)[:, None]
        centred = (views - means[labels][:, None]).reshape(-1, views.shape[-1])
        scatter = centred.T @ centred
        trace = float(np.trace(scatter))
        if between:
            apart = means[counts > 0] - means[counts > 0].mean(axis=0)
            scatter += between * apart.T @ apart
        eigenvalues, eigenvectors = np.linalg.eigh(scatter)
        eigenvalues = np.maximum(eigenvalues, 0)
        copies = np.arange(len(labels)) if copies is None else copies
        _, first, groups = np.unique(copies, return_index=True, return_inverse=True)
        images = np.zeros((len(first), views.shape[-1]))
        np.add.at(images, groups, views.mean(axis=1))
        images /= np.bincount(groups)[:, None]
        num_different = np.bincount(labels[first], minlength=num_classes)
        num_free = max(len(first) - int((counts > 0).sum()), 1)
        spread = (((images - means[labels[first]]) @ eigenvectors) ** 2).sum(axis=0) / num_free
        return cls(means, counts, num_different, trace, between, eigenvalues, eigenvectors, spread)

    @property
    def num_views(self) -> int:
        """Number N of views."""
        return int(self.counts.sum())

    def classifier(
        self, ridge: float
    ) -> tuple[Float64[np.ndarray, "e k"], Float64[np.ndarray, "k"]]:
        """Returns kernel and bias."""
        added = ridge_of(ridge, self.trace, self.num_views)
        rotated = self.means @ self.eigenvectors
        dim = len(self.eigenvalues)
        scaled = dim * rotated / (self.eigenvalues + added)
        squares = (scaled * rotated).sum(axis=1) - self.excess(ridge)
        return self.eigenvectors @ scaled.T, biases(squares, self.counts > 0)

    def excess(self, ridge: float) -> Float64[np.ndarray, "k"]:
        """Returns by how much chance raises each class's μ P μᵀ, less the mean over classes.

        With n images and their variance V, the expected μ P μᵀ exceeds its true value by
        tr(P V) / n, so classes of few images would be predicted too rarely. Where all have equally
        many images, the result is 0.
        """
        return self.trace_of_variance(ridge) * inverse_counts(self.num_different)

    def trace_of_variance(self, ridge: float) -> float:
        """Returns tr(P V)."""
        added = ridge_of(ridge, self.trace, self.num_views)
        return float(len(self.spread) * (self.spread / (self.eigenvalues + added)).sum())


def inverse_counts(counts: Int[np.ndarray, "k"]) -> Float64[np.ndarray, "k"]:
    """Returns 1 / n less its mean over the classes that have an image; 0 for the others."""
    present = counts > 0
    mean_count = counts[present].mean()
    relative = mean_count / np.maximum(counts, 1)  # exactly 1 if all are equal
    return np.where(present, relative - relative[present].mean(), 0.0) / mean_count


def ridge_of(ridge: float, trace: float, num_views: int) -> float:
    """Returns τ tr(Σ), the ridge that is added to (N - 1) Σ, whose trace is given."""
    # One view, or views that are all the same, have no scatter but that of rounding; any ridge then
    # gives nearest means.
    if trace <= LEAST_SCATTER * num_views:
        return 1.0
    return ridge * trace / max(num_views - 1, 1)


def biases(squares: Float64[np.ndarray, "k"], present: np.ndarray) -> Float64[np.ndarray, "k"]:
    """Returns log(1/k) less half the square of each class; a low value for one without an image."""
    bias = -np.log(len(squares)) - squares / 2
    if present.any():
        bias[~present] = bias[present].min() - ABSENT_CLASS_MARGIN
    return bias


def left_out_scores(
    views: Float64[np.ndarray, "s r e"],
    labels: Int[np.ndarray, "s"],
    copies: Int[np.ndarray, "s"],
    statistics: Statistics,
    ridges: Sequence[float],
) -> Float64[np.ndarray, "t s k"]:
    """Returns scores of each image's plain view, from fits without it and its copies.

    They are those of `leave_one_out`, or of ten fits without a tenth of the images if that would
    take long. As P is about inverse to the number of views, the scores of these fits are scaled to
    that of all images. Images whose class has no others are in all ten fits; their scores are 0.

    Args:
        views: Unit features of the support images, the plain view first.
        labels: Classes of the images.
        copies: Number of each one's group of copies, which is of one class.
        statistics: Those of all images.
        ridges: Values of τ.
    """
    num_images, num_classes = len(views), len(statistics.counts)
    if num_images * (COST_OF_IMAGE + num_classes) <= MOST_COST:
        return leave_one_out(views, labels, copies, statistics, ridges)
    # Support images come class by class, so consecutive numbers spread each class over the fits.
    groups = np.unique(copies, return_inverse=True)[1]
    can_be_out = statistics.num_different[labels] > 1
    scores = np.zeros((len(ridges), num_images, num_classes))
    for number in range(NUM_FITS):
        out = can_be_out & (groups % NUM_FITS == number)
        found = scores_without(out, views, labels, copies, statistics, ridges)
        scores[:, out] = (~out).mean() * found
    return scores


def scores_without(
    out: Bool[np.ndarray, "s"],
    views: Float64[np.ndarray, "s r e"],
    labels: Int[np.ndarray, "s"],
    copies: Int[np.ndarray, "s"],
    statistics: Statistics,
    ridges: Sequence[float],
) -> Float64[np.ndarray, "t n k"]:
    """Returns scores of the plain views of the images in `out`, from a fit to the others."""
    num_classes, between = len(statistics.counts), statistics.between
    rest = Statistics.of(views[~out], labels[~out], num_classes, between, copies[~out])
    fits = [rest.classifier(ridge) for ridge in ridges]
    return np.stack([views[out, 0] @ kernel + bias for kernel, bias in fits])


def leave_one_out(
    views: Float64[np.ndarray, "s r e"],
    labels: Int[np.ndarray, "s"],
    copies: Int[np.ndarray, "s"],
    statistics: Statistics,
    ridges: Sequence[float],
) -> Float64[np.ndarray, "t s k"]:
    """Returns scores of each image's plain view, from fits without it and its copies alone.

    Exact but for tr(P V) of the `excess`, which is that of all images. Without n views of
    a class the scatter changes by a matrix of a rank of at most n + 3, so Woodbury's identity
    replaces a new inverse, unless the rank is too high. The scores of images whose class has no
    others are 0 and mean nothing. The arguments are those of `left_out_scores`.
    """
    rotated_means = statistics.means @ statistics.eigenvectors
    present = statistics.counts > 0
    centre = rotated_means[present].mean(axis=0)
    num_views, dim = views.shape[1:]
    traces = [statistics.trace_of_variance(ridge) for ridge in ridges]
    scores = np.zeros((len(ridges), len(views), len(present)))
    for places in groups_of(copies):
        label = labels[places[0]]
        rotated = views[places].reshape(-1, dim) @ statistics.eigenvectors
        num_taken, counts = len(rotated), statistics.counts.copy()
        counts[label] -= num_taken
        if not counts[label]:
            continue
        if num_taken > dim:
            out = np.isin(np.arange(len(views)), places)
            scores[:, places] = scores_without(out, views, labels, copies, statistics, ridges)
            continue
        means = rotated_means.copy()
        difference = rotated - means[label]
        means[label] -= difference.sum(axis=0) / counts[label]
        # With δ the views minus their class's mean, the scatter loses δᵀδ and, as the mean moves,
        # (Σδ)ᵀ(Σδ) over the number of views that are left.
        mixing = np.eye(num_taken) + 1 / counts[label]
        lost = np.linalg.cholesky(mixing).T @ difference
        trace = statistics.trace - float((lost**2).sum())
        changes, factors = lost, np.full(num_taken, -1.0)
        if statistics.between:
            # B loses the old mean, gains the new one, and is about another centre.
            moved = (means[present] - centre).mean(axis=0)
            rows = [rotated_means[label] - centre, means[label] - centre, moved]
            signs = np.array([-1.0, 1.0, -float(present.sum())])
            changes = np.concatenate([lost, rows])
            factors = np.concatenate([factors, statistics.between * signs])
        queries, squared_means = rotated[::num_views], means**2
        # The image's own class, which has fewer images than before, would else win too rarely.
        left = statistics.num_different.copy()
        left[label] -= 1
        shares = inverse_counts(left)
        for found, ridge, of_variance in zip(scores, ridges, traces, strict=True):
            inverse = 1 / (statistics.eigenvalues + ridge_of(ridge, trace, int(counts.sum())))
            weighted = changes * inverse
            small = np.linalg.solve(
                np.eye(len(factors)) + factors[:, None] * (weighted @ changes.T), np.diag(-factors)
            )
            of_means, of_queries = weighted @ means.T, weighted @ queries.T
            products = (queries * inverse) @ means.T + of_queries.T @ small @ of_means
            squares = squared_means @ inverse + (of_means * (small @ of_means)).sum(axis=0)
            found[places] = dim * products + biases(dim * squares - of_variance * shares, present)
    return scores
