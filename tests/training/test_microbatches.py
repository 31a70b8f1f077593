"""Numbers of images that go through a model at once, and equal results in parts."""

from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from fgvpl_jax import load_clip
from fgvpl_jax.clip.towers import VisionTower
from fgvpl_jax.evaluation.evaluator import compile_programs
from fgvpl_jax.methods.clip_lora import ClipLoRA
from fgvpl_jax.methods.clip_svd import ClipSVD
from fgvpl_jax.methods.fg_vpl import FGVPL
from fgvpl_jax.methods.fvp import FVP
from fgvpl_jax.methods.gda_pool import GDAPool
from fgvpl_jax.methods.tip_adapter_f import TipAdapterF
from fgvpl_jax.methods.two_stage import TwoStage
from fgvpl_jax.recognition import VisualCache, class_text_features
from fgvpl_jax.runs import default_config
from fgvpl_jax.training import FeatureInputs, data_mesh, microbatches, split_model
from fgvpl_jax.training.microbatches import default_microbatch, images_at_once, in_parts
from fgvpl_jax.training.token_inputs import below_prompt
from fgvpl_jax.training.visual_cache_builder import compile_support_features
from fgvpl_jax.variables import to_device
from tests.method_settings import FG_VPL_SETTINGS


def tower(grid, layers=12):
    """Returns a stand-in for an image tower, without arrays."""
    return Mock(spec=VisionTower, grid=grid, attention_layers=[None] * layers)


def mesh_on(platform, number=1):
    """Returns a stand-in for a mesh of devices of a platform."""
    return Mock(
        spec=Mesh, size=number, devices=np.array([SimpleNamespace(platform=platform)] * number)
    )


def model_of(method, grid=(14, 14), layers_below=0):
    """Returns a stand-in for a model, with a grid of patches but without arrays."""
    vision = tower(grid)
    return Mock(
        spec=method,
        passes_are_cheap=getattr(method, "passes_are_cheap", None),
        uses_cache=method.uses_cache,
        image_encoder=SimpleNamespace(vision=vision),
        encoder=SimpleNamespace(layers_below=layers_below, vision=vision),
    )


@pytest.mark.parametrize("method", [FGVPL, FVP])
@pytest.mark.parametrize(
    ("grid", "images"), [((7, 7), 8), ((14, 14), 2), ((16, 16), 2), ((24, 24), 1)]
)
def test_a_microbatch_on_a_cpu_fits_in_the_processor_caches(method, grid, images):
    assert default_microbatch(model_of(method, grid), mesh_on("cpu"), 1600) == images


@pytest.mark.parametrize(("layers_below", "images"), [(10, 2), (11, 8)])
def test_a_microbatch_of_tokens_is_larger_only_for_the_last_layer(layers_below, images):
    model = model_of(FGVPL, layers_below=layers_below)
    assert default_microbatch(model, mesh_on("cpu"), 1600) == images


@pytest.mark.parametrize(
    ("method", "platform", "number", "num_support"),
    [
        (FGVPL, "gpu", 1, 160),
        (FGVPL, "cpu", 2, 160),
        (FGVPL, "cpu", 1, 16_000),
        (ClipLoRA, "cpu", 1, 160),
        (ClipSVD, "cpu", 1, 160),
        (TwoStage, "cpu", 1, 160),
        (TipAdapterF, "cpu", 1, 160),
    ],
)
def test_a_batch_stays_whole_if_microbatches_would_cost_time(method, platform, number, num_support):
    assert default_microbatch(model_of(method), mesh_on(platform, number), num_support) == 0


def test_without_a_visual_cache_the_number_of_support_images_does_not_matter():
    assert default_microbatch(model_of(FVP), mesh_on("cpu"), 16_000) == 2


@pytest.fixture
def one_cpu(monkeypatch):
    """Makes the machine one CPU with two cores."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(microbatches, "usable_cores", lambda: 2)


@pytest.mark.parametrize(
    ("grid", "cores", "images"),
    [((8, 8), 1, 8), ((8, 8), 2, 8), ((14, 14), 2, 2), ((14, 14), 16, 16), ((64, 64), 2, 1)],
)
def test_a_cpu_encodes_as_many_images_at_once_as_its_caches_hold(
    one_cpu, monkeypatch, grid, cores, images
):
    monkeypatch.setattr(microbatches, "usable_cores", lambda: cores)
    assert images_at_once(tower(grid)) == images


@pytest.mark.parametrize(("attribute", "value"), [("device_count", 2), ("default_backend", "gpu")])
def test_other_devices_encode_a_whole_batch_at_once(one_cpu, monkeypatch, attribute, value):
    monkeypatch.setattr(jax, attribute, lambda: value)
    assert images_at_once(tower((14, 14))) == 0


def test_a_resnet_encodes_a_whole_batch_at_once(one_cpu):
    assert images_at_once(tower((7, 7), layers=0)) == 0


@pytest.mark.parametrize(
    ("size", "expected"), [(0, [7]), (7, [7]), (8, [7]), (6, [4]), (3, [3]), (1, [1])]
)
def test_parts_have_equally_many_rows_and_give_the_rows_of_the_whole(size, expected):
    sizes = []

    def function(rows):
        sizes.append(len(rows["x"]))
        return 2 * rows["x"], None, rows["y"].sum(axis=1)

    rows = {"x": jnp.arange(7), "y": jnp.arange(28.0).reshape(7, 4), "none": None}
    doubled, none, sums = jax.jit(lambda rows: in_parts(function, rows, size))(rows)
    assert sizes == expected
    assert none is None
    np.testing.assert_array_equal(doubled, 2 * np.arange(7))
    np.testing.assert_array_equal(sums, np.arange(28.0).reshape(7, 4).sum(axis=1))


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="module")
def text(clip):
    return class_text_features(clip, ("a", "b", "c"), ("a photo of a {}.",))


@pytest.fixture
def images(clip):
    shape = (5, clip.image_size, clip.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def same_in_parts(monkeypatch, compute, num_programs=1):
    """Compares the results of five images at once with those of parts of two."""
    whole = compute()
    monkeypatch.setattr(microbatches, "images_with_patches", lambda *_: 2)
    parts = []
    original = jax.lax.map
    monkeypatch.setattr(jax.lax, "map", lambda *args: parts.append(args) or original(*args))
    for ours, theirs in zip(*map(jax.tree.leaves, (compute(), whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(parts) == num_programs


def test_evaluation_and_the_visual_cache_are_the_same_in_parts(
    one_cpu, monkeypatch, clip, text, images
):
    model = FGVPL(clip, text, **FG_VPL_SETTINGS, rngs=nnx.Rngs(0))
    graphdef, trainable, frozen = split_model(model)
    state = trainable, frozen
    labels, valid = to_device([0, 1, 2, 0, 1], np.int32), to_device([1] * 5, bool)

    def compute():
        image, object_ = compile_support_features.__wrapped__(graphdef)(*state, images)
        cache = VisualCache(image, object_, labels, valid)
        programs = compile_programs.__wrapped__(graphdef)
        outputs = programs.outputs(state, cache, {"cache_logit_weight": 1.0}, images)
        return image, object_, outputs, programs.features(state, images)

    same_in_parts(monkeypatch, compute, num_programs=3)


def test_tokens_below_the_prompt_are_the_same_in_parts(one_cpu, monkeypatch, clip, text, images):
    settings = FG_VPL_SETTINGS | {"prompt_layer": 2}
    model = FGVPL(clip, text, **settings, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)

    def compute():
        return below_prompt(graphdef, images_at_once(clip.vision), state, images)

    same_in_parts(monkeypatch, compute)


@pytest.mark.parametrize("method", [TipAdapterF, GDAPool])
def test_frozen_features_are_the_same_in_parts(one_cpu, monkeypatch, clip, images, method):
    encoder = method.frozen_encoder(clip, default_config.get_config())

    def compute():
        return FeatureInputs(clip, 0, None, data_mesh(), encoder)._encoder(images)

    same_in_parts(monkeypatch, compute)
