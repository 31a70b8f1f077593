"""Kernel ridge regression against scikit-learn, and its leave-one-out values against refits."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from sklearn.kernel_ridge import KernelRidge as Reference

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import kernel_ridge
from fgvpl_jax.methods.kernel_ridge import KernelRidge, num_passes, solve
from fgvpl_jax.methods.kernel_ridge_plain import PlainKernelRidge
from tests.methods.checks import FewShot, clustered, task_of, unit

LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
COUNTS = (4, 2, 3)


@pytest.fixture(params=[KernelRidge, PlainKernelRidge])
def method(request):
    return request.param


@pytest.fixture
def few_shot():
    queries = np.repeat(np.arange(3), 6)
    return FewShot(clustered(LABELS), LABELS, (clustered(queries, seed=1), queries))


def reference(model, few_shot, query, counts):
    """Returns the logits of scikit-learn's regression with the model's chosen values.

    `counts` are the images of each class, by which they are weighted.
    """
    facts, adds = model.facts(), model.adds_to_zero_shot
    passes = [few_shot.plain(), *(few_shot.augmented(epoch) for epoch in range(10))]
    keys = unit(np.stack(passes, axis=1)).reshape(-1, 16)
    targets = np.eye(3)[np.repeat(few_shot.labels, 11)]
    texts = float(model.logit_scale[...]) * np.asarray(model.text_features[...], np.float64).T
    if adds:
        targets = targets - softmax(keys @ texts, axis=1)
    # For unit vectors, 1 - cosine is half the squared distance.
    gamma, alpha = facts["kernel_sharpness"] / 2, facts["kernel_regularisation"]
    weights = np.repeat(np.mean(counts) / np.array(counts)[few_shot.labels], 11)
    regression = Reference(alpha=alpha, kernel="rbf", gamma=gamma).fit(keys, targets, weights)
    return adds * (query @ texts) + facts["kernel_weight"] * regression.predict(query)


@pytest.mark.parametrize("rule", ["accuracy", "likelihood"])
def test_logits_are_scikit_learns(clip, text_features, method, few_shot, rule):
    model = method(clip, task_of(text_features, LABELS), rule)
    model.initialise(few_shot)
    features = clustered(np.repeat(np.arange(3), 4), seed=2)
    expected = reference(model, few_shot, unit(features), COUNTS)
    np.testing.assert_allclose(model(jnp.asarray(features), None), expected, rtol=1e-3, atol=2e-3)


def test_held_out_logits_are_those_of_regressions_without_each_image(
    clip, text_features, method, few_shot
):
    model = method(clip, task_of(text_features, LABELS), "likelihood")
    model.initialise(few_shot)
    found = model.held_out_logits()
    for place in range(len(LABELS)):
        expected = reference(
            model, few_shot.without(place), unit(few_shot.plain()[place : place + 1]), COUNTS
        )
        np.testing.assert_allclose(found.logits[place], expected[0], rtol=1e-3, atol=1e-3)


def test_copies_are_left_out_together(clip, text_features, method, few_shot):
    copies = np.array([0, 1, 2, 2, 3, 4, 5, 6, 5])
    model = method(clip, task_of(text_features, LABELS, copies), "likelihood")
    model.initialise(few_shot)
    for places in ([2, 3], [6, 8]):
        rest = few_shot.without(places)
        expected = reference(model, rest, unit(few_shot.plain()[places]), COUNTS)
        found = model.held_out[...][np.array(places)]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_by_likelihood_more_regularisation_is_tried(
    clip, text_features, method, few_shot, monkeypatch
):
    tried = []

    def spy(keys, targets, settings, sizes, copies):
        tried.append(settings.regularisation)
        return solve(keys, targets, settings, sizes, copies)

    monkeypatch.setattr(kernel_ridge, "solve", spy)
    method(clip, task_of(text_features, LABELS), "accuracy").initialise(few_shot)
    assert sorted({*tried}) == pytest.approx([0.01, 0.1, 1.0])
    method(clip, task_of(text_features, LABELS), "likelihood").initialise(few_shot)
    assert max(tried) == pytest.approx(100)


def test_without_held_out_photos_the_first_values_stay(clip, text_features, method):
    model = method(clip, task_of(text_features, np.array([0, 2])), "likelihood")
    model.initialise(FewShot(clustered([0, 2]), [0, 2]))
    assert model.facts() == pytest.approx(
        {"kernel_sharpness": 1.0, "kernel_regularisation": 0.1, "kernel_weight": 10.0}
    )
    assert len(model.held_out_logits().labels) == 0


def test_many_images_have_fewer_views_and_the_first_values(clip, text_features, monkeypatch):
    assert [num_passes(n) for n in (10, 372, 400, 3000, 16_000)] == [10, 10, 9, 0, 0]
    monkeypatch.setattr(kernel_ridge, "MOST_KEYS", 20)
    labels = np.repeat([0, 1, 2], 7)
    model = KernelRidge(clip, task_of(text_features, labels), "likelihood")
    model.initialise(FewShot(clustered(labels), labels))
    assert model.keys.shape == (21, 16)
    facts = model.facts()
    assert facts["kernel_sharpness"] == 1
    assert facts["kernel_regularisation"] == pytest.approx(0.1)


def test_too_many_images_are_refused(clip, text_features, monkeypatch):
    monkeypatch.setattr(kernel_ridge, "MOST_IMAGES", 8)
    with pytest.raises(UserError, match="at most 8 training images, not 9: lower shots"):
        KernelRidge(clip, task_of(text_features, LABELS), "likelihood")


def test_the_plain_form_reads_no_class_name(clip, text_features, few_shot):
    model = PlainKernelRidge(clip, task_of(text_features, LABELS), "accuracy")
    model.initialise(few_shot)
    before = model(jnp.asarray(few_shot.plain()), None)
    model.text_features.set_value(-model.text_features[...])
    np.testing.assert_array_equal(model(jnp.asarray(few_shot.plain()), None), before)
