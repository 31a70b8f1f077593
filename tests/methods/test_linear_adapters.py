"""RLA, CLAP and LP++ against float64 NumPy with gradients by central differences."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from fgvpl_jax.methods.clap import CLAP
from fgvpl_jax.methods.linear_adapter import STEPS, Problem, fitted
from fgvpl_jax.methods.lp_plus_plus import LPPlusPlus, step_sizes
from fgvpl_jax.methods.rla import RLA
from tests.compiled import call, run
from tests.methods.checks import FewShot, clustered, task_of, unit

SCALE = 5.0
LABELS = np.array([0, 0, 1, 1, 2])
COSINE = 0.5 * (1 + np.cos(np.pi * np.arange(STEPS) / STEPS))


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    views = unit(clustered(np.tile(LABELS, 3), dim=4).reshape(3, 5, 4))
    return views, unit(rng.normal(size=(3, 4)))


def found(method, problem):
    views, texts = (jnp.asarray(array, jnp.float32) for array in problem)
    arrays = Problem(views, jnp.asarray(LABELS, jnp.int32), texts, jnp.float32(SCALE))
    return np.asarray(fitted(method, arrays)), arrays


def cross_entropy(logits):
    return -log_softmax(logits, axis=1)[np.arange(len(LABELS)), LABELS].mean()


def gradient(loss, matrix, step=1e-6):
    result = np.zeros_like(matrix)
    for place in np.ndindex(*matrix.shape):
        moved = np.zeros_like(matrix)
        moved[place] = step
        result[place] = (loss(matrix + moved) - loss(matrix - moved)) / (2 * step)
    return result


def test_rla_is_adam_on_cross_entropy_and_distance_to_the_identity(problem):
    views, texts = problem
    matrix, first, second = np.eye(4), np.zeros((4, 4)), np.zeros((4, 4))
    for step in range(STEPS):

        def loss(matrix, features=views[step % 3]):
            distance = ((matrix - np.eye(4)) ** 2).sum() / (5 / 3)  # λ = 1 / shots
            return cross_entropy(SCALE * unit(features @ matrix) @ texts.T) + distance

        slope = gradient(loss, matrix)
        first = 0.9 * first + 0.1 * slope
        second = 0.999 * second + 0.001 * slope**2
        bias = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
        matrix = matrix - 1e-3 * COSINE[step] * (first / bias[0]) / (
            np.sqrt(second / bias[1]) + 1e-8
        )
    matrix_found, arrays = found(RLA, problem)
    assert np.abs(matrix - np.eye(4)).max() > 0.02
    np.testing.assert_allclose(matrix_found, matrix, atol=2e-4)
    np.testing.assert_allclose(
        RLA.adapter_logits(jnp.asarray(matrix), arrays.views[0], arrays),
        SCALE * unit(views[0] @ matrix) @ texts.T,
        rtol=1e-4,
        atol=1e-5,
    )


def test_clap_is_sgd_on_cross_entropy_and_weighted_distances_to_the_texts(problem):
    views, texts = problem
    right = softmax(SCALE * views @ texts.T, axis=2)[:, np.arange(5), LABELS].mean(axis=0)
    multipliers = np.array([right[c == LABELS].mean() for c in range(3)])
    matrix, momentum = texts.copy(), np.zeros_like(texts)
    for step in range(STEPS):

        def loss(matrix, features=views[step % 3]):
            distances = ((matrix - texts) ** 2).sum(axis=1)
            return (
                cross_entropy(SCALE * features @ unit(matrix).T) + (multipliers * distances).mean()
            )

        momentum = 0.9 * momentum + gradient(loss, matrix)
        matrix = matrix - 0.1 * COSINE[step] * momentum
    assert np.abs(matrix - texts).max() > 0.1
    np.testing.assert_allclose(found(CLAP, problem)[0], matrix, rtol=1e-3, atol=1e-3)


def test_lp_plus_plus_descends_in_turn_with_steps_of_one_over_the_curvature(problem):
    views, texts = problem
    of_w = 1 / (0.5 * max(np.linalg.norm(view, 2) ** 2 / 5 for view in views))
    of_alpha = 1 / (0.5 * ((views @ texts.T) ** 2).mean(axis=1).max())
    w, alpha = np.zeros((3, 4)), np.full((3, 1), SCALE)
    for step in range(STEPS):
        features = views[step % 3]

        def loss(w, alpha, features=features):
            return cross_entropy(features @ (w + alpha * texts).T)

        before = loss(w, alpha)
        if step % 2 == 0:
            w = w - of_w * gradient(lambda w: loss(w, alpha), w)  # noqa: B023
        else:
            alpha = alpha - of_alpha * gradient(lambda a: loss(w, a), alpha)  # noqa: B023
        assert loss(w, alpha) <= before + 1e-9
    matrix, arrays = found(LPPlusPlus, problem)
    np.testing.assert_allclose(step_sizes(arrays), (of_w, of_alpha), rtol=1e-4)
    np.testing.assert_allclose(matrix[:, :-1], w, rtol=1e-2, atol=2e-3)
    np.testing.assert_allclose(matrix[:, -1:], alpha, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("method", [RLA, CLAP, LPPlusPlus])
def test_it_begins_at_zero_shot_clip_and_holds_images_out(method, clip, text_features):
    labels = np.repeat([0, 1, 2], 6)
    features = clustered(labels)
    model = method(clip, task_of(text_features, labels), "accuracy")
    zero_shot = run(method.zero_shot_logits, model, features)
    np.testing.assert_allclose(call(model, features, None), zero_shot, rtol=1e-4, atol=1e-4)
    model.initialise(FewShot(features, labels))
    own, held_out = np.asarray(call(model, features, None)), model.held_out_logits()
    np.testing.assert_array_equal(held_out.labels, labels)
    own_loss, held_out_loss = (
        -log_softmax(logits, axis=1)[np.arange(18), labels].mean()
        for logits in (own, held_out.logits)
    )
    assert own_loss < held_out_loss
    # The second fold holds the second and the last image of every class.
    out = np.arange(18) % 6 % 5 == 1
    rest = method(clip, task_of(text_features, labels[~out]), "accuracy")
    kept = FewShot(features[~out], labels[~out])
    all_images = FewShot(features, labels)
    kept.augmented = lambda epoch: all_images.augmented(epoch)[~out]
    rest.initialise(kept)
    expected = np.asarray(call(rest, features, None))[out]
    np.testing.assert_allclose(held_out.logits[out], expected, rtol=1e-3, atol=1e-3)
