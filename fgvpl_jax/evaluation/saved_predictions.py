"""A run's predictions for the test images, reduced to what is small enough to keep."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.evaluation.metrics import log_softmax


class SavedPredictions(NamedTuple):
    """One entry per readable test image, in the order of the split; stored as an .npz file.

    Per-class accuracy, confusions, calibration and paired comparisons need nothing else.

    Attributes:
        indices: Positions of the images in the test split, by which two runs are paired.
        labels: True classes.
        predicted: Class with the largest logit; the smallest index wins ties.
        confidence: Probability of the predicted class.
        confidence_tempered: Probability of the predicted class with the run's temperature.
        zero_shot_predicted: Class that plain CLIP predicts from the same pixels.
        zero_shot_confidence: Probability of plain CLIP's predicted class.
        class_names: Class names in label order.
    """

    indices: Int[np.ndarray, "N"]
    labels: Int[np.ndarray, "N"]
    predicted: Int[np.ndarray, "N"]
    confidence: Float[np.ndarray, "N"]
    confidence_tempered: Float[np.ndarray, "N"]
    zero_shot_predicted: Int[np.ndarray, "N"]
    zero_shot_confidence: Float[np.ndarray, "N"]
    class_names: np.ndarray


def to_saved_predictions(
    logits: Float[np.ndarray, "N k"],
    zero_shot_logits: Float[np.ndarray, "N k"],
    labels: Int[np.ndarray, "N"],
    indices: Int[np.ndarray, "N"],
    *,
    temperature: float,
    class_names: tuple[str, ...],
) -> SavedPredictions:
    """Reduces logits to predicted classes and their probabilities.

    Args:
        logits: Logits of the trained model.
        zero_shot_logits: Logits of plain CLIP.
        labels: True classes.
        indices: Positions of the images in the test split.
        temperature: Divisor of the logits for `confidence_tempered`.
        class_names: Class names in label order.
    """
    return SavedPredictions(
        indices=indices.astype(np.int32),
        labels=labels.astype(np.int32),
        predicted=logits.argmax(axis=1).astype(np.int32),
        confidence=_largest_probability(logits),
        confidence_tempered=_largest_probability(logits / temperature),
        zero_shot_predicted=zero_shot_logits.argmax(axis=1).astype(np.int32),
        zero_shot_confidence=_largest_probability(zero_shot_logits),
        class_names=np.array(class_names),
    )


def read_saved_predictions(file: Path) -> SavedPredictions:
    """Reads the predictions that a run saved.

    Raises:
        OSError: If the file cannot be read.
        ValueError, KeyError: If the file does not hold saved predictions.
    """
    with np.load(file) as saved:
        return SavedPredictions(**{name: saved[name] for name in SavedPredictions._fields})


def _largest_probability(logits: Float[np.ndarray, "N k"]) -> Float[np.ndarray, "N"]:
    return np.exp(log_softmax(logits.astype(np.float64)).max(axis=1)).astype(np.float32)
