"""The GDA pool against scikit-learn, a float64 transcription and another solver."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from fgvpl_jax.methods import gda_pool
from fgvpl_jax.methods.gda_pool import (
    BETWEEN,
    FIRST_RIDGE,
    PENALTY,
    CalibrationPhotos,
    GDAPool,
    fitted,
)
from fgvpl_jax.methods.held_out import HeldOutLogits
from tests.methods.checks import FewShot, clustered, task_of, unit

LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
DIM, NUM_PATCHES = 16, 4
NONE = np.empty(0, np.int64)
EACH = np.arange(10)
NAMES = ("image", "object", "patches")


def packed(labels, seed=0):
    """Returns rows of three features, an attention map and an object mask."""
    kinds = [clustered(labels, spread=1 + kind, seed=seed + kind) for kind in range(3)]
    rng = np.random.default_rng(seed)
    attention = rng.uniform(size=(len(labels), NUM_PATCHES)).astype(np.float32)
    return np.concatenate([*kinds, attention, attention > 0.5], axis=1).astype(np.float32)


def views_of(few_shot, kind):
    """Returns unit features of one kind, the plain view first."""
    passes = [few_shot.plain(), *(few_shot.augmented(epoch) for epoch in range(10))]
    columns = slice(kind * DIM, (kind + 1) * DIM)
    return unit(np.stack([features[:, columns] for features in passes], axis=1))


def covariance(views, labels, ridge):
    """Returns the covariance of the discriminant's inverse, per image, with ρ = 0.1 per view."""
    flat, own = views.reshape(-1, DIM), np.repeat(labels, views.shape[1])
    means = np.stack([flat[own == c].mean(axis=0) for c in np.unique(labels)])
    within = np.cov((flat - means[np.searchsorted(np.unique(labels), own)]).T) * (len(flat) - 1)
    apart = means - means.mean(axis=0)
    scatter = within + 0.1 * views.shape[1] * apart.T @ apart
    scatter += ridge * np.trace(within) / (len(flat) - 1) * np.eye(DIM)
    return scatter / len(labels)


class Given:
    """A covariance estimator of scikit-learn that estimates nothing."""

    def __init__(self, covariance_):
        self.covariance_ = covariance_

    def fit(self, features):
        return self


def discriminant(views, labels, ridge):
    """Returns scikit-learn's discriminant with equal priors."""
    num_classes = len(np.unique(labels))
    found = LinearDiscriminantAnalysis(
        solver="lsqr",
        priors=np.full(num_classes, 1 / num_classes),
        covariance_estimator=Given(covariance(views, labels, ridge)),
    )
    return found.fit(views.reshape(-1, DIM), np.repeat(labels, views.shape[1]))


def half_of_excess(views, labels, ridge, left_out=None):
    """Returns what scikit-learn's discriminant lacks: ½ tr(P V) (1/n - the mean of 1/n).

    `left_out` is the place of an image that n does not count.
    """
    images = views.mean(axis=1)
    means = np.stack([images[labels == c].mean(axis=0) for c in np.unique(labels)])
    apart = images - means[labels]
    variance = apart.T @ apart / (len(images) - len(means))
    shares = 1 / np.bincount(labels if left_out is None else np.delete(labels, left_out))
    trace = np.trace(np.linalg.inv(covariance(views, labels, ridge)) @ variance)
    return trace * (shares - shares.mean()) / 2


def centred(logits):
    """Returns logits without the constant that all classes share, which has no effect."""
    logits = np.asarray(logits, np.float64)
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.fixture
def few_shot():
    queries = np.repeat(np.arange(3), 4)
    return FewShot(packed(LABELS), LABELS, (packed(queries, seed=10), queries))


@pytest.mark.parametrize("num_views", [1, 11])
def test_a_discriminant_is_that_of_scikit_learn(few_shot, num_views, monkeypatch):
    monkeypatch.setattr(CalibrationPhotos, "temperature_and_loss", lambda *_: (1.0, 0.0))
    views = views_of(few_shot, 0)[:, :num_views]
    query = unit(clustered(np.repeat(np.arange(3), 5), seed=3))
    photos = CalibrationPhotos(LABELS, EACH, NONE)
    expert = fitted(views, np.empty((0, DIM)), photos, (4.0,), 3)
    expected = discriminant(views, LABELS, 4.0).decision_function(query)
    expected += half_of_excess(views, LABELS, 4.0)
    found = query @ expert.kernel + expert.bias
    np.testing.assert_allclose(centred(found), centred(expected), rtol=1e-8)


def test_logits_are_the_pool_of_scikit_learns_discriminants(clip, text_features, few_shot):
    model = GDAPool(clip, task_of(text_features, LABELS), "likelihood")
    model.initialise(few_shot)
    facts = model.facts()
    weights, ridges = facts["pool_weights"], facts["pool_ridges"]
    queries = np.repeat(np.arange(3), 4)
    features = packed(queries, seed=20)
    scale = float(clip.logit_scale)
    texts = np.asarray(text_features, np.float64)
    expected = facts["pool_text_scale"] * scale * unit(features[:, :DIM]) @ texts.T
    parts = []
    for kind, name in enumerate(NAMES):
        query = unit(features[:, kind * DIM : (kind + 1) * DIM])
        validation = unit(few_shot.validation()[0][:, kind * DIM : (kind + 1) * DIM])
        for suffix, num_views in (("", 11), (" without augmented passes", 1)):
            views = views_of(few_shot, kind)[:, :num_views]
            ridge = ridges[name + suffix]
            more = half_of_excess(views, LABELS, ridge)
            held_out = []
            for place in range(len(LABELS)):
                rest = np.delete(views, place, axis=0), np.delete(LABELS, place)
                found = discriminant(*rest, ridge).decision_function(views[place, :1])
                own = half_of_excess(views, LABELS, ridge, place)
                held_out.append(found[0] * len(LABELS) / (len(LABELS) - 1) + own)
            fit = discriminant(views, LABELS, ridge)
            judged = HeldOutLogits(np.array(held_out), fit.decision_function(validation) + more)
            photos = CalibrationPhotos(LABELS, EACH, queries)
            temperature, _ = photos.temperature_and_loss(judged)
            own = fit.decision_function(query) + more
            expected += weights[name + suffix] * own / temperature
            parts.append((weights[name + suffix], judged.support / temperature))
    found = model(jnp.asarray(features), None)
    tolerance = 2e-3 * np.abs(expected).max()
    np.testing.assert_allclose(centred(found), centred(expected), atol=tolerance)
    held_out = sum(weight * logits for weight, logits in parts)
    plain = unit(few_shot.plain()[:, :DIM])
    held_out += facts["pool_text_scale"] * scale * plain @ texts.T
    own = model.held_out_logits()
    np.testing.assert_array_equal(own.labels, LABELS)
    np.testing.assert_allclose(centred(own.logits), centred(held_out), atol=tolerance)


def test_an_absent_class_changes_neither_temperature_nor_weights(few_shot):
    views = views_of(few_shot, 0)
    validation = np.concatenate([views[:, 1], views[:1, 2]])
    held_out, found = {}, {}
    for name, labels, num_classes in (("all", LABELS, 3), ("one absent", 2 * LABELS, 5)):
        # The last validation photo shows class 3, which has no support image.
        validated = np.append(labels, 3) if num_classes == 5 else labels
        photos = CalibrationPhotos(labels, EACH, validated)
        queries = validation if num_classes == 5 else validation[:-1]
        found[name] = fitted(views, queries, photos, (1.0, 4.0), num_classes)
        held_out[name] = photos.weights([found[name].held_out] * 3)
    ours, expected = found["one absent"], found["all"]
    assert ours.ridge == expected.ridge
    np.testing.assert_allclose(ours.kernel[:, ::2], expected.kernel, rtol=1e-8)
    np.testing.assert_allclose(held_out["one absent"], held_out["all"], rtol=1e-6)


def test_weights_are_those_of_another_solver():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 5)
    parts = [
        HeldOutLogits(strength * np.eye(3)[labels] + rng.normal(size=(15, 3)), np.empty((0, 3)))
        for strength in (2.0, 0.5, 0.0)
    ]
    found = CalibrationPhotos(labels, np.arange(len(labels)), NONE).weights(parts)
    first = np.array([0.5, 0.5, 1.0])

    def loss(weights):
        logits = sum(w * part.support for w, part in zip(weights, parts, strict=True))
        targets = np.full((15, 3), 1 / 17 / 2)
        targets[np.arange(15), labels] = 16 / 17
        fit = -(targets * log_softmax(logits, axis=1)).sum()
        return fit + PENALTY * ((weights - first) ** 2).sum()

    expected = minimize(loss, first, bounds=[(0, None)] * 3, method="trust-constr").x
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert found[0] > 0.5 > found[1]


def test_zero_shot_clip_has_a_weight_only_if_it_is_better_than_guessing():
    labels = np.repeat(np.arange(3), 20)
    photos = CalibrationPhotos(labels, np.arange(len(labels)), NONE)
    noise = np.random.default_rng(2).normal(size=(60, 3))
    nothing = np.empty((0, 3))
    assert photos.text_weight(HeldOutLogits(np.zeros((60, 3)), nothing)) == 0
    assert photos.text_weight(HeldOutLogits(-3 * np.eye(3)[labels] + noise, nothing)) < 1e-3
    sure = photos.text_weight(HeldOutLogits(20 * (np.eye(3)[labels] + noise), nothing))
    assert 0 < sure < 0.2  # its logits are 20 times too large


@pytest.mark.parametrize(
    ("labels", "copies", "is_chosen"),
    [
        ([0, 0, 1, 1, 2, 2, 3], range(7), True),  # three of four classes have two images
        ([0, 0, 1, 1, 2, 3], range(6), False),
        ([0, 0, 1, 1, 2, 2, 3], [0, 1, 2, 3, 4, 4, 5], False),  # a copy is no second image
    ],
)
def test_a_ridge_is_chosen_if_most_classes_have_two_images(
    clip, monkeypatch, labels, copies, is_chosen
):
    monkeypatch.setattr(gda_pool, "RIDGES", (1.0, 4.0))
    labels = np.array(labels)
    model = GDAPool(clip, task_of(jnp.eye(4, DIM), labels, np.array(copies)), "likelihood")
    model.initialise(FewShot(packed(labels), labels))
    ridges = {*model.facts()["pool_ridges"].values()}
    assert ridges <= {1.0, 4.0} if is_chosen else ridges == {FIRST_RIDGE}


def test_copies_do_not_make_zero_shot_clip_surer():
    labels = np.repeat(np.arange(3), 4)
    logits = np.eye(3)[labels] + np.random.default_rng(3).normal(size=(12, 3))
    nothing = np.empty((0, 3))
    once = CalibrationPhotos(labels, np.arange(12), NONE).text_weight(
        HeldOutLogits(logits, nothing)
    )
    doubled = HeldOutLogits(np.tile(logits, (9, 1)), nothing)
    copies = np.tile(np.arange(12), 9)
    photos = CalibrationPhotos(np.tile(labels, 9), copies, NONE)
    assert photos.text_weight(doubled) == pytest.approx(once) and once > 0


def test_one_image_of_each_class_is_enough_and_an_absent_class_is_not_predicted(
    clip, text_features
):
    features = packed([0, 2])
    model = GDAPool(clip, task_of(text_features, np.array([0, 2])), "likelihood")
    model.initialise(FewShot(features, [0, 2]))
    assert np.asarray(model(jnp.asarray(features), None)).argmax(axis=1).tolist() == [0, 2]
    assert len(model.held_out_logits().labels) == 0
    weights = [*model.facts()["pool_weights"].values()]
    assert weights == pytest.approx([1 / 6] * 6 + [1], abs=1e-4)


def test_one_image_of_each_class_without_augmented_passes_gives_nearest_means():
    means = unit(packed([0, 1, 2])[:, :DIM])
    photos = CalibrationPhotos(np.arange(3), np.arange(3), NONE)
    expert = fitted(means[:, None], means[:0], photos, (16.0,), 3)
    apart = means - means.mean(axis=0)
    expected = np.linalg.solve((BETWEEN * apart.T @ apart + np.eye(DIM)) / 3, means.T)
    np.testing.assert_allclose(expert.kernel, expected, rtol=1e-8)
    bias = -np.einsum("ke,ek->k", means, expected) / 2
    np.testing.assert_allclose(expert.bias, bias - bias.mean() + expert.bias.mean(), rtol=1e-8)
