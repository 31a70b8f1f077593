"""Accuracy and calibration, selection on validation only."""

from fgvpl_jax.evaluation.calibration import fit_temperature
from fgvpl_jax.evaluation.evaluator import Evaluator, Predictions, Selection
from fgvpl_jax.evaluation.mask_iou import MaskIoU, mask_iou
from fgvpl_jax.evaluation.metrics import Scores, score

__all__ = [
    "Evaluator",
    "MaskIoU",
    "Predictions",
    "Scores",
    "Selection",
    "fit_temperature",
    "mask_iou",
    "score",
]
