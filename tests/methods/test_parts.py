"""FVP and TAR, FG-VPL's parts alone, and the candidates for λ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import TwoPathwayHead, VisualCache
from fgvpl_jax.methods import FGVPL, METHODS
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.tar import TAR
from fgvpl_jax.runs import default_config
from fgvpl_jax.variables import to_device
from fgvpl_jax.visual_prompt import ImageFeatures
from tests.compiled import call, run
from tests.method_settings import FG_VPL_SETTINGS, FVP_SETTINGS, TAR_SETTINGS
from tests.methods.checks import unit


def test_fvp_compares_both_branches_with_the_texts(clip, text_features):
    settings = FVP_SETTINGS | {"object_logit_weight": 0.7}
    model = FVP(clip, text_features, **settings, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, clip.image_size, clip.image_size, 3), dtype=np.uint8)
    features = run(FVP.features, model, images)
    w = np.asarray(text_features, np.float64)
    scale = float(clip.logit_scale)
    expected = scale * unit(features.image) @ w.T + 0.7 * scale * unit(features.object) @ w.T
    logits = run(FVP.logits, model, features, None)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-4)
    full = FGVPL(clip, text_features, **FG_VPL_SETTINGS, rngs=nnx.Rngs(0))
    # The same encoder, drawn from the same seed.
    np.testing.assert_array_equal(features.image, run(FGVPL.features, full, images).image)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.1)])
def test_zero_shot_logits_are_those_of_clip_in_the_type_of_the_run(
    clip, text_features, dtype, tolerance
):
    settings = FVP_SETTINGS | {"compute_dtype": dtype}
    model = FVP(clip, text_features, **settings, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, clip.image_size, clip.image_size, 3), dtype=np.uint8)
    found = run(FVP.zero_shot_logits, model, images)
    expected = run(FVP.text_logits, model, call(clip.image_encoder, images))
    assert found.dtype == jnp.float32
    largest = np.abs(np.asarray(found) - np.asarray(expected)).max() / float(clip.logit_scale)
    assert largest < tolerance
    assert (largest > 1e-5) == (dtype == "bfloat16")


@pytest.fixture
def cache():
    rng = np.random.default_rng(2)
    labels, valid = to_device([0, 1, 1, 2, 0], np.int32), to_device([1, 1, 1, 1, 0], bool)
    return VisualCache(to_device(rng.normal(size=(5, 16))), None, labels, valid)


def test_tar_is_eq_19_without_its_object_terms(clip, text_features, cache):
    model = TAR(
        clip,
        text_features,
        text_residual_ratio=0.3,
        cache_votes="sum",
        leave_one_out=False,
        rngs=nnx.Rngs(0),
    )
    rng = np.random.default_rng(3)
    features = to_device(rng.normal(size=(4, 16)))
    head = TwoPathwayHead(16, 0.3, 0.0, rngs=nnx.Rngs(0))
    nothing, attention_map = to_device(np.zeros((4, 16))), to_device(np.zeros((4, 4)))
    object_mask = to_device(np.ones((4, 4)), bool)
    whole = call(
        head,
        ImageFeatures(features, nothing, nothing, nothing, attention_map, object_mask),
        text_features,
        cache._replace(object=to_device(np.zeros((5, 16)))),
        logit_scale=float(clip.logit_scale),
        cache_logit_weight=2.0,
    )
    found = run(TAR.logits, model, features, cache, cache_logit_weight=2.0)
    np.testing.assert_allclose(found, whole, rtol=1e-6)


def test_tar_computes_no_object_term(clip, text_features, cache):
    """Six matrix products: p, path 1, q twice, the affinity and the votes."""
    model = TAR(clip, text_features, **TAR_SETTINGS, rngs=nnx.Rngs(0))
    program = jax.make_jaxpr(lambda f: model.logits(f, cache, cache_logit_weight=1.0))(
        jnp.ones((4, 16))
    )
    assert str(program).count("dot_general") == 6


def test_candidates_for_lambda_are_ordered_by_distance_from_one():
    config = default_config.get_config()
    config.cache_logit_weight_grid = (0.0, 0.5, 4.0, 1.0, 8.0)
    for name in ("fg_vpl", "tar"):
        order = [c["cache_logit_weight"] for c in METHODS[name].candidates(config)]
        assert order == [1.0, 0.5, 0.0, 4.0, 8.0]
        config.cache_logit_weight_grid = ()
        assert METHODS[name].candidates(config) == [{"cache_logit_weight": 1.0}]
        config.cache_logit_weight_grid = (0.0, 0.5, 4.0, 1.0, 8.0)
