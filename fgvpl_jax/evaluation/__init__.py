"""Accuracy and calibration of a trained model; selection uses validation images only."""

from fgvpl_jax.evaluation.calibration import helpful_temperature
from fgvpl_jax.evaluation.evaluator import Evaluator, Predictions, Selection
from fgvpl_jax.evaluation.learning_curve import LearningCurve, learning_curve
from fgvpl_jax.evaluation.mask_iou import MaskIoU, mask_iou
from fgvpl_jax.evaluation.metrics import Scores, score, share_interval
from fgvpl_jax.evaluation.none_of_these import NoneOfThese
from fgvpl_jax.evaluation.saved_predictions import (
    SavedPredictions,
    read_saved_predictions,
    to_saved_predictions,
)

__all__ = [
    "Evaluator",
    "LearningCurve",
    "MaskIoU",
    "NoneOfThese",
    "Predictions",
    "SavedPredictions",
    "Scores",
    "Selection",
    "helpful_temperature",
    "learning_curve",
    "mask_iou",
    "read_saved_predictions",
    "score",
    "share_interval",
    "to_saved_predictions",
]
