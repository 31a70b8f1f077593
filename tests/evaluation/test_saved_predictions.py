"""Conversion of logits to saved predictions, and their file."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import read_saved_predictions, to_saved_predictions

# Rows whose softmax is (1/2, 1/4, 1/4) and (1/5, 4/5, almost 0).
LOGITS = np.log(np.array([[2.0, 1.0, 1.0], [1.0, 4.0, 1e-30]])).astype(np.float32)


def two_predictions(temperature=1.0):
    return to_saved_predictions(
        LOGITS,
        LOGITS[::-1],
        np.array([2, 1]),
        np.array([5, 9]),
        temperature=temperature,
        class_names=("a", "b", "ĉ"),
    )


def test_saved_predictions_hold_the_most_probable_class():
    # At temperature 0.5 the weights above are squared: 4 of 6 and 16 of 17.
    predictions = two_predictions(temperature=0.5)
    assert predictions.predicted.tolist() == [0, 1]
    assert predictions.confidence == pytest.approx([0.5, 0.8])
    assert predictions.confidence_tempered == pytest.approx([4 / 6, 16 / 17])
    assert predictions.zero_shot_predicted.tolist() == [1, 0]
    assert predictions.zero_shot_confidence == pytest.approx([0.8, 0.5])


def test_predictions_are_read_as_they_were_written(tmp_path):
    predictions = two_predictions()
    np.savez(tmp_path / "predictions.npz", **predictions._asdict())
    again = read_saved_predictions(tmp_path / "predictions.npz")
    assert all(np.array_equal(x, y) for x, y in zip(predictions, again, strict=True))
    assert again.class_names.tolist() == ["a", "b", "ĉ"]
