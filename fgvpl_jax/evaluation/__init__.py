"""Accuracy and calibration, selection on validation only."""

from fgvpl_jax.evaluation.evaluator import Evaluator, Predictions, choose_cache_logit_weight
from fgvpl_jax.evaluation.metrics import Scores, score

__all__ = ["Evaluator", "Predictions", "Scores", "choose_cache_logit_weight", "score"]
