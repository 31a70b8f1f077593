"""CoOp's texts against the text tower's features of the same sentences, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import load_clip
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.coop import NUM_CONTEXT, CoOp, coop_epochs
from fgvpl_jax.methods.optimizers import coop_cosine, coop_sgd
from fgvpl_jax.variables import to_device
from tests.compiled import run
from tests.methods.checks import CLASSES, assert_gradients_are_central_differences, unit
from tests.tiny_clip import write_tiny_clip


@pytest.mark.parametrize("eos_token_id", [None, 2])
def test_with_words_as_context_the_text_is_the_sentence(tmp_path, text_features, eos_token_id):
    overrides = {} if eos_token_id is None else {"text_config": {"eos_token_id": eos_token_id}}
    write_tiny_clip(tmp_path, **overrides)
    clip = load_clip(tmp_path)
    model = CoOp(clip, CLASSES, text_features, rngs=nnx.Rngs(0))
    words = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]
    token_ids = clip.tokenize([" ".join(words)])[0, 1 : 1 + NUM_CONTEXT]
    embedding = np.asarray(clip.text.token_embedding[...])
    model.context.set_value(to_device(embedding[token_ids]))
    sentences = [" ".join([*words, name.replace("_", " ")]) + "." for name in CLASSES]
    expected = unit(clip.encode_text(clip.tokenize(sentences)))
    weights = run(CoOp.class_weights, model)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    features = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    logits = float(clip.logit_scale) * unit(features) @ expected.T
    found = run(CoOp.logits, model, features, None)
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-3)


def test_gradients_flow_through_the_text_tower(clip, text_features):
    model = CoOp(clip, CLASSES, text_features, rngs=nnx.Rngs(0))
    features = np.random.default_rng(1).normal(size=(4, 16))
    assert_gradients_are_central_differences(model, features, [0, 1, 2, 1])


def test_a_name_that_does_not_fit_is_refused(clip, text_features):
    long = "x" * (77 - 2 - NUM_CONTEXT)
    with pytest.raises(UserError, match="shorten the name"):
        CoOp(clip, ("a", "b", long), text_features, rngs=nnx.Rngs(0))
    # Leaves room for the full stop.
    CoOp(clip, ("a", "b", long[:-1]), text_features, rngs=nnx.Rngs(0))


def test_epochs_are_the_papers():
    shots = (1, 2, 4, 8, 16)
    assert [coop_epochs("eurosat", n) for n in shots] == [50, 100, 100, 200, 200]
    assert {coop_epochs("imagenet", n) for n in shots} == {50}


def test_the_optimizer_by_hand():
    """Checks momentum 0.9 over gradient + 5e-4 · parameter for three epochs of two steps."""
    optimizer = coop_sgd(coop_cosine(2e-3, 3, 2), 5e-4)
    parameter, gradient, momentum = 1.0, 0.3, 0.0
    value, state = jnp.float32(parameter), optimizer.init(jnp.float32(parameter))
    cosine = [0.5 * 2e-3 * (1 + np.cos(np.pi * epoch / 3)) for epoch in range(2)]
    update = jax.jit(optimizer.update)
    for rate in [1e-5, 1e-5, cosine[0], cosine[0], cosine[1], cosine[1]]:
        momentum = 0.9 * momentum + gradient + 5e-4 * parameter
        parameter -= rate * momentum
        updates, state = update(to_device(gradient), state, value)
        value = jax.tree.map(jnp.add, value, updates)
        np.testing.assert_allclose(value, parameter, rtol=1e-6)
