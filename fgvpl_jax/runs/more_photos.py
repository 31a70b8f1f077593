"""Estimates whether more photos would help, from the support images alone."""

import numpy as np

from fgvpl_jax.evaluation import LearningCurve, learning_curve
from fgvpl_jax.runs.run import Run

MOST_PHOTOS = 20_000  # with more, the fits would take minutes


def learning_curve_of(run: Run) -> LearningCurve | None:
    """Returns the learning curve of a quick classifier; None with too few or very many photos.

    Its features are those of CLIP's frozen image encoder, whatever the run's method reads: they
    cost one forward pass per photo, where training costs many. Of a user's own photos that are
    copies of one another only the first one is used.
    """
    support = run.few_shot.support
    if len(support) > MOST_PHOTOS:
        return None
    places = np.unique(support.first_copies)
    features, labels = run.support_features[places], support.labels[places]
    text_features = np.asarray(run.text_features, np.float64)
    zero_shot_logits = float(run.clip.logit_scale) * features @ text_features.T
    return learning_curve(features, zero_shot_logits, labels, run.config.seed)
