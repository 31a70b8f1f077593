"""GDA against its formula in float64, and its leave-one-out scores against refits."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax.methods import gda
from fgvpl_jax.methods.fitted_once import ABSENT_CLASS_MARGIN
from fgvpl_jax.methods.gda import GDA, Statistics, inverse_counts, leave_one_out, left_out_scores
from fgvpl_jax.methods.held_out import is_judged, tempered_losses
from tests.methods.checks import FewShot, clustered, task_of, unit

LABELS = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2])
EACH = np.arange(9)


def formula(views, labels, num_classes, ridge, of_variance=None):
    """Returns W, b and tr(P V) from a plain inverse, with NumPy's own covariance.

    tr(P V) is `of_variance` if that is given, and computed from images of eleven views otherwise.
    """
    means = np.stack([views[labels == c].mean(axis=0) for c in range(num_classes)])
    centred = views - means[labels]
    dim, covariance = views.shape[1], np.cov(centred.T)
    scatter = (len(views) - 1) * covariance + ridge * np.trace(covariance) * np.eye(dim)
    precision = dim * np.linalg.inv(scatter)
    squares = np.diag(means @ precision @ means.T)
    if of_variance is None:
        images = views.reshape(-1, 11, dim).mean(axis=1)
        apart = images - means[labels[::11]]
        variance = apart.T @ apart / (len(images) - num_classes)
        of_variance = np.trace(precision @ variance)
    shares = 1 / np.bincount(labels[::11])
    excess = of_variance * (shares - shares.mean())
    return precision @ means.T, np.log(1 / num_classes) - (squares - excess) / 2, of_variance


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
    model = GDA(clip, task_of(text_features, LABELS), rule)
    model.initialise(few_shot)
    alpha, ridge = model.facts()["gda_weight"], model.facts()["gda_ridge"]
    assert ridge == 1 or rule == "likelihood"
    views = views_of(few_shot)
    kernel, bias, _ = formula(views.reshape(-1, 16), np.repeat(LABELS, 11), 3, ridge)
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
    whole = Statistics.of(views, labels, num_classes, 1.5)
    found = leave_one_out(views, labels, np.arange(len(labels)), whole, [4.0])[0]
    is_alone = np.bincount(labels)[labels] == 1
    assert (found[is_alone] == 0).all()
    for place in np.flatnonzero(~is_alone):
        rest = np.delete(views, place, axis=0), np.delete(labels, place)
        without = Statistics.of(*rest, num_classes, 1.5)
        expected = scores_with_excess(without, whole, 4.0, views[place, 0])
        np.testing.assert_allclose(found[place], expected, rtol=1e-8)


@pytest.mark.parametrize("between", [0.0, 1.5])
def test_copies_are_left_out_together(between):
    views = views_of(FewShot(clustered(LABELS), LABELS))[:, :3]
    copies = np.array([0, 1, 0, 2, 3, 3, 3, 4, 4])
    whole = Statistics.of(views, LABELS, 3, between, copies)
    found = leave_one_out(views, LABELS, copies, whole, [4.0])[0]
    for place in range(7):
        rest = copies != copies[place]
        without = Statistics.of(views[rest], LABELS[rest], 3, between, copies[rest])
        expected = scores_with_excess(without, whole, 4.0, views[place, 0])
        np.testing.assert_allclose(found[place], expected, rtol=1e-8)
    assert (found[7:] == 0).all()  # the class has copies of one image alone


def scores_with_excess(statistics, whole, ridge, query):
    """Returns scores of a classifier whose excess has the tr(P V) of another one."""
    kernel, bias = statistics.classifier(ridge)
    present = statistics.counts > 0
    trace = whole.trace_of_variance(ridge) - statistics.trace_of_variance(ridge)
    bias += trace * inverse_counts(statistics.num_different) / 2
    if not present.all():
        bias[~present] = bias[present].min() - ABSENT_CLASS_MARGIN
    return query @ kernel + bias


def test_a_group_with_more_views_than_features_is_left_out_by_a_new_fit():
    views = views_of(FewShot(clustered(LABELS), LABELS))  # 22 of the first group, 16 features
    copies = np.array([0, 1, 0, 2, 3, 4, 5, 6, 7])
    whole = Statistics.of(views, LABELS, 3)
    found = leave_one_out(views, LABELS, copies, whole, [1.0, 4.0])
    rest = Statistics.of(views[copies != 0], LABELS[copies != 0], 3)
    kernel, bias = rest.classifier(4.0)
    np.testing.assert_allclose(found[1, [0, 2]], views[[0, 2], 0] @ kernel + bias)


def test_ten_fits_of_very_many_images_are_like_leaving_one_out(monkeypatch):
    labels = np.append(np.repeat(np.arange(5), 20), 5)  # the last class has one image
    views = views_of(FewShot(clustered(labels, spread=4.0), labels))[:, :1]
    views, labels, copies = (np.repeat(x, 2, axis=0) for x in (views, labels, np.arange(101)))
    whole = Statistics.of(views, labels, 6, copies=copies)
    args = views, labels, copies, whole, [1.0, 4.0]
    expected = left_out_scores(*args)
    np.testing.assert_array_equal(expected, leave_one_out(*args))
    monkeypatch.setattr(gda, "MOST_COST", 0)
    found = left_out_scores(*args)
    assert (found[:, 200:] == 0).all()
    known = is_judged(labels, copies)
    for ours, exact in zip(found[:, known, :5], expected[:, known, :5], strict=True):
        (temperature, losses), (best, least) = (
            tempered_losses(x, labels[known]) for x in (ours, exact)
        )
        assert temperature == pytest.approx(best, rel=0.15)
        assert losses.mean() == pytest.approx(least.mean(), rel=0.05)


def test_copies_change_the_excess_as_little_as_the_classifier():
    labels = np.repeat(np.arange(3), [4, 2, 3])
    views = views_of(FewShot(clustered(labels), labels))
    once = Statistics.of(views, labels, 3)
    twice = Statistics.of(
        np.tile(views, (2, 1, 1)), np.tile(labels, 2), 3, copies=np.tile(np.arange(9), 2)
    )
    # The scatter of all views, and with it 1 / P, has doubled.
    ridge = 1.0 * (2 * once.num_views - 1) / (once.num_views - 1)
    np.testing.assert_allclose(twice.excess(ridge), once.excess(1.0) / 2, rtol=1e-8)


@pytest.mark.parametrize("spread", [1.0, 1e-6])
@pytest.mark.parametrize("labels", [[0, 0, 1, 2], [0, 0, 1]])
def test_leaving_the_only_companion_out_leaves_no_scatter(labels, spread):
    views = unit(clustered(labels).astype(np.float64))[:, None]
    views[1] = unit(views[0] + spread * views[1])
    labels = np.array(labels)
    whole = Statistics.of(views, labels, 3, 0.1)
    found = leave_one_out(views, labels, np.arange(len(labels)), whole, [16.0])[0]
    for place in (0, 1):
        rest = np.delete(views, place, axis=0), np.delete(labels, place)
        expected = scores_with_excess(Statistics.of(*rest, 3, 0.1), whole, 16.0, views[place, 0])
        np.testing.assert_allclose(found[place], expected, rtol=1e-6)
    assert np.abs(found[:2, np.unique(labels)]).max() < 100


@pytest.mark.parametrize("ridge", [0.0625, 1.0, 16.0])
def test_leaving_an_image_out_equals_a_fit_without_it(few_shot, ridge):
    views = views_of(few_shot)
    found = leave_one_out(views, LABELS, EACH, Statistics.of(views, LABELS, 3), [ridge])[0]
    of_variance = formula(views.reshape(-1, 16), np.repeat(LABELS, 11), 3, ridge)[2]
    for place in range(len(LABELS)):
        rest = np.delete(views, place, axis=0).reshape(-1, 16)
        kernel, bias, _ = formula(
            rest, np.repeat(np.delete(LABELS, place), 11), 3, ridge, of_variance
        )
        np.testing.assert_allclose(found[place], views[place, 0] @ kernel + bias, rtol=1e-8)


def test_the_excess_is_0_with_equally_many_images_and_higher_for_fewer():
    labels = np.repeat(np.arange(3), 4)
    views = views_of(FewShot(clustered(labels), labels))
    assert (Statistics.of(views, labels, 3).excess(1.0) == 0).all()
    views, labels = views[3:], labels[3:]  # one image of the first class
    excess = Statistics.of(views, labels, 4).excess(1.0)
    assert excess[0] > 0 > excess[1] == excess[2]
    assert excess.sum() == pytest.approx(0) and excess[3] == 0  # the last class is absent
    single = Statistics.of(views[[0, 1, 5]], np.arange(3), 3)
    assert (single.excess(1.0) == 0).all()


def test_held_out_logits_are_those_of_fits_without_each_image(clip, text_features, few_shot):
    model = GDA(clip, task_of(text_features, LABELS), "likelihood")
    model.initialise(few_shot)
    found = model.held_out_logits()
    np.testing.assert_array_equal(found.labels, LABELS)
    alpha, ridge = model.facts()["gda_weight"], model.facts()["gda_ridge"]
    views = views_of(few_shot)
    own = leave_one_out(views, LABELS, EACH, Statistics.of(views, LABELS, 3), [ridge])[0]
    text = float(clip.logit_scale) * views[:, 0] @ np.asarray(text_features, np.float64).T
    np.testing.assert_allclose(found.logits, text + alpha * own, rtol=1e-4, atol=1e-3)


def test_a_class_without_an_image_is_not_predicted_and_one_image_is_enough(clip, text_features):
    features = clustered([0, 2])
    model = GDA(clip, task_of(text_features, np.array([0, 2])), "likelihood")
    model.initialise(FewShot(features, [0, 2]))
    scores = model.contributions(jnp.asarray(features), None)["image_cache"]
    assert np.asarray(scores).argmax(axis=1).tolist() == [0, 2]
    assert len(model.held_out_logits().labels) == 0  # no class has two images
    # Nothing judges how sure the classifier is: images are counted, not their 22 views.
    assert model.facts()["gda_weight"] == pytest.approx(2 / features.shape[1])


def test_equal_views_make_it_a_nearest_mean_classifier(clip, text_features):
    few_shot = FewShot(clustered([0, 1, 2]), [0, 1, 2])
    few_shot.augmented = lambda epoch: few_shot.plain()
    model = GDA(clip, task_of(text_features, few_shot.labels), "accuracy")
    model.initialise(few_shot)
    scores = model.contributions(jnp.asarray(few_shot.plain()), None)["image_cache"]
    assert np.asarray(scores).argmax(axis=1).tolist() == [0, 1, 2]
