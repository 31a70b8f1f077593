"""Checks which attention is fused, and that the towers compute the same with it."""

from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import load_clip
from fgvpl_jax.clip import fused_attention, layers
from fgvpl_jax.variables import Trainable
from fgvpl_jax.visual_prompt import FGImageEncoder, fine_grained_encoder, fused_roll_out
from fgvpl_jax.visual_prompt.attention_map import one_layer_down, plain_layer_down
from tests.cases import further
from tests.comparison import relative_error
from tests.tiny_backbones import write_tiny_backbone

SHAPE = (2, 4, 19, 16)  # images, heads, tokens, width of a head


@pytest.fixture
def gpu(monkeypatch):
    """Takes the CPU for a GPU on which `jax.nn` computes the attention that cuDNN would."""
    monkeypatch.setattr(fused_attention.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(fused_attention, "IMPLEMENTATION", "xla")
    monkeypatch.setattr(fused_roll_out, "INTERPRET", True)
    trials = fused_attention._attention_succeeds, fused_roll_out.is_supported
    for trial in trials:
        trial.cache_clear()
    yield
    for trial in trials:
        trial.cache_clear()


def encode(encoder, pixels):
    """Returns features, and the gradient of a loss with respect to all that is trained."""
    graph, trained, rest = nnx.split(encoder, Trainable, ...)

    @jax.jit
    def run(trained, pixels):
        def loss(trained):
            found = nnx.merge(graph, trained, rest)(pixels)
            return jnp.square(found.image).sum() + found.object.sum(), found

        gradients, found = jax.grad(loss, has_aux=True)(trained)
        return found, jax.flatten_util.ravel_pytree(gradients)[0]

    return run(trained, pixels)


@pytest.mark.parametrize(("dtype", "fused"), [("bfloat16", True), ("float32", False)])
def test_bfloat16_is_fused_on_a_gpu(gpu, dtype, fused):
    assert fused_attention.is_fused(SHAPE, dtype) == fused


@pytest.mark.parametrize("tokens", [18, 19])
def test_attention_and_its_gradients_are_those_of_plain_products(gpu, tokens):
    rng = np.random.default_rng(0)
    *inputs, gradient = rng.normal(size=(4, 2, 4, tokens, 16)).astype(np.float32)

    @partial(jax.jit, static_argnums=0)
    def outputs(function, *inputs):
        output, pull = jax.vjp(function, *inputs)
        return output, *pull(gradient)

    functions = fused_attention.fused_attention, fused_attention.plain_attention
    for ours, theirs in zip(*(outputs(each, *inputs) for each in functions), strict=True):
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize(("tokens", "width"), [(19, 16), (198, 64), (577, 8)])
@pytest.mark.parametrize("residual", [0.0, 0.5])
def test_a_layer_of_the_roll_out_is_that_of_plain_products(gpu, tokens, width, residual):
    rng = np.random.default_rng(0)
    row = jnp.asarray(rng.uniform(size=(2, 3, tokens)), jnp.float32)
    pair = tuple(jnp.asarray(rng.normal(size=(2, 2, 3, tokens, width)), jnp.bfloat16))
    down = jax.jit(one_layer_down, static_argnums=2)(row, pair, residual)
    expected = (1 - residual) * plain_layer_down(row, pair) + residual * row
    assert fused_roll_out.is_supported.cache_info().currsize == 1
    assert relative_error(down, expected) < 0.02  # weights of plain products are bfloat16


def test_the_kernel_of_the_roll_out_is_lowered_for_gpus():
    row, half = jnp.ones((2, 12, 198)), jnp.ones((2, 12, 198, 64), jnp.bfloat16)
    traced = jax.jit(fused_roll_out.fused_layer_down).trace(row, (half, half))
    assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_nothing_is_fused_on_a_cpu():
    assert not fused_attention.is_fused(SHAPE, "bfloat16")


def test_a_program_for_any_number_of_images_is_not_fused(gpu):
    (batch,) = jax.export.symbolic_shape("b")
    assert not fused_attention.is_fused((batch, *SHAPE[1:]), "bfloat16")


def test_a_gpu_whose_cudnn_refuses_uses_plain_products(monkeypatch, gpu):
    def refuse(queries, keys, values):
        raise RuntimeError("cuDNN is not detected.")

    monkeypatch.setattr(fused_attention, "fused_attention", refuse)
    decided = []

    @jax.jit
    def program(x):  # the trial is made while a program is traced
        decided.append(fused_attention.is_fused(SHAPE, "bfloat16"))
        return 2 * x

    program(jnp.ones(3))
    assert decided == [False]


def test_a_gpu_whose_cudnn_differs_uses_plain_products(monkeypatch, gpu, caplog):
    right = fused_attention.fused_attention
    monkeypatch.setattr(fused_attention, "fused_attention", lambda q, k, v: 1.1 * right(q, k, v))
    assert not fused_attention.is_fused(SHAPE, "bfloat16")
    assert "differs" in caplog.text


@pytest.mark.parametrize("name", ["product", *further("last_3_residual", "border_contrast")])
def test_features_masks_and_gradients_are_those_of_plain_products(
    clip, pixels, monkeypatch, gpu, name
):
    encoder = FGImageEncoder(clip.vision, attention_map=name, rngs=nnx.Rngs(0))
    monkeypatch.setattr(layers, "is_fused", lambda *shape: False)
    expected = encode(encoder, pixels)
    monkeypatch.setattr(layers, "is_fused", lambda *shape: True)
    actual = encode(encoder, pixels)
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert relative_error(1.0 * ours, theirs) < 1e-5


@pytest.mark.parametrize(
    ("prompt_layer", "rematerialise"), [(1, False), *further((1, True), (2, False))], ids=str
)
def test_an_encoder_in_bfloat16_uses_both_kernels(
    clip, pixels, monkeypatch, gpu, prompt_layer, rematerialise
):
    settings = {"compute_dtype": "bfloat16", "rematerialise": rematerialise}
    encoder = FGImageEncoder(clip.vision, prompt_layer=prompt_layer, **settings, rngs=nnx.Rngs(0))
    fused, gradient = encode(encoder, pixels)
    assert fused_attention._attention_succeeds.cache_info().currsize
    assert fused_roll_out.is_supported.cache_info().currsize
    tokens = jax.jit(encoder.below_prompt)(pixels)
    from_tokens = jax.jit(encoder)(tokens).attention_map
    monkeypatch.setattr(fused_attention.jax, "default_backend", lambda: "cpu")
    plain, expected = encode(encoder, pixels)
    assert relative_error(fused.attention_map, plain.attention_map) < 0.05
    assert relative_error(from_tokens, plain.attention_map) < 0.05
    assert relative_error(fused.image, plain.image) < 0.05
    same = (fused.object_mask == plain.object_mask).all(axis=1)
    assert same.any()
    assert relative_error(fused.object[same], plain.object[same]) < 0.05
    assert np.linalg.norm(gradient - expected) < 0.1 * np.linalg.norm(expected) or not same.all()


def test_a_pooled_encoder_uses_both_kernels(tmp_path, monkeypatch, gpu):
    write_tiny_backbone(tmp_path, "siglip")
    clip = load_clip(tmp_path)
    side = clip.image_size
    pixels = np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)
    encoder = fine_grained_encoder(clip.vision, 1, compute_dtype="bfloat16", rngs=nnx.Rngs(0))
    fused = jax.jit(encoder)(pixels).attention_map
    assert fused_roll_out.is_supported.cache_info().currsize
    monkeypatch.setattr(fused_attention.jax, "default_backend", lambda: "cpu")
    assert relative_error(fused, jax.jit(lambda x: encoder(x))(pixels).attention_map) < 0.05


def test_several_gpus_use_plain_products(monkeypatch, gpu):
    monkeypatch.setattr(fused_attention.jax, "device_count", lambda: 2)
    assert not fused_attention.is_fused(SHAPE, "bfloat16")


def test_weights_that_nothing_reads_are_not_computed(clip, pixels, monkeypatch, gpu):
    encoder = fine_grained_encoder(
        clip.vision,
        attention_map="border_contrast",
        connectivity=2,
        num_prompts=1,
        rngs=nnx.Rngs(0),
    )
    for module in (fused_attention, layers):
        monkeypatch.setattr(module, "fused_attention", lambda queries, keys, values: values)
    monkeypatch.setattr(layers, "is_fused", lambda *shape: True)
    gh, gw = clip.vision.grid
    tokens = gh * gw + 2
    program = jax.jit(lambda pixels: encoder(pixels).object).lower(pixels).compile().as_text()
    assert f"{tokens},{tokens}]" not in program
