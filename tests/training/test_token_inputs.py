"""Kept tokens: what they equal, where they are kept, and when they are computed again."""

import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import load_clip
from fgvpl_jax.data import (
    ImageCache,
    Share,
    Split,
    load_folder,
    random_crop_and_flip,
    train_batches,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import FVP
from fgvpl_jax.training import TokenInputs, VisualCacheBuilder, data_mesh, split_model, token_inputs
from fgvpl_jax.training.token_inputs import check_range
from fgvpl_jax.variables import to_device
from tests.compiled import run
from tests.conftest import write_photo_folders
from tests.method_settings import FVP_SETTINGS

SEED, PASSES = 5, 2


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


@pytest.fixture
def photos(tmp_path):
    write_photo_folders(tmp_path / "photos", 3)
    return load_folder(str(tmp_path / "photos")).train


@pytest.fixture
def cache(tmp_path):
    return ImageCache(tmp_path / "cache", 10**9)


def model_of(clip, **settings):
    text = to_device(np.eye(3, clip.vision.config.embed_dim))
    settings = FVP_SETTINGS | {"prompt_layer": 2} | settings
    return FVP(clip, text, **settings, rngs=nnx.Rngs(0))


def inputs_of(clip, photos, cache, max_bytes=10**9, **settings):
    return TokenInputs(
        model_of(clip, **settings),
        photos,
        clip,
        SEED,
        cache,
        num_passes=PASSES,
        max_bytes=max_bytes,
        mesh=data_mesh(),
    )


def record_decoding(monkeypatch):
    """Returns a list that collects the index of every decoded image."""
    calls, image = [], Split.image
    monkeypatch.setattr(Split, "image", lambda split, i: calls.append(i) or image(split, i))
    return calls


def assert_same_batches(ours, expected):
    for one, other in zip(ours, expected, strict=True):
        for name in ("labels", "weights", "indices"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        for name in ("tokens", "significance"):
            values = [np.asarray(getattr(batch.inputs, name)) for batch in (one, other)]
            np.testing.assert_array_equal(*(x[other.weights > 0] for x in values))


@pytest.mark.parametrize(("kept", "max_bytes"), [(True, 0), (False, 10**9), (False, 0)])
def test_an_epoch_has_the_tokens_of_its_pixels_and_repeats(
    clip, photos, cache, monkeypatch, tmp_path, kept, max_bytes
):
    inputs = inputs_of(clip, photos, cache if kept else None, max_bytes)
    model = model_of(clip)
    augment = random_crop_and_flip(clip.image_size, clip.image_processor.resample)
    epochs = [list(inputs.epoch(photos, 4, epoch, num_rows=6)) for epoch in range(2 * PASSES)]
    for epoch in range(PASSES):
        pixels = train_batches(photos, 4, augment=augment, seed=SEED, epoch=epoch, num_rows=6)
        for batch, of_pixels in zip(epochs[epoch], pixels, strict=True):
            np.testing.assert_array_equal(batch.indices, of_pixels.indices)
            np.testing.assert_array_equal(batch.labels, of_pixels.labels)
            real = batch.weights > 0
            expected = run(FVP.below_prompt, model, of_pixels.inputs)
            assert batch.inputs.tokens.dtype == np.float16
            for ours, other in zip(batch.inputs, expected, strict=True):
                other = np.asarray(other)[real]
                np.testing.assert_allclose(ours[real], other, rtol=2e-3, atol=2e-3)
        assert_same_batches(epochs[epoch + PASSES], epochs[epoch])
    calls = record_decoding(monkeypatch)
    again = inputs if max_bytes else inputs_of(clip, photos, cache if kept else None, max_bytes)
    assert_same_batches(again.epoch(photos, 4, PASSES, first_batch=1, num_rows=6), epochs[0][1:])
    assert bool(calls) == (not kept and not max_bytes)
    assert (tmp_path / "cache").exists() == kept


@pytest.mark.parametrize("kept", [True, False])
def test_a_part_gets_the_rows_of_the_whole(clip, photos, cache, monkeypatch, kept):
    inputs = inputs_of(clip, photos, cache if kept else None)
    places = [7, 0, 3, 5]
    part = photos.select(places)
    (whole,) = inputs.epoch(photos, 9, 1)
    row_of = {place: row for row, place in enumerate(whole.indices.tolist())}
    (plain,) = inputs.evaluation(photos, 9)
    calls = record_decoding(monkeypatch)
    (batch,) = inputs.epoch(part, 4, 1)
    assert sorted(batch.indices.tolist()) == [0, 1, 2, 3]
    np.testing.assert_array_equal(batch.labels, part.labels[batch.indices])
    rows = [row_of[places[i]] for i in batch.indices]
    np.testing.assert_array_equal(batch.inputs.tokens, whole.inputs.tokens[rows])
    (batch,) = inputs.evaluation(part, 4)
    np.testing.assert_array_equal(batch.inputs.tokens, plain.inputs.tokens[places])
    assert not calls


@pytest.mark.parametrize("kept", [True, False])
def test_three_processes_have_the_rows_of_one(clip, photos, cache, monkeypatch, kept):
    """Also of a fold's training images, and where the last process has none to evaluate."""
    cache = cache if kept else None
    one = inputs_of(clip, photos, cache)
    jobs = []
    for number in range(3):
        monkeypatch.setattr(token_inputs, "process_share", lambda n=number: Share(n, 3))
        jobs.append(inputs_of(clip, photos, cache))
    for split in (photos, photos.select([7, 0, 3, 5])):
        for of_one, *parts in zip(
            one.epoch(split, 6, 1), *(job.epoch(split, 6, 1) for job in jobs), strict=True
        ):
            indices = np.concatenate([part.indices for part in parts])
            np.testing.assert_array_equal(indices, of_one.indices)
            tokens = np.concatenate([part.inputs.tokens for part in parts])
            np.testing.assert_allclose(tokens, of_one.inputs.tokens, rtol=2e-3, atol=2e-3)
        (of_one,) = one.evaluation(split, 9)
        batches = [list(job.evaluation(split, 3)) for job in jobs]
        assert len({len(of_job) for of_job in batches}) == 1
        rows = {}
        for batch in (batch for of_job in batches for batch in of_job):
            for place, row in zip(batch.indices.tolist(), batch.inputs.tokens, strict=True):
                rows[place] = row
        assert sorted(rows)[-len(split) :] == list(range(len(split)))
        found = np.stack([rows[place] for place in range(len(split))])
        expected = of_one.inputs.tokens[: len(split)]
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    calls = record_decoding(monkeypatch)
    list(jobs[0].epoch(split, 6, 1))
    assert not calls


def test_no_pass_is_computed_for_a_full_image_cache_after_the_first(
    clip, photos, tmp_path, monkeypatch
):
    inputs = inputs_of(clip, photos, ImageCache(tmp_path / "cache", 1), max_bytes=0)
    list(inputs.epoch(photos, 9, 0))
    calls = record_decoding(monkeypatch)
    list(inputs.epoch(photos, 9, 1))
    assert len(calls) == len(photos)


def test_evaluation_has_the_tokens_of_the_checkpoints_own_transform(clip, photos, cache):
    inputs = inputs_of(clip, photos, cache)
    images = np.stack([clip.resize_and_crop(photos.image(i)) for i in range(len(photos))])
    expected = run(FVP.below_prompt, model_of(clip), images).tokens
    for _ in range(2):
        batches = list(inputs.evaluation(photos, 4, strict=True))
        found = np.concatenate([batch.inputs.tokens[batch.weights > 0] for batch in batches])
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
        assert [batch.indices.tolist() for batch in batches][-1] == [8, -1, -1, -1]


@pytest.mark.parametrize(
    "other",
    [{"prompt_layer": 3}, {"attention_map": "last_3_residual"}, {"compute_dtype": "bfloat16"}],
)
def test_tokens_are_computed_again_for_other_settings(clip, photos, cache, monkeypatch, other):
    list(inputs_of(clip, photos, cache).epoch(photos, 9, 0))
    calls = record_decoding(monkeypatch)
    list(inputs_of(clip, photos, cache).epoch(photos, 9, 0))
    assert not calls
    list(inputs_of(clip, photos, cache, **other).epoch(photos, 9, 0))
    assert len(calls) == 9


@pytest.mark.parametrize("max_bytes", [0, 10**9])
def test_a_visual_cache_of_tokens_is_that_of_photos(clip, photos, cache, max_bytes):
    graphdef, trainable, frozen = split_model(model_of(clip))
    inputs = inputs_of(clip, photos, cache)

    def support_features(self, images):
        features = self.features(images)
        return features.image, features.object_patches

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FVP, "support_features", support_features)
        found = [
            VisualCacheBuilder(
                graphdef, photos, inputs=one, batch_size=4, max_bytes=max_bytes, mesh=data_mesh()
            )(trainable, frozen)
            for one in (inputs, inputs.pixels)
        ]
    for ours, expected in zip(*found, strict=True):
        real = slice(len(photos))  # rows of padding differ
        ours, expected = np.asarray(ours)[real], np.asarray(expected)[real]
        np.testing.assert_allclose(ours, expected, rtol=0.01, atol=0.01)


def test_tokens_beyond_float16_are_refused():
    check_range(np.ones(3, np.float16))
    with pytest.raises(UserError, match="set prompt_layer to 1"):
        check_range(np.array([1, np.inf], np.float16))
