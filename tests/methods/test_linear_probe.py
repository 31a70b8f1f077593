"""The linear probe: it minimises its objective and finds C by the documented search."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import linear_probe
from fgvpl_jax.methods.linear_probe import (
    LIKELY_CS,
    LinearProbe,
    choose_c,
    gradient_norm,
    most_likely_c,
    solve,
)


def problem(num_classes, seed=0, per_class=8, dim=6):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    centres = rng.normal(size=(num_classes, dim))
    return (centres[labels] + rng.normal(size=(len(labels), dim))).astype(np.float32), labels


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize(("c", "dim"), [(1e-4, 6), (0.3, 6), (100.0, 6), (1e6, 192)])
def test_the_gradient_of_the_regularised_objective_vanishes(num_classes, c, dim):
    """Checks the gradient at the stored float32 weights."""
    features, labels = problem(num_classes, dim=dim)
    solution = [w.astype(np.float32) for w in solve(features, labels, c, num_classes)]
    kernel, bias = (weights.astype(np.float64) for weights in solution)
    x = features.astype(np.float64)
    logits = x @ kernel + bias
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    residual = probabilities - np.eye(num_classes)[labels]
    # The gradient of mean cross-entropy + ‖kernel‖² / (2 C N). For two classes, the norm of one
    # vector is penalised, the difference of the columns; each column's share is half of it.
    share = 2 if num_classes == 2 else 1
    by_kernel = x.T @ residual / len(x) + share * kernel / (c * len(x))
    by_bias = residual.mean(axis=0)
    norm = np.sqrt((by_kernel**2).sum() + (by_bias**2).sum())
    assert norm <= 1e-6
    assert gradient_norm(features, labels, *solution, c) == pytest.approx(norm, rel=1e-6)
    assert (logits.argmax(axis=1) == labels).mean() > 1.5 / num_classes


@pytest.mark.parametrize("c", [1e-3, 10.0])
def test_features_with_a_large_common_part_are_solved_as_well(c):
    """Features like CLIP's: a norm of 20, most of it from a part that all share."""
    features, labels = problem(10, per_class=8, dim=192)
    features = features / 10 + np.float32(20 / np.sqrt(192))
    solution = [w.astype(np.float32) for w in solve(features, labels, c, 10)]
    assert gradient_norm(features, labels, *solution, c) <= 1e-6


def test_a_class_without_an_image_is_never_predicted():
    features, labels = problem(3)
    kernel, bias = solve(features, labels * 2, 1.0, 6)
    logits = features @ kernel + bias
    assert set(logits.argmax(axis=1)) <= {0, 2, 4}
    assert np.isfinite(logits).all()


def test_c_is_found_by_halving_towards_the_better_end(monkeypatch):
    """The accuracy of a fake solver peaks at C = 300 on a plateau from 100 to 3000."""
    tried = []

    def fake(features, labels, c, num_classes):
        tried.append(c)
        right = 3 if 100 <= c <= 3000 else 2 if 10 < c < 1e5 else 1
        # Of four validation features, 1 to 4, the first `right` are class 1.
        return np.array([[0.0, -1.0]]), np.array([0.0, right + 0.5])

    monkeypatch.setattr(linear_probe, "solve", fake)
    labels = np.array([0, 1])
    queries = np.arange(1.0, 5.0)[:, None]
    c = choose_c(np.zeros((2, 1)), labels, queries, np.ones(4, int))
    assert tried[:7] == [1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6]
    # The best of the seven is 100. Of the ends 10 and 1000, 1000 is better, and so on.
    assert tried[7:10] == pytest.approx([10.0, 1000.0, 100.0])
    assert tried[10:12] == pytest.approx([10**2.5, 10**2.25])
    assert len(tried) == 7 + 2 + 7
    assert c == pytest.approx(100.0)


class FewShot:
    def __init__(self, features, labels, validation):
        self.labels, self._features, self._validation = labels, features, validation

    def plain(self):
        return self._features

    def augmented(self, epoch):
        pytest.fail("the linear probe uses no augmented image")

    def validation(self):
        return self._validation


def test_without_validation_c_is_one(clip, text_features):
    features, labels = problem(3, dim=16)
    probe = LinearProbe(clip, text_features, "accuracy")
    probe.initialise(FewShot(features, labels, None))
    facts = probe.facts()
    assert 0 < facts.pop("gradient_norm") <= 1e-6
    assert facts == {"inverse_regularisation": 1.0}
    kernel, bias = solve(features, labels, 1.0, 3)
    found = probe.logits(jnp.asarray(features), None)
    np.testing.assert_allclose(found, features @ kernel + bias, rtol=1e-4, atol=1e-4)


def test_one_class_is_refused(clip, text_features):
    probe = LinearProbe(clip, text_features, "accuracy")
    with pytest.raises(UserError, match="two classes"):
        probe.initialise(FewShot(np.ones((2, 16), np.float32), np.zeros(2, int), None))


def test_a_solver_that_stops_early_is_reported(clip, text_features, monkeypatch, caplog):
    monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 2)
    monkeypatch.setattr(linear_probe, "MAX_NEWTON_STEPS", 1)
    features, labels = problem(3, dim=16)
    probe = LinearProbe(clip, text_features, "accuracy")
    probe.initialise(FewShot(features, labels, None))
    assert probe.facts()["gradient_norm"] > 1e-3
    assert "with C = 1 after at most 3 steps" in caplog.text


def test_by_likelihood_c_is_the_nearest_to_one_that_is_not_clearly_worse(monkeypatch):
    """The margin of a fake solver is the same for all C up to 10, and on the wrong side above."""

    def fake(features, labels, c, num_classes):
        return np.array([[-1.0, 1.0]]) * (1.0 if 1 < c <= 10 else -1.0), np.zeros(2)

    monkeypatch.setattr(linear_probe, "solve", fake)
    queries, truth = np.array([[-1.0], [-2.0], [1.0], [2.0]] * 5), np.array([0, 0, 1, 1] * 5)
    assert most_likely_c(np.zeros((2, 1)), np.array([0, 1]), queries, truth) == 10
    monkeypatch.setattr(linear_probe, "solve", lambda *_: (np.zeros((1, 2)), np.zeros(2)))
    assert most_likely_c(np.zeros((2, 1)), np.array([0, 1]), queries, truth) == LIKELY_CS[0] == 1
