"""What a run said of each test image, small enough to keep."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.evaluation.metrics import log_softmax


class Answers(NamedTuple):
    """One entry for each readable test image, in the split's order; stored as an .npz.

    Per-class accuracy, confusions, calibration and paired comparisons need nothing else.

    Attributes:
        indices: Places of the images in the test split: the pairing of two runs.
        labels: True classes.
        predicted: The class of the largest logit; the smallest index wins ties.
        confidence: Its probability.
        confidence_tempered: The same with the run's temperature.
        zero_shot_predicted: Plain CLIP's answer to the same pixels.
        zero_shot_confidence: Its probability.
        class_names: In label order.
    """

    indices: Int[np.ndarray, "N"]
    labels: Int[np.ndarray, "N"]
    predicted: Int[np.ndarray, "N"]
    confidence: Float[np.ndarray, "N"]
    confidence_tempered: Float[np.ndarray, "N"]
    zero_shot_predicted: Int[np.ndarray, "N"]
    zero_shot_confidence: Float[np.ndarray, "N"]
    class_names: np.ndarray


def answers_of(
    logits: Float[np.ndarray, "N k"],
    zero_shot_logits: Float[np.ndarray, "N k"],
    labels: Int[np.ndarray, "N"],
    indices: Int[np.ndarray, "N"],
    *,
    temperature: float,
    class_names: tuple[str, ...],
) -> Answers:
    """Reduces logits to answers.

    Args:
        logits: The trained model's.
        zero_shot_logits: Plain CLIP's.
        labels: True classes.
        indices: Places of the images in the test split.
        temperature: What the logits are divided by before `confidence_tempered`.
        class_names: In label order.
    """
    return Answers(
        indices=indices.astype(np.int32),
        labels=labels.astype(np.int32),
        predicted=logits.argmax(axis=1).astype(np.int32),
        confidence=_largest_probability(logits),
        confidence_tempered=_largest_probability(logits / temperature),
        zero_shot_predicted=zero_shot_logits.argmax(axis=1).astype(np.int32),
        zero_shot_confidence=_largest_probability(zero_shot_logits),
        class_names=np.array(class_names),
    )


def read_answers(file: Path) -> Answers:
    """Reads what a run has kept.

    Raises:
        OSError: If the file cannot be read.
        ValueError, KeyError: If it is not of this kind.
    """
    with np.load(file) as saved:
        return Answers(**{name: saved[name] for name in Answers._fields})


def _largest_probability(logits: Float[np.ndarray, "N k"]) -> Float[np.ndarray, "N"]:
    return np.exp(log_softmax(logits.astype(np.float64)).max(axis=1)).astype(np.float32)
