"""One classifier of every label against the rest, compared with scikit-learn and NumPy."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.multi_label import (
    LABEL_METHODS,
    choose_candidate,
    fit_kernel_ridge,
    fit_linear_probe,
    fit_sigmoid,
    fit_svm,
    label_method,
    losses,
    smoothed,
)


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    truth = rng.random((60, 4)) < 0.3
    features = truth @ rng.normal(size=(4, 12)) + rng.normal(size=(60, 12)) + 3
    return features.astype(np.float32), truth


def unit64(features):
    exact = features.astype(np.float64)
    return exact / np.linalg.norm(exact, axis=1, keepdims=True)


def test_linear_probe_is_one_versus_rest_logistic_regression(photos):
    features, truth = photos
    x = unit64(features)
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).sum())
    reference = OneVsRestClassifier(LogisticRegression(C=3.0, tol=1e-9, max_iter=9999))
    expected = reference.fit(x, truth).decision_function(x)
    scorer = fit_linear_probe(features, truth, {"inverse_regularisation": 3.0})
    np.testing.assert_allclose(scorer.values(features), expected, atol=1e-4)


def test_svm_is_one_versus_rest_svc(photos):
    features, truth = photos
    x = unit64(features)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    expected = OneVsRestClassifier(SVC()).fit(x, truth).decision_function(x)
    np.testing.assert_allclose(fit_svm(features, truth, {}).values(features), expected, atol=1e-6)


def test_kernel_ridge_is_that_of_scikit_learn(photos):
    features, truth = photos
    x, mean = unit64(features), truth.mean(axis=0)
    choices = {"kernel_sharpness": 2.0, "kernel_regularisation": 0.5}
    expected = KernelRidge(alpha=0.5, kernel="rbf", gamma=1.0).fit(x, truth - mean).predict(x)
    scorer = fit_kernel_ridge(features, truth, choices)
    np.testing.assert_allclose(scorer.values(features), expected + mean, atol=1e-9)


@pytest.mark.parametrize("name", LABEL_METHODS)
def test_a_label_that_no_photo_or_every_photo_has_is_the_same_for_all(name, photos):
    features, truth = photos
    truth = truth.copy()
    truth[:, 1], truth[:, 2] = False, True
    method = label_method(name)
    values = method.fit(features, truth, method.grid[0]).values(features)
    assert np.ptp(values[:, 1:3], axis=0) == pytest.approx(0, abs=1e-9)
    assert (values[:, 2] > values[:, 1]).all()
    assert np.isfinite(values).all()


def test_sigmoid_has_the_lowest_smoothed_loss(photos):
    _, truth = photos
    rng = np.random.default_rng(1)
    values = 2 * truth + rng.normal(size=truth.shape)
    found = fit_sigmoid(values, truth)

    def loss(slope, intercept):
        p = 1 / (1 + np.exp(-(slope * values + intercept)))
        targets = smoothed(truth)
        return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum()

    best = loss(*found)
    for slope, intercept in ((1e-2, 0), (-1e-2, 0), (0, 1e-2), (0, -1e-2)):
        assert loss(found.slope + slope, found.intercept + intercept) > best
    p = found.probabilities(values)
    expected = -np.log(np.where(truth, p, 1 - p)).sum(axis=1)
    np.testing.assert_allclose(losses(found, values, truth), expected)


def test_sigmoid_of_values_that_are_never_wrong_is_not_certain():
    truth = np.eye(5, dtype=bool)
    p = fit_sigmoid(truth.astype(float), truth).probabilities(truth.astype(float))
    assert p.max() == pytest.approx(6 / 7, abs=1e-3)
    assert p.min() == pytest.approx(1 / 22, abs=1e-3)


def test_the_first_of_equally_good_candidates_is_chosen(photos):
    _, truth = photos
    rng = np.random.default_rng(2)
    good, noise = 2.0 * truth, rng.normal(size=truth.shape)
    assert choose_candidate(np.stack([noise, good, 5 * good]), truth).candidate == 1
    assert choose_candidate(noise[None], truth).candidate == 0


def test_many_photos_leave_no_choice():
    method = label_method("linear_probe")
    assert len(method.candidates(4096)) == 7
    assert method.candidates(4097) == [{"inverse_regularisation": 10.0}]


def test_other_methods_are_refused():
    message = "fg_vpl cannot .*: set method to one of kernel_ridge_plain, linear_probe, svm"
    with pytest.raises(UserError, match=message):
        label_method("fg_vpl")
