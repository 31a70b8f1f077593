"""One classifier of every label against the rest, compared with scikit-learn and NumPy."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
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
    least_slope,
    losses,
    out_of_fold_values,
    smoothed,
)
from tests.cases import further

# The linear probe takes twice as long as the others together.
CASES = (
    *(name for name in LABEL_METHODS if name != "linear_probe"),
    *further("linear_probe"),
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


def few_photos(seed, signal):
    """Returns features and labels of 10 to 12 photos, and of 40 others, with the folds of the few.

    Args:
        seed: Seed of the photos.
        signal: Length of the features of a label, compared with that of the noise.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(10, 13))
    truth = rng.random((count + 40, 4)) < 0.3
    truth[[0, count], :], truth[[1, count + 1], :] = True, False
    features = signal * truth @ rng.normal(size=(4, 12)) + rng.normal(size=(count + 40, 12)) + 3
    few = slice(None, count), slice(count, None)
    return *((features[part], truth[part]) for part in few), np.arange(count) % 4


@pytest.mark.parametrize("name", CASES)
def test_few_photos_never_turn_the_order_of_the_labels_around(name):
    method = label_method(name)
    candidates = method.candidates(12)[:3]
    for seed in range(30):
        (features, truth), (others, labels), folds = few_photos(seed, signal=1.0)
        values = out_of_fold_values(method, candidates, features, truth, folds)
        candidate, sigmoid = choose_candidate(values, truth)
        found = method.fit(features, truth, candidates[candidate]).values(others)
        assert average_precision_score(labels, sigmoid.probabilities(found)) == pytest.approx(
            average_precision_score(labels, found)
        )


@pytest.mark.parametrize("name", CASES)
def test_out_of_fold_values_of_noise_do_not_depend_on_the_labels(name):
    """With the intercepts of the folds, the mean correlations would be -0.16 to -0.48."""
    method = label_method(name)
    correlations = []
    for seed in range(40):
        (features, truth), _, folds = few_photos(seed, signal=0.0)
        values = out_of_fold_values(method, method.grid[:1], features, truth, folds)[0]
        correlations += [np.corrcoef(values[:, c], truth[:, c])[0, 1] for c in range(4)]
    assert np.mean(correlations) == pytest.approx(0, abs=0.1)


def test_the_slope_of_wrong_values_is_the_least_with_the_best_intercept(photos):
    _, truth = photos
    values = np.random.default_rng(3).normal(size=truth.shape) - truth
    found = fit_sigmoid(values, truth)
    assert found.slope == least_slope(values) > 0
    p = found.probabilities(values)
    assert p.mean() == pytest.approx(smoothed(truth).mean())
    assert np.ptp(p) < 0.02
    assert (p.ravel().argsort() == values.ravel().argsort()).all()


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
