"""Section 3.2: from features to logits, using the class texts and the support images."""

from fgvpl_jax.recognition.feature_adapter import FeatureAdapter, normalize
from fgvpl_jax.recognition.head import TwoPathwayHead, TwoPathways, total
from fgvpl_jax.recognition.known_classes import KnownClasses, known_score
from fgvpl_jax.recognition.text_features import class_text_features
from fgvpl_jax.recognition.visual_cache import VOTE_RULES, VisualCache

__all__ = [
    "VOTE_RULES",
    "FeatureAdapter",
    "KnownClasses",
    "TwoPathwayHead",
    "TwoPathways",
    "VisualCache",
    "class_text_features",
    "known_score",
    "normalize",
    "total",
]
