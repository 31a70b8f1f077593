"""Frozen features: what they are computed from, what is cached, and when it is recomputed."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fgvpl_jax import load_clip, training
from fgvpl_jax.data import (
    ImageCache,
    Share,
    Split,
    image_generator,
    load_folder,
    random_crop_and_flip,
    train_batches,
)
from fgvpl_jax.recognition import class_text_features
from fgvpl_jax.training import (
    FeatureInputs,
    FewShotInputs,
    PixelInputs,
    data_mesh,
    kept_text_features,
)
from fgvpl_jax.visual_prompt import FeatureKindsEncoder
from tests.conftest import write_photo_folders
from tests.tiny_backbones import write_tiny_backbone
from tests.tiny_clip import write_tiny_clip


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


def features_of(clip, images):
    return np.asarray(clip.encode_image(clip.image_encoder.normalize_pixels(jnp.asarray(images))))


def record_decoding(monkeypatch):
    """Returns a list that collects the index of every decoded image."""
    calls, image = [], Split.image
    monkeypatch.setattr(Split, "image", lambda split, i: calls.append(i) or image(split, i))
    return calls


def test_an_epoch_has_the_features_of_its_pixels_in_the_same_batches(clip, photos, cache):
    inputs = FeatureInputs(clip, 5, cache, data_mesh())
    augment = random_crop_and_flip(clip.image_size, clip.image_processor.resample)
    for _ in range(2):  # computed, then read from the cache
        for epoch in range(2):
            pixels = list(train_batches(photos, 4, augment=augment, seed=5, epoch=epoch))
            batches = list(inputs.epoch(photos, 4, epoch))
            assert len(batches) == len(pixels) == 3
            for batch, of_pixels in zip(batches, pixels, strict=True):
                for name in ("labels", "weights", "indices"):
                    np.testing.assert_array_equal(getattr(batch, name), getattr(of_pixels, name))
                real = batch.weights > 0
                expected = features_of(clip, of_pixels.inputs)[real]
                np.testing.assert_allclose(batch.inputs[real], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "resample"),
    [("open_clip", "BICUBIC"), ("siglip", "BILINEAR"), ("open_clip_variant", "BILINEAR")],
)
def test_crops_are_resized_with_the_checkpoints_own_filter(kind, resample, photos, cache, tmp_path):
    write_tiny_backbone(tmp_path / kind, kind)
    inputs = PixelInputs(load_clip(tmp_path / kind), 5, cache)
    size = inputs.transform(photos.image(0)).shape[0]
    found = {}
    for name in ("BICUBIC", "BILINEAR"):
        augment = random_crop_and_flip(size=size, resample=Image.Resampling[name])
        crops = [augment(photos.image(i), image_generator(5, 0, i)) for i in range(len(photos))]
        batch = next(inputs.epoch(photos, 9, 0))
        found[name] = (batch.inputs == np.stack(crops)[batch.indices]).all()
    assert [name for name, same in found.items() if same] == [resample]


def test_evaluation_has_the_features_of_the_checkpoints_own_transform(clip, photos, cache):
    inputs = FeatureInputs(clip, 5, cache, data_mesh())
    expected = features_of(
        clip, np.stack([clip.resize_and_crop(photos.image(i)) for i in range(len(photos))])
    )
    for _ in range(2):
        batches = list(inputs.evaluation(photos, 4))
        found = np.concatenate([batch.inputs[batch.weights > 0] for batch in batches])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert [batch.indices.tolist() for batch in batches][-1] == [8, -1, -1, -1]


def test_cached_features_are_shared_and_need_no_decoding_or_encoding(
    clip, photos, cache, monkeypatch
):
    first = FeatureInputs(clip, 5, cache, data_mesh())
    made = FewShotInputs(first, photos, photos, 9)
    before = made.augmented(0), made.plain(), made.validation()[0]
    second = FeatureInputs(clip, 5, cache, data_mesh())
    monkeypatch.setattr(second, "_encoder", lambda _: pytest.fail("encoded again"))
    calls = record_decoding(monkeypatch)
    again = FewShotInputs(second, photos, photos, 9)
    after = again.augmented(0), again.plain(), again.validation()[0]
    assert not calls
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


def test_features_of_different_encoders_are_kept_apart(clip, photos, cache):
    def plain(attention_map):
        encoder = None
        if attention_map:
            encoder = FeatureKindsEncoder(
                clip.image_encoder, attention_map=attention_map, connectivity=2
            )
        inputs = FeatureInputs(clip, 5, cache, data_mesh(), encoder)
        return FewShotInputs(inputs, photos, None, 9).plain()

    names = [None, "product", "border_contrast"]
    once = [plain(name) for name in names]
    assert len(list(cache.folder.glob("*.fgvpl_images"))) == 3 + 1  # and the decoded photos
    for first, name in zip(once, names, strict=True):
        np.testing.assert_array_equal(plain(name), first)
    dim = clip.vision.config.embed_dim
    np.testing.assert_allclose(once[1][:, :dim], once[0], rtol=1e-5, atol=1e-6)


def test_the_files_of_a_split_are_fingerprinted_once_for_all_augmented_epochs(
    clip, photos, cache, monkeypatch
):
    calls, fingerprint = [], Split.fingerprint
    monkeypatch.setattr(
        Split, "fingerprint", lambda split: calls.append(split) or fingerprint(split)
    )
    inputs = FeatureInputs(clip, 5, cache, data_mesh())
    part = photos.select([0, 1, 3])
    for epoch in range(3):
        list(inputs.epoch(photos, 4, epoch))
        list(inputs.epoch(part, 4, epoch))
    assert calls == [photos, part]


@pytest.mark.parametrize("other", ["seed", "epoch", "backbone", "settings", "photos", "filter"])
def test_features_are_recomputed_if_anything_they_depend_on_changes(
    clip, photos, cache, tmp_path, monkeypatch, other
):
    list(FeatureInputs(clip, 5, cache, data_mesh()).epoch(photos, 9, 0))
    seed, epoch = 5, 0
    if other == "seed":
        seed = 6
    elif other == "epoch":
        epoch = 1
    elif other == "filter":
        monkeypatch.setattr(clip.image_processor, "resample", Image.Resampling.BILINEAR)
    elif other == "photos":
        photos = photos.select([1, 0, *range(2, 9)])
    else:  # the hash of the weights alone would miss a changed epsilon
        overrides = {"vision_config": {"layer_norm_eps": 1e-3}} if other == "settings" else {}
        write_tiny_clip(tmp_path / "clip", seed=int(other == "backbone"), **overrides)
        same = load_clip(tmp_path / "clip").identity.sha256 == clip.identity.sha256
        assert same == (other == "settings")
        clip = load_clip(tmp_path / "clip")
    calls = record_decoding(monkeypatch)
    list(FeatureInputs(clip, seed, cache, data_mesh()).epoch(photos, 9, epoch))
    assert len(calls) == 9


def test_an_unreadable_image_is_named_each_time_until_it_is_repaired(clip, photos, cache):
    victim = photos.path(4)
    content = victim.read_bytes()
    victim.write_bytes(b"")
    for _ in range(2):
        (batch,) = FeatureInputs(clip, 5, cache, data_mesh()).evaluation(photos, 9)
        assert batch.weights.tolist() == [1, 1, 1, 1, 0, 1, 1, 1, 1]
        assert "the file is empty" in batch.unreadable[0]
    victim.write_bytes(content)
    (batch,) = FeatureInputs(clip, 5, cache, data_mesh()).evaluation(photos, 9)
    assert batch.weights.all()
    assert not batch.unreadable


def test_without_a_cache_nothing_is_written(clip, photos, tmp_path):
    inputs = FeatureInputs(clip, 5, None, data_mesh())
    list(inputs.epoch(photos, 4, 0))
    list(inputs.evaluation(photos, 4))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_few_shot_inputs_keep_the_order_of_the_split_without_unreadable_images(clip, photos):
    photos.path(2).write_bytes(b"")
    few_shot = FewShotInputs(PixelInputs(clip, 5, None), photos.select([0, 1, 3, 5]), photos, 3)
    expected = [clip.resize_and_crop(photos.image(i)) for i in (0, 1, 3, 5)]
    np.testing.assert_array_equal(few_shot.plain(), expected)
    inputs, labels = few_shot.validation()
    assert len(inputs) == len(labels) == 8
    np.testing.assert_array_equal(labels, np.delete(photos.labels, 2))


def test_three_processes_exchange_the_features_of_one(clip, photos, cache, monkeypatch):
    """Threads stand for processes; two parts of the support images are shorter than the first."""
    victim = photos.path(2)
    victim.write_bytes(b"")
    support = photos.select([8, 0, 1, 3, 5])

    def features():
        few_shot = FewShotInputs(FeatureInputs(clip, 5, cache, data_mesh()), support, photos, 6)
        return few_shot.augmented(1), few_shot.plain(), *few_shot.validation()

    expected = features()
    jobs, everyone, ours = threading.local(), threading.Barrier(3, timeout=60), [None] * 3

    def gather_rows(rows):
        ours[jobs.number] = rows
        everyone.wait()
        found = np.concatenate(ours)
        everyone.wait()
        return found

    def process(number):
        jobs.number = number
        return features()

    monkeypatch.setattr(training.inputs, "process_share", lambda: Share(jobs.number, 3))
    for module in (training.inputs, training.few_shot_inputs):
        monkeypatch.setattr(module, "gather_rows", gather_rows)
    calls = record_decoding(monkeypatch)
    with ThreadPoolExecutor(3) as threads:
        for _ in range(2):
            for found in threads.map(process, range(3)):
                for theirs, of_one in zip(found, expected, strict=True):
                    np.testing.assert_allclose(theirs, of_one, rtol=1e-4, atol=1e-5)
    assert len(calls) == 5 + 5 + 9 + 1  # each image once, the unreadable one again


def test_texts_are_encoded_once_for_the_same_names_and_templates(clip, cache, monkeypatch):
    names = ("a", "b")
    first = kept_text_features(clip, names, ("a {}.",), cache)
    np.testing.assert_array_equal(first, class_text_features(clip, names, ("a {}.",)))
    calls, encode = [], clip.encode_text
    monkeypatch.setattr(clip, "encode_text", lambda ids: calls.append(1) or encode(ids))
    np.testing.assert_array_equal(first, kept_text_features(clip, names, ("a {}.",), cache))
    assert not calls
    other = kept_text_features(clip, names, ("one {}.",), cache)
    assert calls
    assert not np.array_equal(first, other)
    kept_text_features(clip, ("b", "a"), ("a {}.",), cache)
    assert len(calls) == 2


def test_texts_of_another_tokenizer_are_encoded_again(clip, cache, tmp_path):
    first = kept_text_features(clip, ("a", "b"), ("{}.",), cache)
    shutil.copytree(clip.identity.name, tmp_path / "clip")
    vocabulary = json.loads((tmp_path / "clip" / "vocab.json").read_text())
    vocabulary["a</w>"], vocabulary["b</w>"] = vocabulary["b</w>"], vocabulary["a</w>"]
    (tmp_path / "clip" / "vocab.json").write_text(json.dumps(vocabulary))
    other = kept_text_features(load_clip(tmp_path / "clip"), ("a", "b"), ("{}.",), cache)
    np.testing.assert_array_equal(other, first[::-1])
