"""Compares scores with numbers computed by hand."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import score


def test_scores_equal_those_computed_by_hand():
    logits = np.log(np.array([[0.7, 0.3], [0.6, 0.4], [0.2, 0.8], [0.9, 0.1]]))
    scores = score(logits, np.array([0, 1, 1, 0]))
    assert scores.accuracy == 0.75
    assert scores.mean_class_accuracy == pytest.approx((1.0 + 0.5) / 2)
    assert scores.nll == pytest.approx(-np.log([0.7, 0.4, 0.8, 0.9]).mean())
    # Each image is alone in its bin: |1 - .7|, |0 - .6|, |1 - .8|, |1 - .9|.
    assert scores.ece == pytest.approx((0.3 + 0.6 + 0.2 + 0.1) / 4)


def test_calibration_error_averages_within_a_bin():
    # Four images with confidence 0.75, three of them correct, are perfectly calibrated.
    logits = np.log(np.array([[0.75, 0.25]] * 4))
    assert score(logits, np.array([0, 0, 0, 1])).ece == pytest.approx(0.0, abs=1e-12)


def test_a_class_without_images_is_left_out_of_the_mean():
    scores = score(np.eye(3)[[0, 1]], np.array([0, 1]))
    assert scores.mean_class_accuracy == 1.0


def test_huge_logits_do_not_overflow():
    scores = score(np.array([[1e4, -1e4]]), np.array([1]))
    assert scores.nll == pytest.approx(2e4)
