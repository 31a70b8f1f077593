import numpy as np
import pytest

from fgvpl_jax.evaluation import answers_of, read_answers

# Rows of softmax 1/2, 1/4, 1/4 and 1/5, 4/5, 0+.
LOGITS = np.log(np.array([[2.0, 1.0, 1.0], [1.0, 4.0, 1e-30]])).astype(np.float32)


def made(temperature=1.0):
    return answers_of(
        LOGITS,
        LOGITS[::-1],
        np.array([2, 1]),
        np.array([5, 9]),
        temperature=temperature,
        class_names=("a", "b", "ĉ"),
    )


def test_answers_are_the_largest_probabilities():
    answers = made(temperature=0.5)  # squares: 4 of 6 and 16 of 17
    assert answers.predicted.tolist() == [0, 1]
    assert answers.confidence == pytest.approx([0.5, 0.8])
    assert answers.confidence_tempered == pytest.approx([4 / 6, 16 / 17])
    assert answers.zero_shot_predicted.tolist() == [1, 0]
    assert answers.zero_shot_confidence == pytest.approx([0.8, 0.5])


def test_answers_are_read_as_they_were_written(tmp_path):
    answers = made()
    np.savez(tmp_path / "predictions.npz", **answers._asdict())
    again = read_answers(tmp_path / "predictions.npz")
    assert all(np.array_equal(x, y) for x, y in zip(answers, again, strict=True))
    assert again.class_names.tolist() == ["a", "b", "ĉ"]
