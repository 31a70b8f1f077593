"""Compares the head with a float64 transcription of Eqs. 10-19, and checks its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax.errors import UserError
from fgvpl_jax.recognition import TwoPathwayHead, VisualCache, normalize, visual_cache
from fgvpl_jax.visual_prompt import ImageFeatures

DIM = 6


def make_features(rng, batch, dim=DIM):
    def draw():
        return jnp.asarray(rng.normal(size=(batch, dim)), jnp.float32)

    return ImageFeatures(
        image=draw(),
        object=draw(),
        object_patches=draw(),
        patches=jnp.zeros((batch, dim)),
        attention_map=jnp.zeros((batch, 4)),
        object_mask=jnp.ones((batch, 4), bool),
    )


def make_cache(rng, labels, valid=None):
    size = len(labels)
    return VisualCache(
        image=jnp.asarray(rng.normal(size=(size, DIM)), jnp.float32),
        object=jnp.asarray(rng.normal(size=(size, DIM)), jnp.float32),
        labels=jnp.asarray(labels, jnp.int32),
        valid=jnp.ones((size,), bool) if valid is None else jnp.asarray(valid),
    )


def make_text(rng, classes):
    return normalize(jnp.asarray(rng.normal(size=(classes, DIM)), jnp.float32))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def transcription(head, features, text, cache, logit_scale, lam):
    """Computes Eqs. 10-19 image by image and class by class, in float64."""
    return sum(transcribed_terms(head, features, text, cache, logit_scale, lam).values())


def transcribed_terms(head, features, text, cache, logit_scale, lam):
    """Returns the four terms of Eq. 19 by the names of `contributions`."""
    f64 = lambda x: np.asarray(x, np.float64)  # noqa: E731

    def adapt(adapter, x, ratio):
        x = unit(f64(x))
        hidden = np.maximum(x @ f64(adapter.kernel[...]) + f64(adapter.bias[...]), 0)
        return unit(ratio * hidden + x)

    alpha, beta = f64(head.text_residual_ratio[...]), f64(head.object_logit_weight[...])
    w_new = adapt(head.text_adapter, text, alpha)
    q_object = features.object
    if head.object_query == "object_patches":
        q_object = features.object_patches
    terms = {}
    for kind, weight, raw, query, keys in (
        ("image", 1.0, features.image, features.image, cache.image),
        ("object", beta, features.object, q_object, cache.object),
    ):
        path1 = logit_scale * unit(f64(raw)) @ w_new.T
        new_query, new_keys = (adapt(head.visual_adapter, x, 1.0) for x in (query, keys))
        path2 = np.zeros_like(path1)
        valid = np.asarray(cache.valid)
        counts = np.bincount(np.asarray(cache.labels)[valid], minlength=len(text))
        for b in range(len(path2)):
            for s in np.flatnonzero(valid):
                phi = np.exp(-(1 - new_query[b] @ new_keys[s]))
                label = int(cache.labels[s])
                path2[b, label] += phi * counts[counts > 0].mean() / counts[label]
        terms |= {f"{kind}_text": weight * path1, f"{kind}_cache": weight * lam * path2}
    return terms


def test_each_contribution_is_its_term_of_eq_19():
    rng = np.random.default_rng(4)
    head = TwoPathwayHead(DIM, 0.3, 0.7, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 5), make_text(rng, 3)
    cache = make_cache(rng, [0, 1, 1, 2, 2, 2])
    settings = {"logit_scale": 14.0, "cache_logit_weight": 2.5}
    found = head.contributions(features, text, cache, **settings)
    expected = transcribed_terms(head, features, text, cache, 14.0, 2.5)
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        np.testing.assert_allclose(found[name], term, rtol=1e-5, atol=1e-5, err_msg=name)
    logits = head(features, text, cache, **settings)
    np.testing.assert_allclose(logits, sum(expected.values()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("object_query", ["class_token", "object_patches"])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [1, 1, 1]])
def test_equals_the_equations(object_query, labels):
    rng = np.random.default_rng(0)
    head = TwoPathwayHead(DIM, 0.3, 0.7, object_query=object_query, rngs=nnx.Rngs(0))
    head.visual_adapter.bias[...] = jnp.asarray(rng.normal(size=DIM), jnp.float32)
    features, text = make_features(rng, 5), make_text(rng, 3)
    cache = make_cache(rng, labels)
    logits = head(features, text, cache, logit_scale=14.0, cache_logit_weight=2.5)
    expected = transcription(head, features, text, cache, 14.0, 2.5)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_equal_counts_are_the_papers_plain_sum():
    rng = np.random.default_rng(1)
    head = TwoPathwayHead(DIM, 0.0, 0.0, rngs=nnx.Rngs(0))
    head.visual_adapter.kernel[...] *= 0
    features, text = make_features(rng, 4), make_text(rng, 2)
    cache = make_cache(rng, [0, 1, 1, 0])
    with_cache = head(features, text, cache, logit_scale=0.0)
    affinity = unit(np.asarray(features.image)) @ unit(np.asarray(cache.image)).T
    expected = np.exp(-(1 - affinity)) @ np.eye(2)[[0, 1, 1, 0]]
    np.testing.assert_allclose(with_cache, expected, rtol=1e-5)


def test_mean_votes_are_the_sum_over_sixteen_photos():
    rng = np.random.default_rng(6)
    summed = TwoPathwayHead(DIM, rngs=nnx.Rngs(0))
    mean = TwoPathwayHead(DIM, cache_votes="mean", rngs=nnx.Rngs(0))
    features, text = make_features(rng, 4), make_text(rng, 2)
    one = make_cache(rng, [0, 1])
    sixteen = VisualCache(*(jnp.repeat(x, 16, axis=0) for x in one))
    unequal = VisualCache(*(jnp.repeat(x, jnp.array([1, 5]), axis=0) for x in one))
    expected = summed(features, text, sixteen, logit_scale=2.0)
    for cache in (one, sixteen, unequal):
        logits = mean(features, text, cache, logit_scale=2.0)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), padding=st.integers(0, 3))
def test_order_and_padding_of_the_support_set_do_not_matter(seed, padding):
    rng = np.random.default_rng(seed)
    head = TwoPathwayHead(DIM, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 3), make_text(rng, 3)
    cache = make_cache(rng, rng.integers(0, 3, size=7))
    order = rng.permutation(7)
    changed = VisualCache(*(jnp.asarray(np.asarray(x)[order]) for x in cache))
    changed = VisualCache(*(jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in changed))
    before = head(features, text, cache, logit_scale=10.0)
    after = head(features, text, changed, logit_scale=10.0)
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def test_without_adapters_cache_and_object_it_is_zero_shot_clip():
    rng = np.random.default_rng(2)
    head = TwoPathwayHead(DIM, object_logit_weight=0.0, rngs=nnx.Rngs(0))
    for adapter in (head.text_adapter, head.visual_adapter):
        adapter.kernel[...] *= 0
    features, text = make_features(rng, 8), make_text(rng, 5)
    cache = make_cache(rng, [0, 1, 2])
    logits = head(features, text, cache, logit_scale=100.0, cache_logit_weight=0.0)
    zero_shot = 100.0 * normalize(features.image) @ text.T
    np.testing.assert_allclose(logits, zero_shot, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(logits.argmax(1), zero_shot.argmax(1))


def test_a_sweep_over_the_weights_never_retraces():
    rng = np.random.default_rng(3)
    head = TwoPathwayHead(DIM, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 2), make_text(rng, 3)
    cache = make_cache(rng, [0, 1, 2])
    traces = []

    @jax.jit
    def logits(state, scale, weight):
        traces.append(1)
        model = nnx.merge(nnx.graphdef(head), state)
        return model(features, text, cache, logit_scale=scale, cache_logit_weight=weight)

    seen = []
    for beta in (0.1, 0.5):
        head.object_logit_weight[...] = jnp.float32(beta)
        for weight in (0.0, 1.0, 3.0):
            seen.append(logits(nnx.state(head), 10.0, weight))
    assert len(traces) == 1
    assert len({float(x.sum()) for x in seen}) == 6


def test_gradients_stay_finite_with_zero_padding():
    rng = np.random.default_rng(4)
    head = TwoPathwayHead(DIM, rngs=nnx.Rngs(0))
    cache = make_cache(rng, [0, 1, 0])
    cache = cache._replace(
        image=cache.image.at[2].set(0),
        object=cache.object.at[2].set(0),
        valid=jnp.array([True, True, False]),
    )
    features, text = make_features(rng, 2), make_text(rng, 2)
    gradients = nnx.grad(lambda h: h(features, text, cache, logit_scale=1.0).sum())(head)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))


def test_an_unknown_object_query_is_refused():
    with pytest.raises(UserError, match=r"'patches'.*class_token"):
        TwoPathwayHead(DIM, object_query="patches", rngs=nnx.Rngs(0))


def test_without_its_own_image_a_query_is_judged_by_the_others():
    """Compares with a cache without that image, whose class then counts one image less."""
    rng = np.random.default_rng(4)
    head = TwoPathwayHead(DIM, 0.3, 0.7, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 3), make_text(rng, 3)
    cache = make_cache(rng, [0, 0, 0, 1, 2])
    # The second image is the only one of its class; padding is not in the cache.
    own_places = jnp.array([1, 3, -1])
    found = head(features, text, cache, logit_scale=14.0, own_places=own_places)
    for row, place in enumerate([1, 3, -1]):
        query = jax.tree.map(lambda x, row=row: x[row : row + 1], features)
        others = cache._replace(valid=cache.valid & (jnp.arange(5) != place))
        expected = head(query, text, others, logit_scale=14.0)
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-5)
    assert not np.allclose(found, head(features, text, cache, logit_scale=14.0))


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_keys_in_chunks_are_all_keys(monkeypatch, chunk):
    """Compares with the transcription, and gradients with those of all keys in one chunk."""
    rng = np.random.default_rng(5)
    head = TwoPathwayHead(DIM, 0.3, 0.7, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 3), make_text(rng, 3)
    cache = make_cache(rng, [0, 2, 0, 1, 2, 0, 1, 1, 0, 2], valid=[True] * 8 + [False, True])
    own_places = jnp.array([1, 9, -1])

    def loss(head, features):
        logits = head(features, text, cache, logit_scale=14.0, own_places=own_places)
        return jnp.sum(logits * jnp.arange(9.0).reshape(3, 3))

    whole = nnx.grad(loss, argnums=(0, 1), allow_int=True)(head, features)
    monkeypatch.setattr(visual_cache, "CHUNK", chunk)
    found = head(features, text, cache, logit_scale=14.0)
    expected = transcription(head, features, text, cache, 14.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    parts = nnx.grad(loss, argnums=(0, 1), allow_int=True)(head, features)
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_chunk_of_split_rows_is_split_alike():
    """Checks that each chunk has two rows of either device, 0-3 and 4-7."""
    chunks = visual_cache.interleaved(jnp.arange(8), 2)
    np.testing.assert_array_equal(chunks.T, [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(visual_cache.interleaved(jnp.ones((5, 1)), 2)[:, 1, 0], [1, 1, 0])
