"""GDA against its formula in float64, and its leave-one-out scores against refits."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax.methods.gda import GDA, Statistics, leave_one_out
from tests.methods.checks import FewShot, clustered, unit

LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])


def formula(views, labels, num_classes, ridge):
    """Returns W and b from a plain inverse, with NumPy's own covariance."""
    means = np.stack([views[labels == c].mean(axis=0) for c in range(num_classes)])
    centred = views - means[labels]
    dim, covariance = views.shape[1], np.cov(centred.T)
    scatter = (len(views) - 1) * covariance + ridge * np.trace(covariance) * np.eye(dim)
    precision = dim * np.linalg.inv(scatter)
    bias = np.log(1 / num_classes) - np.diag(means @ precision @ means.T) / 2
    return precision @ means.T, bias


def views_of(few_shot):
    passes = [few_shot.plain(), *(few_shot.augmented(epoch) for epoch in range(10))]
    return unit(np.stack(passes, axis=1))


@pytest.fixture
def few_shot():
    queries = np.repeat(np.arange(3), 6)
    validation = (clustered(queries, seed=1), queries)
    return FewShot(clustered(LABELS), LABELS, validation)


@pytest.mark.parametrize("rule", ["accuracy", "likelihood"])
def test_logits_are_the_formula(clip, text_features, few_shot, rule):
    model = GDA(clip, text_features, LABELS, rule)
    model.initialise(few_shot)
    alpha, ridge = model.facts()["gda_weight"], model.facts()["gda_ridge"]
    assert ridge == 1 or rule == "likelihood"
    views = views_of(few_shot)
    kernel, bias = formula(views.reshape(-1, 16), np.repeat(LABELS, 11), 3, ridge)
    features = clustered(np.repeat(np.arange(3), 4), seed=2)
    query = unit(features)
    text = float(clip.logit_scale) * query @ np.asarray(text_features, np.float64).T
    expected = text + alpha * (query @ kernel + bias)
    found = model(jnp.asarray(features), None)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("labels", [LABELS, np.array([0, 0, 0, 1, 1, 1, 1, 2, 3])])
def test_leaving_an_image_out_equals_a_fit_without_it_where_class_means_are_scattered(labels):
    views = views_of(FewShot(clustered(LABELS), LABELS))
    num_classes = int(labels.max()) + 1
    found = leave_one_out(views, labels, Statistics.of(views, labels, num_classes, 1.5), 4.0)
    for place in range(len(labels)):
        rest = np.delete(views, place, axis=0), np.delete(labels, place)
        kernel, bias = Statistics.of(*rest, num_classes, 1.5).classifier(4.0)
        np.testing.assert_allclose(found[place], views[place, 0] @ kernel + bias, rtol=1e-8)


@pytest.mark.parametrize("spread", [1.0, 1e-6])
@pytest.mark.parametrize("labels", [[0, 0, 1, 2], [0, 0, 1]])
def test_leaving_the_only_companion_out_leaves_no_scatter(labels, spread):
    views = unit(clustered(labels).astype(np.float64))[:, None]
    views[1] = unit(views[0] + spread * views[1])
    labels = np.array(labels)
    found = leave_one_out(views, labels, Statistics.of(views, labels, 3, 0.1), 16.0)
    for place in (0, 1):
        rest = np.delete(views, place, axis=0), np.delete(labels, place)
        kernel, bias = Statistics.of(*rest, 3, 0.1).classifier(16.0)
        np.testing.assert_allclose(found[place], views[place, 0] @ kernel + bias, rtol=1e-6)
    assert np.abs(found[:2, np.unique(labels)]).max() < 100


@pytest.mark.parametrize("ridge", [0.0625, 1.0, 16.0])
def test_leaving_an_image_out_equals_a_fit_without_it(few_shot, ridge):
    views = views_of(few_shot)
    found = leave_one_out(views, LABELS, Statistics.of(views, LABELS, 3), ridge)
    for place in range(len(LABELS)):
        rest = np.delete(views, place, axis=0).reshape(-1, 16)
        kernel, bias = formula(rest, np.repeat(np.delete(LABELS, place), 11), 3, ridge)
        np.testing.assert_allclose(found[place], views[place, 0] @ kernel + bias, rtol=1e-8)


def test_held_out_logits_are_those_of_fits_without_each_image(clip, text_features, few_shot):
    model = GDA(clip, text_features, LABELS, "likelihood")
    model.initialise(few_shot)
    found = model.held_out_logits()
    np.testing.assert_array_equal(found.labels, LABELS)
    alpha, ridge = model.facts()["gda_weight"], model.facts()["gda_ridge"]
    views = views_of(few_shot)
    own = leave_one_out(views, LABELS, Statistics.of(views, LABELS, 3), ridge)
    text = float(clip.logit_scale) * views[:, 0] @ np.asarray(text_features, np.float64).T
    np.testing.assert_allclose(found.logits, text + alpha * own, rtol=1e-4, atol=1e-3)


def test_a_class_without_an_image_is_not_predicted_and_one_image_is_enough(clip, text_features):
    features = clustered([0, 2])
    model = GDA(clip, text_features, np.array([0, 2]), "likelihood")
    model.initialise(FewShot(features, [0, 2]))
    scores = model.contributions(jnp.asarray(features), None)["image_cache"]
    assert np.asarray(scores).argmax(axis=1).tolist() == [0, 2]
    assert len(model.held_out_logits().labels) == 0  # no class has two images


def test_equal_views_make_it_a_nearest_mean_classifier(clip, text_features):
    few_shot = FewShot(clustered([0, 1, 2]), [0, 1, 2])
    few_shot.augmented = lambda epoch: few_shot.plain()
    model = GDA(clip, text_features, few_shot.labels, "accuracy")
    model.initialise(few_shot)
    scores = model.contributions(jnp.asarray(few_shot.plain()), None)["image_cache"]
    assert np.asarray(scores).argmax(axis=1).tolist() == [0, 1, 2]
