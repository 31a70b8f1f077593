"""2SFS: its stages against a float64 recomputation, its logits and its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax.clip.layers import LayerNorm
from fgvpl_jax.methods.two_stage import TwoStage
from fgvpl_jax.training import TrainState, data_mesh, make_train_step, replicate, split_model
from fgvpl_jax.training.train_step import StepBatch, weighted_loss
from fgvpl_jax.variables import to_device
from tests.comparison import as_float64
from tests.compiled import call, run
from tests.methods.checks import CLASSES, TEMPLATE, assert_gradients_are_central_differences, unit

LABELS = np.array([0, 1, 2])


def new_model(clip, text_features, first_steps=3):
    return TwoStage(clip, CLASSES, TEMPLATE, text_features, first_steps=first_steps)


@pytest.fixture
def model(clip, text_features):
    return new_model(clip, text_features)


@pytest.fixture(scope="module")
def images(clip):
    rng = np.random.default_rng(0)
    shape = (3, clip.image_size, clip.image_size, 3)
    return to_device(rng.integers(0, 256, shape, dtype=np.uint8), None)


def test_it_begins_at_zero_shot_clip(model, images):
    expected = run(TwoStage.zero_shot_logits, model, images)
    np.testing.assert_allclose(call(model, images, None), expected, rtol=1e-6, atol=1e-6)
    training = run(TwoStage.training_logits, model, images, None)
    np.testing.assert_allclose(training, expected, rtol=1e-4, atol=1e-3)


def test_the_norms_the_classifier_and_the_count_are_trainable(model, clip):
    _, trainable, _ = split_model(model)
    paths = [path for path, _ in nnx.to_flat_state(trainable)]
    norms = [path for path in paths if path[0] in ("adapted_encoder", "adapted_text")]
    assert {path[-2] for path in norms} == {"norm1", "norm2", "pre_norm", "post_norm", "final_norm"}
    assert {path[-1] for path in norms} == {"scale", "bias"}
    layers = clip.vision.config.num_layers + clip.text.config.num_layers
    assert len(norms) == 2 * (2 * layers + 3)
    assert {path for path in paths if path not in norms} == {("classifier",), ("steps_left",)}
    assert not isinstance(clip.vision.pre_norm.scale, nnx.Param)  # the backbone is unchanged


class AdamW:
    """AdamW in float64 NumPy, with a cosine from 0.01 to 1e-6 and weight decay 0.5."""

    def __init__(self, num_steps):
        self.num_steps, self.step, self.first, self.second = num_steps, 0, 0.0, 0.0

    def __call__(self, weights, gradient):
        """Returns the weights after a step, from flat vectors."""
        rate = 1e-6 + (0.01 - 1e-6) / 2 * (1 + np.cos(np.pi * self.step / self.num_steps))
        self.step += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.step), self.second / (1 - 0.999**self.step)
        return weights - rate * (first / (np.sqrt(second) + 1e-8) + 0.5 * weights)


def norms_of(vision, text):
    """Returns the variables of a CLIP's LayerNorms."""
    modules = [node for tower in (vision, text) for _, node in nnx.iter_graph(tower)]
    norms = [node for node in modules if isinstance(node, LayerNorm)]
    return [getattr(norm, name) for norm in norms for name in ("scale", "bias")]


def first_stage(clip, images, num_steps):
    """Trains the LayerNorms of plain CLIP with the texts; returns its features of both kinds."""
    graphdef, state = nnx.split((clip.vision, clip.text))
    state = as_float64(state)
    norms = [np.asarray(norm[...]) for norm in norms_of(*nnx.merge(graphdef, state))]
    sizes = np.cumsum([norm.size for norm in norms])[:-1]
    texts = clip.tokenize([TEMPLATE.replace("{}", name.replace("_", " ")) for name in CLASSES])
    pixels = np.asarray(images, np.float64) * clip.rescale_factor
    pixels = (pixels - clip.image_mean) / clip.image_std

    def features(flat):
        vision, text = nnx.merge(graphdef, state, copy=True)
        for norm, values in zip(norms_of(vision, text), jnp.split(flat, sizes), strict=True):
            norm.set_value(values)
        return vision(jnp.asarray(pixels)), text(jnp.asarray(texts))

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradient(flat):
        found = features(flat)
        image, texts = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in found)
        logits = float(clip.logit_scale) * image @ texts.T
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(3), LABELS]), found

    optimizer, flat = AdamW(num_steps), np.concatenate(norms)
    for _ in range(num_steps):
        flat = optimizer(flat, np.asarray(gradient(flat)[0]))
    return [np.asarray(x) for x in gradient(flat)[1]]


def second_stage(image_features, classifier, logit_scale, num_steps):
    """Trains the classifier in closed formulas; returns it."""
    optimizer, features = AdamW(num_steps), unit(image_features)
    for _ in range(num_steps):
        norms = np.linalg.norm(classifier, axis=1, keepdims=True)
        weights = classifier / norms
        logits = logit_scale * features @ weights.T
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
        slope = logit_scale * (probabilities - np.eye(3)[LABELS]).T @ features / 3
        # The derivative of w / ‖w‖ removes the part along w.
        slope = (slope - (slope * weights).sum(1, keepdims=True) * weights) / norms
        flat = optimizer(classifier.ravel(), slope.ravel())
        classifier = flat.reshape(classifier.shape)
    return classifier


def test_the_stages_are_those_of_a_float64_recomputation(clip, text_features, images):
    """Three steps train the norms, two the classifier, which begins at the new text features."""
    with jax.enable_x64(True):
        model = new_model(clip, text_features)
        optimizer = TwoStage.optimizer(TwoStage.schedule(0.01, 5, 1), 0.5)
        graphdef, trainable, frozen = split_model(model)
        trainable, frozen = as_float64((trainable, frozen))
        mesh = data_mesh()
        step = make_train_step(graphdef, optimizer, mesh)
        state = replicate(mesh, TrainState(trainable, jax.jit(optimizer.init)(trainable)))
        batch = StepBatch(images, jnp.asarray(LABELS), to_device(np.ones(3)))
        norms, classifiers = [], []
        for _ in range(5):
            state, _ = step(state, frozen, None, {}, batch)
            norms.append(np.asarray(state.trainable.adapted_encoder.vision.post_norm.bias[...]))
            classifiers.append(np.asarray(state.trainable.classifier[...]))
        trained = nnx.merge(graphdef, state.trainable, frozen)
        image_features, texts = first_stage(clip, images, 3)
        np.testing.assert_array_equal(classifiers[0], classifiers[1])
        np.testing.assert_array_equal(norms[2], norms[4])  # the towers are frozen
        # The learning rates are float32.
        np.testing.assert_allclose(classifiers[2], unit(texts), rtol=1e-6, atol=1e-8)
        features = run(TwoStage.features, trained, images)
        np.testing.assert_allclose(features, image_features, rtol=1e-6, atol=1e-8)
        scale = float(clip.logit_scale)
        expected = second_stage(image_features, unit(texts), scale, 2)
        np.testing.assert_allclose(classifiers[4], expected, rtol=1e-6, atol=1e-8)
        expected_logits = scale * unit(image_features) @ unit(expected).T
        np.testing.assert_allclose(call(trained, images, None), expected_logits, rtol=1e-6)
        assert np.abs(expected - unit(texts)).max() > 1e-3


def test_each_stage_has_a_cosine_to_1e_6():
    schedule = TwoStage.schedule(2e-4, 10, 2)  # twelve and eight steps
    rates = [float(schedule(step)) for step in (0, 6, 11, 12, 16, 19)]
    middle = (2e-4 + 1e-6) / 2
    last = [1e-6 + (2e-4 - 1e-6) / 2 * (1 + np.cos(np.pi * (1 - 1 / n))) for n in (12, 8)]
    np.testing.assert_allclose(rates, [2e-4, middle, last[0], 2e-4, middle, last[1]], rtol=1e-5)
    assert TwoStage.schedule(2e-4, 1, 1).first_steps == 1  # a run of one step has no second stage


def test_gradients_of_the_first_stage(model, images):
    model.logits = lambda features, support: model.cosine_logits(
        features, model.adapted_text_features()
    )
    assert_gradients_are_central_differences(model, images, LABELS)


def test_no_gradient_of_the_towers_is_computed_in_the_second_stage(clip, text_features, images):
    model = new_model(clip, text_features, first_steps=0)
    graphdef, trainable, frozen = split_model(model)
    batch = StepBatch(images, jnp.asarray(LABELS), to_device(np.ones(3)))

    @jax.jit
    @jax.grad
    def gradients(trainable):
        merged = nnx.merge(graphdef, trainable, frozen)
        return weighted_loss(merged.training_logits(images, None), batch)[0]

    found = gradients(trainable)
    assert np.abs(np.asarray(found.pop("classifier")[...])).max() > 0
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("shots", "num_images", "epochs"), [(16, 160, 960), (1, 10, 300), (1, 1000, 10)]
)
def test_300_iterations_per_shot(shots, num_images, epochs):
    assert TwoStage.recipe("eurosat", shots, num_images).epochs == epochs
