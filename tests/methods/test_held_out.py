"""Selection rules: what they count, and which of equal candidates they take."""

import numpy as np
import pytest

from fgvpl_jax.methods.held_out import (
    HeldOutLogits,
    SelectionRule,
    first_of_the_best,
    groups_of,
    is_judged,
    smoothed_losses,
)

NO_LABELS = np.empty(0, int)


def test_only_photos_with_a_companion_count():
    labels, each = np.array([0, 0, 1, 2, 2]), np.arange(5)
    assert is_judged(labels, each).tolist() == [True, True, False, True, True]
    rule = SelectionRule("likelihood", labels, each, np.array([1]))
    logits = HeldOutLogits(np.zeros((5, 3)), np.zeros((1, 3)))
    assert len(rule.losses(logits)) == 5
    assert len(SelectionRule("accuracy", labels, each, np.array([1])).losses(logits)) == 1


def test_copies_judge_once_and_are_no_companions():
    labels, copies = np.array([0, 0, 0, 1, 1, 2, 2]), np.array([3, 1, 3, 4, 4, 7, 6])
    expected = [True, True, False, False, False, True, True]
    assert is_judged(labels, copies).tolist() == expected
    rule = SelectionRule("likelihood", labels, copies, NO_LABELS)
    assert len(rule.losses(HeldOutLogits(np.zeros((7, 3)), np.zeros((0, 3))))) == 4
    assert [group.tolist() for group in groups_of(copies)] == [[1], [0, 2], [3, 4], [6], [5]]


def test_without_a_held_out_photo_the_first_candidate_is_taken():
    for name in ("accuracy", "likelihood"):
        rule = SelectionRule(name, np.array([0, 1]), np.array([0, 1]), NO_LABELS)
        losses = rule.losses(HeldOutLogits(np.zeros((2, 2)), np.zeros((0, 2))))
        assert rule.choose([losses, losses]) == 0


def test_accuracy_counts_validation_photos_and_takes_the_first_of_equals():
    rule = SelectionRule("accuracy", np.array([0, 1]), np.array([0, 1]), np.array([0, 1, 0]))
    guesses = ([0, 0, 1], [0, 1, 1], [0, 0, 0])
    losses = [
        rule.losses(HeldOutLogits(np.zeros((2, 2)), np.eye(2)[list(guess)])) for guess in guesses
    ]
    assert [loss.sum() for loss in losses] == [2, 1, 1]
    assert rule.choose(losses) == 1


def test_the_scale_of_logits_does_not_matter_to_the_likelihood():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 30)
    logits = 2 * np.eye(3)[labels] + rng.normal(size=(30, 3))
    rule = SelectionRule("likelihood", labels, np.arange(30), NO_LABELS)
    small, large = (
        rule.losses(HeldOutLogits(scale * logits, np.zeros((0, 3)))) for scale in (0.05, 200.0)
    )
    np.testing.assert_allclose(small, large, rtol=1e-3)


def test_smoothed_losses_by_hand():
    """With N = 2 photos and k = 2 classes, the targets are 3/4 and 1/4."""
    logits = np.array([[np.log(4.0), 0.0], [0.0, 0.0]])
    expected = [-(0.75 * np.log(2 / 3) + 0.25 * np.log(1 / 3)), np.log(2)]
    np.testing.assert_allclose(smoothed_losses(logits, np.array([0, 1]))(2.0), expected)


@pytest.mark.parametrize(("gap", "chosen"), [(0.02, 0), (0.5, 1)])
def test_a_candidate_within_one_standard_error_of_the_best_counts_as_equal(gap, chosen):
    rng = np.random.default_rng(0)
    best = rng.normal(size=100) ** 2
    noise = rng.normal(size=100)
    noise -= noise.mean()
    losses = np.stack([best + gap + noise, best, best + 2 + noise])
    assert first_of_the_best(losses) == chosen
    assert first_of_the_best(losses, standard_errors=0.0) == 1
