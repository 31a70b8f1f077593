"""The PyTorch reference of the speed benchmarks computes the same as our code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import VisualCache, load_clip
from fgvpl_jax.methods import FGVPL
from fgvpl_jax.methods.optimizers import adamw, cosine
from fgvpl_jax.training import TrainState, data_mesh, make_train_step, split_model
from fgvpl_jax.training.train_step import StepBatch
from tests.comparison import relative_error
from tests.method_settings import FG_VPL_SETTINGS

torch = pytest.importorskip("torch", reason="compares live with PyTorch: make parity")
pytestmark = pytest.mark.torch
torch_reference = pytest.importorskip("benchmarks.torch_reference")
as_torch = torch_reference.to_torch

CLASSES, LEARNING_RATE, WEIGHT_DECAY = 5, 1e-3, 0.01


@pytest.fixture(scope="module")
def both(tiny_clip_dir):
    """Returns both models, images, labels, and the cache as JAX and as PyTorch arrays."""
    clip = load_clip(str(tiny_clip_dir))
    rng = np.random.default_rng(0)
    text = rng.normal(size=(CLASSES, clip.vision.config.embed_dim)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    model = FGVPL(clip, jnp.asarray(text), **FG_VPL_SETTINGS, rngs=nnx.Rngs(0))
    reference = torch_reference.TorchFGVPL(clip, model)
    side = clip.image_size
    images = jnp.asarray(rng.integers(0, 256, (6, side, side, 3), dtype=np.uint8))
    labels = jnp.asarray(rng.integers(0, CLASSES, 6), jnp.int32)
    support = model.support_features(images)
    keys = jnp.arange(len(images), dtype=jnp.int32) % CLASSES
    # One image per class, leaving out the sixth: the reference sums over shots, as the paper does.
    cache = VisualCache(
        support.image[:CLASSES], support.object[:CLASSES], keys[:CLASSES], jnp.ones(CLASSES, bool)
    )
    theirs = (as_torch(cache.image), as_torch(cache.object), torch.arange(CLASSES))
    return model, reference, images, labels, cache, theirs


def test_features_masks_and_logits_agree(both):
    model, reference, images, _, cache, their_cache = both
    ours = model.features(images)
    with torch.inference_mode():
        image, object_, patches, mask = reference.features(as_torch(images))
        logits = reference(as_torch(images), their_cache, 2.0)
        zero_shot = reference.zero_shot_logits(as_torch(images))
    np.testing.assert_array_equal(ours.object_mask, mask)
    for one, other in (
        (ours.image, image),
        (ours.object, object_),
        (ours.object_patches, patches),
        (model(images, cache, cache_logit_weight=2.0), logits),
        (model.zero_shot_logits(images), zero_shot),
    ):
        assert relative_error(one, other.numpy()) < 1e-5


def test_attention_is_fused_if_its_weights_are_not_needed(both):
    reference, images = both[1], both[2]
    with torch.inference_mode():
        tokens = reference.embed(as_torch(images))
        bias = torch.zeros(len(tokens), 1, 1, tokens.shape[1])
        for layer in (reference.last_layer, reference.fine_grained_layer):
            assert torch_reference.block(layer, tokens, bias)[1] is None
        for layer in reference.weighing[:-1]:
            assert torch_reference.block(layer, tokens)[1] is not None


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_reference_trains_and_evaluates_in_bfloat16(tiny_clip_dir, both, compiled):
    model, _, images, labels, cache, _ = both
    arrays = [np.asarray(array) for array in (cache.image, cache.object, cache.labels)]
    contestants = torch_reference.contestants(
        load_clip(str(tiny_clip_dir)),
        model,
        np.asarray(images),
        np.asarray(labels),
        arrays,
        LEARNING_RATE,
        WEIGHT_DECAY,
        "bfloat16",
        compiled=compiled,
    )
    _, zero_shot = contestants["torch_evaluation"]()
    assert relative_error(model.zero_shot_logits(images), zero_shot) < 0.05
    first, second = (contestants["torch_train_step"]() for _ in range(2))
    assert second < first


def test_a_training_step_agrees(both):
    model, reference, images, labels, cache, their_cache = both
    graphdef, trainable, frozen = split_model(model)
    optimizer = adamw(cosine(LEARNING_RATE, 10), WEIGHT_DECAY)
    state = TrainState(jax.tree.map(jnp.copy, trainable), optimizer.init(trainable))
    batch = StepBatch(images, labels, jnp.ones(len(labels)))
    (after, _), metrics = make_train_step(graphdef, optimizer, data_mesh())(
        state, frozen, cache, {"cache_logit_weight": jnp.float32(1)}, batch
    )
    theirs = torch.optim.AdamW(
        reference.trainable_parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    loss = torch.nn.functional.cross_entropy(
        reference(as_torch(images), their_cache), as_torch(labels).long()
    )
    loss.backward()
    assert metrics.loss / metrics.weight == pytest.approx(loss.item(), rel=1e-5)
    gradients = [p.grad for p in reference.trainable_parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert sum(p.numel() for p in reference.trainable_parameters()) == sum(
        leaf.size for leaf in jax.tree.leaves(trainable)
    )
    theirs.step()
    moved = nnx.to_flat_state(after)
    ours = {".".join(map(str, path)): np.asarray(value[...]) for path, value in moved}
    for name, parameter in (
        ("encoder.prompt", reference.prompt),
        ("head.visual_adapter.kernel", reference.visual_adapter.weight.T),
        ("encoder.fine_grained_layer.fc1.kernel", reference.fine_grained_layer.mlp.fc1.weight.T),
    ):
        assert relative_error(ours[name], parameter.detach().numpy()) < 1e-4
