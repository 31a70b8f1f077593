"""Checks that the tests of several methods share."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fgvpl_jax.methods import Task
from fgvpl_jax.training import split_model
from fgvpl_jax.training.train_step import StepBatch, weighted_loss
from tests.comparison import as_float64
from tests.compiled import call

CLASSES = ("red square", "green_circle", "b")
TEMPLATE = "a photo of a {}."
STEP = 1e-5


def assert_gradients_are_central_differences(model, inputs, labels, spread=0.05):
    """Checks the loss's gradient by every trainable variable, in float64.

    The variables are moved off their initial values first.
    """
    with jax.enable_x64(True):
        graphdef, trainable, frozen = split_model(model)
        trainable, frozen = as_float64((trainable, frozen))
        rng = np.random.default_rng(0)
        trainable = jax.tree.map(
            lambda x: np.asarray(x) + spread * rng.normal(size=x.shape), trainable
        )
        batch = as_float64(StepBatch(inputs, np.asarray(labels), np.ones(len(labels))))

        @jax.jit
        @jax.value_and_grad
        def loss(trainable):
            logits = nnx.merge(graphdef, trainable, frozen)(batch.inputs, None)
            return weighted_loss(logits, batch)[0]

        _, gradients = loss(trainable)
        leaves, structure = jax.tree.flatten(trainable)
        assert leaves
        names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(trainable)]
        for i, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = rng.normal(size=gradient.shape)

            def at(distance, i=i, direction=direction):
                moved = [x + distance * direction if j == i else x for j, x in enumerate(leaves)]
                return float(loss(jax.tree.unflatten(structure, moved))[0])

            numeric = (at(STEP) - at(-STEP)) / (2 * STEP)
            analytic = np.sum(np.asarray(gradient) * direction)
            assert gradient.dtype == jnp.float64
            # The absolute tolerance is for the keys of attention, whose effect nearly vanishes.
            np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-7, err_msg=names[i])


def cosine_logits_of(clip, vision, text, images):
    """Returns the logits of a CLIP whose towers were replaced, for the classes of these tests."""
    pixels = np.asarray(images, np.float32) * np.float32(clip.rescale_factor)
    pixels = ((pixels - clip.image_mean) / clip.image_std).astype(np.float32)
    texts = clip.tokenize([TEMPLATE.replace("{}", name.replace("_", " ")) for name in CLASSES])
    image_features, text_features = call(vision, pixels), call(text, texts)
    return float(clip.logit_scale) * unit(image_features) @ unit(text_features).T


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def task_of(text_features, labels, copies=None):
    """Returns a task of classes without names."""
    names = tuple(f"class {label}" for label in range(len(text_features)))
    return Task(names, text_features, np.asarray(labels), copies)


class FewShot:
    """Few-shot features whose augmented passes are noisy copies of the plain ones."""

    def __init__(self, features, labels, validation=None):
        self.labels, self._features, self._validation = np.asarray(labels), features, validation

    def plain(self):
        return self._features

    def augmented(self, epoch):
        noise = np.random.default_rng(epoch).normal(size=self._features.shape)
        return (self._features + 0.3 * noise).astype(np.float32)

    def validation(self):
        return self._validation

    def without(self, place):
        """Returns a copy without one image, which keeps the noise of the others."""
        rest = FewShot(np.delete(self._features, place, 0), np.delete(self.labels, place))
        rest.augmented = lambda epoch: np.delete(self.augmented(epoch), place, 0)
        return rest


def clustered(labels, dim=16, spread=1.0, seed=0):
    """Returns features around one centre per class."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(max(labels) + 1, dim))
    noise = rng.normal(size=(len(labels), dim))
    return (centres[np.asarray(labels)] + spread * noise).astype(np.float32)
