"""Accuracy and calibration, selection on validation only."""

from fgvpl_jax.evaluation.answers import Answers, answers_of, read_answers
from fgvpl_jax.evaluation.calibration import fit_temperature
from fgvpl_jax.evaluation.evaluator import Evaluator, Predictions, Selection
from fgvpl_jax.evaluation.mask_iou import MaskIoU, mask_iou
from fgvpl_jax.evaluation.metrics import Scores, score

__all__ = [
    "Answers",
    "Evaluator",
    "MaskIoU",
    "Predictions",
    "Scores",
    "Selection",
    "answers_of",
    "fit_temperature",
    "mask_iou",
    "read_answers",
    "score",
]
