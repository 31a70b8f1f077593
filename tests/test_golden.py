"""Compares the package with the golden files: parity with PyTorch and the equations.

`tests/clip/test_parity.py` runs transformers' CLIP, which needs torch. The tests here read its
outputs, and those of the float64 recomputation of the whole method, from files that
`tests/golden/write.py` wrote, so that every `make test` checks parity.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import load_clip
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.recognition import VisualCache, class_text_features, normalize
from fgvpl_jax.training.train_step import StepBatch, weighted_loss
from fgvpl_jax.variables import trainable_copy
from tests.comparison import BOUND, relative_error
from tests.golden.inputs import (
    CASES,
    CLASS_NAMES,
    CLIP_FILE,
    DIRECTORY,
    FG_VPL_FILE,
    OTHER_SEED,
    QUERY_LABELS,
    SEED,
    SUPPORT_LABELS,
    TEMPLATES,
    TEXTS,
    case_inputs,
    checksum,
    clip_pixels,
)
from tests.tiny_clip import KINDS, random_tensors, write_tiny_clip

# Both sides are float64, but transformers' eager attention rounds its softmax to float32.
REWRITTEN = 1e-6
FLOAT64_BOUND = 1e-12
# Query and support images are padded to this number, so that one compiled program runs on both.
ROWS = 10


def golden(file, group):
    """Returns the arrays of one group in a golden file, by their names within the group."""
    with np.load(DIRECTORY / file) as arrays:
        return {
            name.removeprefix(f"{group}/"): arrays[name]
            for name in arrays
            if name.startswith(f"{group}/")
        }


def assert_close(ours, expected, name):
    error = relative_error(ours, expected)
    print(f"{name}: relative error {error:.1e}")
    assert error <= BOUND, name


def assert_same_inputs(expected, ours):
    assert str(expected["checksum"]) == ours, (
        "the seeds no longer draw the weights and images that the golden files were computed from: "
        "if that is intended, run python -m tests.golden.write"
    )


@pytest.fixture(scope="module", params=KINDS)
def transformers_outputs(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    config = write_tiny_clip(directory, SEED, **KINDS[request.param])
    pixels = clip_pixels(config)
    expected = golden(CLIP_FILE, request.param)
    assert_same_inputs(expected, checksum([*random_tensors(config, SEED).values(), pixels]))
    return load_clip(directory), pixels, expected


def test_features_of_every_kind_of_clip_equal_the_golden_values(transformers_outputs):
    clip, pixels, expected = transformers_outputs
    ids = expected["token_ids"]
    np.testing.assert_array_equal(clip.tokenize(TEXTS), ids[: len(TEXTS)])
    image, text = clip.encode_image(pixels), clip.encode_text(ids)
    assert_close(image, expected["image_features"], "image features")
    assert_close(text, expected["text_features"], "text features")
    zero_shot = clip.logit_scale * normalize(image) @ normalize(text).T
    assert_close(zero_shot, expected["zero_shot_logits"], "zero-shot logits")


@pytest.mark.parametrize("transformers_outputs", ["openai"], indirect=True)
def test_attention_weights_equal_the_golden_values(transformers_outputs):
    clip, pixels, expected = transformers_outputs
    graphdef, state = nnx.split(clip.vision)

    @jax.jit
    def attentions(state, pixels):
        tower = nnx.merge(graphdef, state)
        tokens, weights = tower.embed(pixels), []
        for layer in tower.layers:
            tokens, attention = layer(tokens)
            weights.append(attention)
        return weights

    ours = attentions(state, pixels)
    for number, pair in enumerate(zip(ours, expected["attentions"], strict=True), start=1):
        assert_close(*pair, f"attention of layer {number}")


def padded(array):
    """Pads with repeated rows instead of zeros, so that padding that leaks changes the result."""
    return jnp.asarray(np.resize(array, (ROWS, *array.shape[1:])))


@pytest.fixture(scope="module", params=CASES)
def method(request, tmp_path_factory):
    """Returns a case, its inputs, the recomputation's outputs, and a builder of models."""
    case = CASES[request.param]
    inputs, expected = case_inputs(case), golden(FG_VPL_FILE, request.param)
    assert_same_inputs(expected, inputs.checksum())
    clip, other = (tmp_path_factory.mktemp("clip") for _ in range(2))
    write_tiny_clip(clip, SEED, **case.clip)
    write_tiny_clip(other, OTHER_SEED, **case.clip)
    clip, other = load_clip(clip), load_clip(other)
    text_features = class_text_features(clip, CLASS_NAMES, TEMPLATES)

    def make_model(object_query="class_token"):
        model = FGVPL(
            clip,
            text_features,
            num_prompts=case.num_prompts,
            prompt_layer=1,
            attention_map="product",
            connectivity=case.connectivity,
            text_residual_ratio=case.text_residual_ratio,
            object_logit_weight=case.object_logit_weight,
            object_query=object_query,
            cache_votes="sum",
            leave_one_out=False,
            compute_dtype=None,
            rematerialise=False,
            rngs=nnx.Rngs(0),
        )
        model.encoder.prompt[...] = jnp.asarray(inputs.prompt)
        model.encoder.fine_grained_layer = trainable_copy(other.vision.layers[-1])
        for adapter, (kernel, bias) in (
            (model.head.text_adapter, inputs.text_adapter),
            (model.head.visual_adapter, inputs.visual_adapter),
        ):
            adapter.kernel[...], adapter.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
        return model

    return case, inputs, expected, make_model


@pytest.fixture(scope="module")
def encoded(method):
    """Returns features of the padded query and support images, and the visual cache."""
    _, inputs, _, make_model = method
    graphdef, state = nnx.split(make_model())

    @jax.jit
    def encode(state, images):
        model = nnx.merge(graphdef, state)
        return model.features(images), model.support_features(images)

    queries, _ = encode(state, padded(inputs.queries))
    support, cached = encode(state, padded(inputs.support))
    cache = VisualCache(
        *cached,
        labels=padded(SUPPORT_LABELS),
        valid=jnp.arange(ROWS) < len(SUPPORT_LABELS),
    )
    return {"queries": queries, "support": support}, cache


@pytest.mark.parametrize("images", ["queries", "support"])
def test_features_maps_and_masks_equal_the_golden_values(method, encoded, images):
    _, _, expected, _ = method
    real = len(expected[f"{images}/image"])
    ours = {name: x[:real] for name, x in encoded[0][images]._asdict().items()}
    np.testing.assert_array_equal(ours.pop("object_mask"), expected[f"{images}/object_mask"])
    for name, features in ours.items():
        assert_close(features, expected[f"{images}/{name}"], name)


@pytest.mark.parametrize("object_query", ["class_token", "object_patches"])
def test_logits_and_loss_equal_the_golden_values(method, encoded, object_query):
    case, inputs, expected, make_model = method
    features, cache = encoded
    graphdef, state = nnx.split(make_model(object_query))

    @jax.jit
    def logits_and_loss(state, features, cache, batch):
        model = nnx.merge(graphdef, state)
        logits = model.logits(features, cache, case.cache_logit_weight)
        return logits, weighted_loss(logits, batch)[0]

    real = len(QUERY_LABELS)
    batch = StepBatch(
        padded(inputs.queries),
        padded(QUERY_LABELS),
        jnp.asarray(np.arange(ROWS) < real, jnp.float32),
    )
    logits, loss = logits_and_loss(state, features["queries"], cache, batch)
    assert_close(logits[:real], expected[f"{object_query}/logits"], "logits")
    assert_close(loss, expected[f"{object_query}/loss"], "cross-entropy")


def test_text_weights_and_zero_shot_logits_equal_the_golden_values(method):
    _, inputs, expected, make_model = method
    graphdef, state = nnx.split(make_model())
    zero_shot = jax.jit(lambda state, x: nnx.merge(graphdef, state).zero_shot_logits(x))
    assert_close(state["text_features"][...], expected["text_weights"], "text weights")
    logits = zero_shot(state, jnp.asarray(inputs.queries))
    assert_close(logits, expected["zero_shot_logits"], "zero-shot logits")


def test_the_golden_values_depend_on_the_settings():
    """Values that do not depend on a setting would not check it."""
    for name in CASES:
        expected = golden(FG_VPL_FILE, name)
        masks = expected["queries/object_mask"]
        assert 4 <= masks.sum(axis=1).max() < masks.shape[1]
        both = [expected[f"{query}/logits"] for query in ("class_token", "object_patches")]
        assert relative_error(*both) > 100 * BOUND


@pytest.mark.torch
def test_the_script_writes_the_committed_files(tmp_path):
    pytest.importorskip("torch", reason="the script runs transformers' CLIP: make parity")
    from tests.golden.write import write

    write(tmp_path)
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == sorted((CLIP_FILE, FG_VPL_FILE))
    for file in written:
        with np.load(tmp_path / file) as new, np.load(DIRECTORY / file) as committed:
            assert set(new) == set(committed)
            for name in new:
                if new[name].dtype.kind == "f":
                    assert relative_error(new[name], committed[name]) <= REWRITTEN, name
                else:
                    np.testing.assert_array_equal(new[name], committed[name], err_msg=name)


@pytest.mark.torch
@pytest.mark.parametrize("name", CASES)
def test_the_recomputed_clip_equals_that_of_transformers(name, tmp_path):
    """Compares the CLIP inside FG-VPL's oracle with transformers' CLIP, both in float64."""
    torch = pytest.importorskip("torch", reason="runs transformers' CLIP: make parity")
    from tests.golden import recomputation
    from tests.golden.write import token_ids, transformers_clip

    overrides = CASES[name].clip
    config = write_tiny_clip(tmp_path, SEED, **overrides)
    tensors, pixels = random_tensors(config, SEED), clip_pixels(config).astype(np.float64)
    ids, tower = token_ids(tmp_path, TEXTS, config), recomputation.VisionTower(tensors, config)
    model = transformers_clip(tmp_path, "sdpa")
    with torch.no_grad():
        image = model.get_image_features(torch.tensor(pixels.transpose(0, 3, 1, 2))).pooler_output
        text = model.get_text_features(torch.tensor(ids.astype(np.int64))).pooler_output
    ours = [tower.plain_features(x) for x in pixels]
    assert relative_error(ours, image) <= FLOAT64_BOUND
    ours = [recomputation.text_features(x, tensors, config) for x in ids]
    assert relative_error(ours, text) <= FLOAT64_BOUND
