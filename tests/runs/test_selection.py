"""The photos that the temperature is fitted on, and runs with too few photos to fit it."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import score
from fgvpl_jax.methods import LabelledLogits
from fgvpl_jax.runs.selection import FEWEST_TO_CALIBRATE, calibration


def overconfident(count):
    """Returns logits that are right for two of three photos, and confident for all."""
    labels = np.arange(count) % 2
    guesses = np.where(np.arange(count) % 3 < 2, labels, 1 - labels)
    return LabelledLogits(np.eye(2)[guesses] * 8, labels)


def test_calibration_records_its_photos_and_its_improvement():
    photos = overconfident(300)
    found = calibration({"folds": photos})
    assert found["temperature_fitted_on"] == "folds"
    assert found["fitted_ece_before"] == pytest.approx(score(*photos).ece)
    assert found["fitted_ece_before"] > 0.3
    assert found["fitted_ece_after"] < 0.05


def test_no_temperature_is_fitted_on_too_few_photos():
    assert calibration({"validation": overconfident(FEWEST_TO_CALIBRATE - 1)}) == {}
    assert calibration({"validation": None}) == {}
    assert calibration({"validation": overconfident(FEWEST_TO_CALIBRATE)})


def test_all_held_out_photos_count():
    few = overconfident(FEWEST_TO_CALIBRATE // 2)
    empty = LabelledLogits(np.empty((0, 2)), np.empty(0, int))
    found = calibration({"held-out support": few, "validation": few, "folds": empty})
    assert found["temperature_fitted_on"] == "held-out support and validation"
