"""Compares the head with a float64 transcription of Eqs. 10-19, and checks its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax.errors import UserError
from fgvpl_jax.recognition import TwoPathwayHead, VisualCache, visual_cache
from fgvpl_jax.variables import to_device
from fgvpl_jax.visual_prompt import ImageFeatures
from tests.compiled import call, run

DIM = 6


def make_features(rng, batch, dim=DIM):
    def draw():
        return to_device(rng.normal(size=(batch, dim)))

    return ImageFeatures(
        image=draw(),
        object=draw(),
        object_patches=draw(),
        patches=to_device(np.zeros((batch, dim))),
        attention_map=to_device(np.zeros((batch, 4))),
        object_mask=to_device(np.ones((batch, 4)), bool),
    )


def make_cache(rng, labels, valid=None):
    size = len(labels)
    return VisualCache(
        image=to_device(rng.normal(size=(size, DIM))),
        object=to_device(rng.normal(size=(size, DIM))),
        labels=to_device(labels, np.int32),
        valid=to_device(np.ones(size) if valid is None else valid, bool),
    )


def make_text(rng, classes):
    return to_device(unit(rng.normal(size=(classes, DIM))))


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
    found = run(TwoPathwayHead.contributions, head, features, text, cache, **settings)
    expected = transcribed_terms(head, features, text, cache, 14.0, 2.5)
    assert found.keys() == expected.keys()
    for name, term in expected.items():
        np.testing.assert_allclose(found[name], term, rtol=1e-5, atol=1e-5, err_msg=name)
    logits = call(head, features, text, cache, **settings)
    np.testing.assert_allclose(logits, sum(expected.values()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("object_query", ["class_token", "object_patches"])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2], [1, 1, 1]])
def test_equals_the_equations(object_query, labels):
    rng = np.random.default_rng(0)
    head = TwoPathwayHead(DIM, 0.3, 0.7, object_query=object_query, rngs=nnx.Rngs(0))
    head.visual_adapter.bias.set_value(to_device(rng.normal(size=DIM)))
    features, text = make_features(rng, 5), make_text(rng, 3)
    cache = make_cache(rng, labels)
    logits = call(head, features, text, cache, logit_scale=14.0, cache_logit_weight=2.5)
    expected = transcription(head, features, text, cache, 14.0, 2.5)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_equal_counts_are_the_papers_plain_sum():
    rng = np.random.default_rng(1)
    head = TwoPathwayHead(DIM, 0.0, 0.0, rngs=nnx.Rngs(0))
    head.visual_adapter.kernel.set_value(to_device(np.zeros((DIM, DIM))))
    features, text = make_features(rng, 4), make_text(rng, 2)
    cache = make_cache(rng, [0, 1, 1, 0])
    with_cache = call(head, features, text, cache, logit_scale=0.0)
    affinity = unit(np.asarray(features.image)) @ unit(np.asarray(cache.image)).T
    expected = np.exp(-(1 - affinity)) @ np.eye(2)[[0, 1, 1, 0]]
    np.testing.assert_allclose(with_cache, expected, rtol=1e-5)


def test_mean_votes_are_the_sum_over_sixteen_photos():
    rng = np.random.default_rng(6)
    summed = TwoPathwayHead(DIM, rngs=nnx.Rngs(0))
    mean = TwoPathwayHead(DIM, cache_votes="mean", rngs=nnx.Rngs(0))
    features, text = make_features(rng, 4), make_text(rng, 2)
    one = make_cache(rng, [0, 1])
    sixteen, unequal = (
        VisualCache(*(to_device(np.repeat(x, times, axis=0), None) for x in one))
        for times in (16, [1, 5])
    )
    expected = call(summed, features, text, sixteen, logit_scale=2.0)
    for cache in (one, sixteen, unequal):
        logits = call(mean, features, text, cache, logit_scale=2.0)
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), padding=st.integers(0, 3))
def test_order_and_padding_of_the_support_set_do_not_matter(seed, padding):
    rng = np.random.default_rng(seed)
    head = TwoPathwayHead(DIM, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 3), make_text(rng, 3)
    cache = make_cache(rng, rng.integers(0, 3, size=7))
    order = rng.permutation(7)
    changed = (np.asarray(x)[order] for x in cache)
    changed = VisualCache(*(np.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) for x in changed))
    before = call(head, features, text, cache, logit_scale=10.0)
    after = call(head, features, text, changed, logit_scale=10.0)
    np.testing.assert_allclose(before, after, rtol=1e-5, atol=1e-5)


def test_without_adapters_cache_and_object_it_is_zero_shot_clip():
    rng = np.random.default_rng(2)
    head = TwoPathwayHead(DIM, object_logit_weight=0.0, rngs=nnx.Rngs(0))
    for adapter in (head.text_adapter, head.visual_adapter):
        adapter.kernel.set_value(to_device(np.zeros((DIM, DIM))))
    features, text = make_features(rng, 8), make_text(rng, 5)
    cache = make_cache(rng, [0, 1, 2])
    logits = call(head, features, text, cache, logit_scale=100.0, cache_logit_weight=0.0)
    zero_shot = 100.0 * unit(np.asarray(features.image)) @ np.asarray(text).T
    np.testing.assert_allclose(logits, zero_shot, rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(logits).argmax(1), zero_shot.argmax(1))


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
    image, object_ = (np.array(x) for x in (cache.image, cache.object))
    image[2] = object_[2] = 0
    cache = VisualCache(*map(to_device, (image, object_)), cache.labels, to_device([1, 1, 0], bool))
    features, text = make_features(rng, 2), make_text(rng, 2)

    @nnx.jit
    @nnx.grad
    def gradients_of(head):
        return head(features, text, cache, logit_scale=1.0).sum()

    gradients = gradients_of(head)
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
    own_places = np.array([1, 3, -1])
    found = call(head, features, text, cache, logit_scale=14.0, own_places=own_places)
    for row, place in enumerate([1, 3, -1]):
        query = jax.tree.map(lambda x, row=row: np.asarray(x)[row : row + 1], features)
        others = cache._replace(valid=to_device(np.arange(5) != place, None))
        expected = call(head, query, text, others, logit_scale=14.0)
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-5)
    assert not np.allclose(found, call(head, features, text, cache, logit_scale=14.0))


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_keys_in_chunks_are_all_keys(monkeypatch, chunk):
    """Compares with the transcription, and gradients with those of all keys in one chunk."""
    rng = np.random.default_rng(5)
    head = TwoPathwayHead(DIM, 0.3, 0.7, rngs=nnx.Rngs(0))
    features, text = make_features(rng, 3), make_text(rng, 3)
    cache = make_cache(rng, [0, 2, 0, 1, 2, 0, 1, 1, 0, 2], valid=[True] * 8 + [False, True])
    own_places = to_device([1, 9, -1], np.int32)

    def loss(head, features):
        without = head(features, text, cache, logit_scale=14.0)
        logits = head(features, text, cache, logit_scale=14.0, own_places=own_places)
        return jnp.sum(logits * jnp.arange(9.0).reshape(3, 3)), without

    def compiled():
        """Returns a function that is traced again, with the chunks of now."""
        return nnx.jit(nnx.grad(loss, argnums=(0, 1), allow_int=True, has_aux=True))

    whole, _ = compiled()(head, features)
    monkeypatch.setattr(visual_cache, "CHUNK", chunk)
    parts, found = compiled()(head, features)
    expected = transcription(head, features, text, cache, 14.0, 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        if jnp.issubdtype(ours.dtype, jnp.floating):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_chunk_of_split_rows_is_split_alike():
    """Checks that each chunk has two rows of either device, 0-3 and 4-7."""
    chunks = visual_cache.interleaved(jnp.arange(8), 2)
    np.testing.assert_array_equal(chunks.T, [[0, 2, 4, 6], [1, 3, 5, 7]])
    np.testing.assert_array_equal(visual_cache.interleaved(jnp.ones((5, 1)), 2)[:, 1, 0], [1, 1, 0])
