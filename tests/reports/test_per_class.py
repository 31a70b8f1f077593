import numpy as np
import pytest

from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.reports.per_class import (
    class_accuracies,
    confusion_matrix,
    reliability,
    worst_confusions,
)


def predictions(labels, predicted):
    columns = dict.fromkeys(SavedPredictions._fields, np.zeros(len(labels), np.float32))
    columns["labels"], columns["predicted"] = np.array(labels), np.array(predicted)
    integers = ("indices", "zero_shot_predicted")
    columns |= {name: np.zeros(len(labels), np.int32) for name in integers}
    return SavedPredictions(**(columns | {"class_names": np.array(["a", "b", "c", "d"])}))


def test_confusions_are_summed_over_runs():
    runs = [predictions([0, 0, 1, 2], [0, 1, 1, 0]), predictions([0, 0, 1, 2], [1, 1, 1, 2])]
    confusion = confusion_matrix(runs)
    assert confusion.tolist() == [[1, 3, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert class_accuracies(confusion)[:3].tolist() == [0.25, 1.0, 0.5]
    assert np.isnan(class_accuracies(confusion)[3])  # class d has no test image
    assert worst_confusions(confusion, 5) == [(0, 1, 3, 0.75), (2, 0, 1, 0.5)]
    assert worst_confusions(confusion, 1) == [(0, 1, 3, 0.75)]


def test_reliability_by_hand():
    # Bins of 1/15: 0.5 is in the eighth, 0.9 and 0.92 in the fourteenth, 1.0 in the last.
    confidence = np.array([0.5, 0.5, 0.9, 0.92, 1.0])
    found = reliability(confidence, np.array([True, False, True, False, True]))
    filled = np.flatnonzero(found.share)
    assert filled.tolist() == [7, 13, 14]
    assert found.confidence[filled] == pytest.approx([0.5, 0.91, 1.0])
    assert found.accuracy[filled] == pytest.approx([0.5, 0.5, 1.0])
    assert found.share[filled] == pytest.approx([0.4, 0.4, 0.2])
    assert found.ece == pytest.approx(0.4 * 0.41)
    assert np.isnan(found.accuracy[0])
