"""One training step: changed and frozen parameters, padding, gradients, passes and dtypes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scipy.special import log_softmax

from fgvpl_jax import VisualCache, load_clip
from fgvpl_jax.methods import FGVPL, METHODS, Task
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.runs import default_config
from fgvpl_jax.training import (
    TrainState,
    data_mesh,
    make_train_step,
    replicate,
    split_model,
)
from fgvpl_jax.training.train_step import StepBatch, weighted_loss
from fgvpl_jax.variables import Frozen, Trainable, to_device
from tests.cases import further
from tests.comparison import as_float64
from tests.compiled import run
from tests.method_settings import FG_VPL_SETTINGS

CLASSES = ("a", "b", "c")
OPTIMIZER = adamw(cosine(1e-3, 10), 0.01)  # one object, so that tests share the compiled step


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="module")
def text(clip):
    return class_text_features(clip, CLASSES, ("a photo of a {}.",))


@pytest.fixture(scope="module")
def model(clip, text):
    """Returns a model that no test changes."""
    return FGVPL(clip, text, **FG_VPL_SETTINGS, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def cache(clip, model):
    return make_cache(model, clip)


def make_batch(clip, size, seed=0, weights=None):
    rng = np.random.default_rng(seed)
    shape = (size, clip.image_size, clip.image_size, 3)
    return StepBatch(
        to_device(rng.integers(0, 256, shape, dtype=np.uint8), None),
        to_device(rng.integers(0, len(CLASSES), size), np.int32),
        to_device(np.ones(size) if weights is None else weights),
    )


def make_cache(model, clip):
    batch = make_batch(clip, 6, seed=9)
    features = run(FGVPL.support_features, model, batch.inputs)
    labels = to_device(np.arange(6) % 3, np.int32)
    return VisualCache(*features, labels, to_device(np.ones(6), bool))


@jax.jit
def copy_of(tree):
    return jax.tree.map(jnp.copy, tree)


def initial_state(trainable, optimizer):
    """Returns the state of a first step, which may be donated."""
    return TrainState(copy_of(trainable), jax.jit(optimizer.init)(trainable))


def test_training_changes_every_trainable_array_and_no_frozen_bit(clip, model, cache):
    graphdef, trainable, frozen = split_model(model)
    mesh = data_mesh()
    step = make_train_step(graphdef, OPTIMIZER, mesh)
    before = copy_of({"trainable": trainable, "frozen": frozen})
    state = replicate(mesh, initial_state(trainable, OPTIMIZER))
    choices = {"cache_logit_weight": np.float32(1)}
    compiled = step._cache_size()  # may exceed 0, because equal models share the step
    for seed in range(3):
        state, metrics = step(state, frozen, cache, choices, make_batch(clip, 4, seed))
    assert np.isfinite(metrics.loss)
    for old, new in zip(jax.tree.leaves(before["frozen"]), jax.tree.leaves(frozen), strict=True):
        np.testing.assert_array_equal(old, new)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before["trainable"], state[0])
    assert all(jax.tree.leaves(changed))
    assert step._cache_size() <= compiled + 1


def test_no_weight_gradient_of_a_frozen_layer_is_computed(clip, model, cache):
    """The only products in the shape of an MLP kernel are the two of the fine-grained layer."""
    config = clip.vision.config
    graphdef, trainable, frozen = split_model(model)
    mesh = data_mesh()
    arguments = (
        replicate(mesh, initial_state(trainable, OPTIMIZER)),
        frozen,
        cache,
        {"cache_logit_weight": np.float32(1)},
        make_batch(clip, 5),
    )
    program = make_train_step(graphdef, OPTIMIZER, mesh).lower(*arguments).compile()
    width, hidden = config.width, config.mlp_width
    kernel = rf"= f32\[(?:{width},{hidden}|{hidden},{width})\]\S* dot\("
    assert len(re.findall(kernel, program.as_text())) == 2


def test_every_parameter_is_trainable_or_frozen(model):
    _, trainable, _frozen, rest = nnx.split(model, Trainable, Frozen, ...)
    assert not jax.tree.leaves(rest)
    names = {".".join(map(str, path[:2])) for path, _ in nnx.to_flat_state(trainable)}
    assert names == {
        "encoder.fine_grained_layer",
        "encoder.prompt",
        "head.text_adapter",
        "head.visual_adapter",
    }


def test_the_optimizer_holds_state_for_trainables_only(model):
    _, trainable, _ = split_model(model)
    state = jax.eval_shape(OPTIMIZER.init, trainable)
    count = sum(x.size for x in jax.tree.leaves(trainable))
    assert sum(x.size for x in jax.tree.leaves(state) if x.ndim or x.size > 1) == 2 * count


def test_a_padded_batch_equals_the_unpadded_one(clip, model, cache):
    graphdef, trainable, frozen = split_model(model)
    padded = make_batch(clip, 6, weights=[1, 1, 1, 1, 0, 0])
    real = StepBatch(*(to_device(np.asarray(x)[:4], None) for x in padded[:3]))

    @jax.jit
    @jax.value_and_grad
    def loss(trainable, batch):
        logits = nnx.merge(graphdef, trainable, frozen)(batch.inputs, cache, cache_logit_weight=1.0)
        return weighted_loss(logits, batch)[0]

    value, gradient = loss(trainable, real)
    padded_value, padded_gradient = loss(trainable, padded)
    np.testing.assert_allclose(padded_value, value, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(padded_gradient), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_the_config_decides_whether_an_image_matches_itself_in_training(clip, text, leave_one_out):
    config = default_config.get_config()
    config.cache_leave_one_out = leave_one_out
    labels = np.arange(6, dtype=np.int32) % 3
    whole, model = (
        METHODS[name].build(clip, Task(CLASSES, text, labels), config, rngs=nnx.Rngs(0))
        for name in ("fg_vpl", "tar")
    )
    assert whole.leave_one_out == leave_one_out
    features = np.random.default_rng(0).normal(size=(6, text.shape[1])).astype(np.float32)
    cache = VisualCache(to_device(features), None, to_device(labels, None), np.ones(6, bool))
    places = np.array([4, 0, -1], np.int32)  # the last is padding
    expected = 0.0
    for place in places[:2]:
        valid = np.where(np.arange(6) == place, not leave_one_out, cache.valid)
        others = cache._replace(valid=to_device(valid, None))
        logits = run(
            type(model).logits, model, features[place][None], others, cache_logit_weight=1.0
        )
        expected -= log_softmax(np.asarray(logits, np.float64))[0, labels[place]]
    graphdef, trainable, frozen = split_model(model)
    mesh = data_mesh()
    state = replicate(mesh, initial_state(trainable, OPTIMIZER))
    weights = np.array([1, 1, 0], np.float32)
    batch = StepBatch(features[places], labels[places], weights, places)
    step = make_train_step(graphdef, OPTIMIZER, mesh)
    choices = {"cache_logit_weight": np.float32(1)}
    _, metrics = step(state, frozen, cache, choices, batch)
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-5)


def test_the_schedule_is_a_cosine_to_zero_with_weight_decay():
    optimizer = adamw(cosine(0.1, 4), 0.5)
    params = to_device(1)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(4):
        updates, state = update(to_device(0), state, params)
        # With a zero gradient, AdamW only decays: -rate · 0.5 · parameter.
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 4))
        np.testing.assert_allclose(updates, -rate * 0.5 * params, rtol=1e-5)
        params = optax.apply_updates(params, updates)


def test_gradients_agree_with_central_differences_in_float64(clip, model, cache, monkeypatch):
    """Checks every trainable array, with object mask and cached features held fixed."""
    batch = make_batch(clip, 2)
    mask = run(FGVPL.features, model, batch.inputs).object_mask
    assert 0 < np.asarray(mask).mean() < 1
    monkeypatch.setattr("fgvpl_jax.visual_prompt.encoder.object_mask", lambda *_: mask)
    with jax.enable_x64(True):
        graphdef, trainable, frozen = split_model(model)
        trainable, frozen, cache, wide = as_float64((trainable, frozen, cache, batch))
        rng = np.random.default_rng(0)
        # Keeps the effect of prompt and adapters well above rounding errors.
        trainable = jax.tree.map(
            lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape), trainable
        )

        @jax.jit
        @jax.value_and_grad
        def loss(trainable):
            logits = nnx.merge(graphdef, trainable, frozen)(
                wide.inputs, cache, cache_logit_weight=1.0
            )
            return weighted_loss(logits, wide)[0]

        _, gradients = loss(trainable)
        leaves, structure = jax.tree.flatten(trainable)
        names = [jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(trainable)]
        for i, gradient in enumerate(jax.tree.leaves(gradients)):
            assert gradient.dtype == jnp.float64
            direction = rng.normal(size=gradient.shape)
            step = 1e-5

            def at(distance, i=i, direction=direction):
                moved = [x + distance * direction if j == i else x for j, x in enumerate(leaves)]
                return float(loss(jax.tree.unflatten(structure, moved))[0])

            numeric = (at(step) - at(-step)) / (2 * step)
            analytic = np.sum(np.asarray(gradient) * direction)
            # The absolute tolerance is for the key bias of softmax attention, whose gradient is 0.
            np.testing.assert_allclose(analytic, numeric, rtol=1e-5, atol=1e-8, err_msg=names[i])


@pytest.fixture(scope="module")
def sgd_step(clip, text, cache):
    """Returns a function of the number of passes and of whether to recompute activations.

    It takes a step of plain gradient descent, so that parameters differ by no more than gradients
    do, and returns the changes of the parameters and the metrics.
    """
    # The passes have unequal weights, one is padding only, and each image leaves itself out.
    batch = make_batch(clip, 6, weights=[1, 1, 1, 0, 0, 0])
    batch = batch._replace(places=to_device([5, 0, 3, -1, -1, -1], np.int32))
    mesh, optimizer = data_mesh(), optax.sgd(1.0)

    def step(num_passes, rematerialise):
        changed = {"leave_one_out": True, "rematerialise": rematerialise}
        model = FGVPL(clip, text, **FG_VPL_SETTINGS | changed, rngs=nnx.Rngs(0))
        graphdef, trainable, frozen = split_model(model)
        with jax.enable_x64(True):
            trainable, frozen, support, wide = as_float64((trainable, frozen, cache, batch))
            before = jax.tree.map(np.array, jax.tree.leaves(trainable))
            take = make_train_step(graphdef, optimizer, mesh, num_passes)
            choices = {"cache_logit_weight": np.float64(1)}
            state = initial_state(trainable, optimizer)
            state, metrics = take(state, frozen, support, choices, wide)
            after = jax.tree.leaves(state.trainable)
            moved = [new - old for new, old in zip(jax.device_get(after), before, strict=True)]
            return moved, jax.device_get(metrics)

    return step


@pytest.fixture(scope="module")
def plain_step(sgd_step):
    return sgd_step(1, False)


@pytest.mark.parametrize(
    ("num_passes", "rematerialise"), [(3, True), *further((3, False), (2, True))]
)
def test_passes_and_rematerialisation_do_not_change_the_step(
    sgd_step, plain_step, num_passes, rematerialise
):
    plain, plain_metrics = plain_step
    ours, metrics = sgd_step(num_passes, rematerialise)
    assert metrics.weight == 3
    np.testing.assert_allclose(metrics, plain_metrics, rtol=1e-10)
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_bfloat16_leaves_parameters_loss_and_gradients_in_float32(clip, text, model, cache):
    settings = FG_VPL_SETTINGS | {"compute_dtype": "bfloat16"}
    narrow = FGVPL(clip, text, **settings, rngs=nnx.Rngs(0))
    mesh, batch = data_mesh(), make_batch(clip, 4)
    losses = []
    for one, support in ((model, cache), (narrow, make_cache(narrow, clip))):
        graphdef, trainable, frozen = split_model(one)
        assert {support.image.dtype, support.object.dtype} == {jnp.dtype("float32")}
        state = replicate(mesh, initial_state(trainable, OPTIMIZER))
        step = make_train_step(graphdef, OPTIMIZER, mesh)
        state, metrics = step(state, frozen, support, {"cache_logit_weight": np.float32(1)}, batch)
        assert {x.dtype for x in jax.tree.leaves((state.trainable, metrics))} == {
            jnp.dtype("float32")
        }
        losses.append(float(metrics.loss))
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
