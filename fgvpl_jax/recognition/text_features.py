"""Text features of the class names: the zero-shot classification weights."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float, Float64

from fgvpl_jax.clip import CLIP
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import to_device

# Texts per call of the text tower; bounds memory at 1,000 classes × 7 templates.
BATCH_SIZE = 64


def class_text_features(
    clip: CLIP, class_names: Sequence[str], templates: Sequence[str]
) -> Float[Array, "k e"]:
    """Returns zero-shot weights w: L2-normalised per template, averaged, and L2-normalised again.

    Args:
        clip: Backbone whose tokenizer and text tower are used.
        class_names: One name per class; every `_` becomes a space.
        templates: Sentences that each contain one `{}` for the name.
    Returns:
        One unit vector per class, in the order of `class_names`.
    Raises:
        UserError: If there is no template, or a template does not contain exactly one `{}`.
    """
    if not templates:
        raise UserError(
            "no text template is given: set config.data.templates, "
            "for instance to ('a photo of a {}.',)"
        )
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"template {template!r} must hold exactly one {{}} for the class name")
    names = [name.replace("_", " ") for name in class_names]
    rows = clip.tokenize([t.replace("{}", n) for n in names for t in templates])
    padding = -len(rows) % BATCH_SIZE  # one shape, one compilation
    token_ids = np.pad(rows, ((0, padding), (0, 0)), mode="edge")
    batches = [
        clip.encode_text(token_ids[start : start + BATCH_SIZE])
        for start in range(0, len(token_ids), BATCH_SIZE)
    ]
    # On the host, where the few small operations need no compilation.
    features = np.concatenate([np.asarray(batch, np.float64) for batch in batches])[: len(rows)]
    means = _unit(features).reshape(len(names), len(templates), -1).mean(axis=1)
    return to_device(_unit(means))


def _unit(features: Float64[np.ndarray, "*b e"]) -> Float64[np.ndarray, "*b e"]:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
