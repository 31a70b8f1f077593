"""Augmentation and batches are deterministic, complete and padded."""

import numpy as np
import pytest
from PIL import Image

from fgvpl_jax.data import (
    ImageCache,
    Share,
    UnreadableImage,
    batches,
    eval_batches,
    random_crop_and_flip,
    train_batches,
    unreadable_images,
)
from fgvpl_jax.data.splits import make_split
from fgvpl_jax.data.transforms import random_box

SIZE = 16


def centre(image):
    return np.asarray(image.resize((SIZE, SIZE)), np.uint8)


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return make_split(tmp_path, [(f"{i}.png", i % 3) for i in range(10)])


def epoch(split, batch_size=4, seed=1, epoch=0):
    augment = random_crop_and_flip(SIZE, Image.Resampling.BICUBIC)
    return list(train_batches(split, batch_size, augment=augment, seed=seed, epoch=epoch))


def by_image(epoch_batches):
    return {
        int(i): pixels
        for batch in epoch_batches
        for i, pixels, w in zip(batch.indices, batch.inputs, batch.weights, strict=True)
        if w
    }


def test_an_epoch_shows_every_image_once_and_pads_the_last_batch(split):
    got = epoch(split)
    assert [b.inputs.shape for b in got] == [(4, SIZE, SIZE, 3)] * 3
    assert got[-1].weights.tolist() == [1, 1, 0, 0]
    assert got[-1].indices.tolist()[2:] == [-1, -1]
    seen = np.concatenate([b.indices[b.weights > 0] for b in got])
    assert sorted(seen) == list(range(10))
    for batch in got:
        real = batch.weights > 0
        np.testing.assert_array_equal(batch.labels[real], batch.indices[real] % 3)


def test_seed_and_epoch_decide_everything(split, monkeypatch):
    first = epoch(split)
    monkeypatch.setattr(batches, "NUM_THREADS", 1)
    again = epoch(split)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.indices, b.indices)
    order = [b.indices.tolist() for b in first]
    assert order != [b.indices.tolist() for b in epoch(split, epoch=1)]
    assert order != [b.indices.tolist() for b in epoch(split, seed=2)]


@pytest.mark.parametrize("first_batch", [1, 2, 3])
def test_an_epoch_resumes_with_the_remaining_batches(split, first_batch):
    augment = random_crop_and_flip(SIZE, Image.Resampling.BICUBIC)
    rest = list(train_batches(split, 4, augment=augment, seed=1, epoch=0, first_batch=first_batch))
    for a, b in zip(rest, epoch(split)[first_batch:], strict=True):
        np.testing.assert_array_equal(a.inputs, b.inputs)
        np.testing.assert_array_equal(a.indices, b.indices)
        np.testing.assert_array_equal(a.weights, b.weights)


def test_the_batch_size_changes_no_image(split):
    small, large = by_image(epoch(split, 3)), by_image(epoch(split, 7))
    assert small.keys() == large.keys()
    for index, pixels in small.items():
        np.testing.assert_array_equal(pixels, large[index])


def test_evaluation_is_in_order_and_unaugmented(split):
    got = list(eval_batches(split, 4, transform=centre))
    assert np.concatenate([b.indices for b in got]).tolist() == [*range(10), -1, -1]
    np.testing.assert_array_equal(got[1].inputs[1], centre(split.image(5)))


def test_an_unreadable_image_is_named_or_raised(split):
    split.path(5).write_bytes(b"")
    got = list(eval_batches(split, 4, transform=centre))
    assert got[1].weights.tolist() == [1, 0, 1, 1]
    assert [len(b.unreadable) for b in got] == [0, 1, 0]
    assert "5.png: the file is empty" in got[1].unreadable[0]
    with pytest.raises(UnreadableImage, match=r"5\.png"):
        list(eval_batches(split, 4, transform=centre, strict=True))
    with pytest.raises(UnreadableImage, match=r"5\.png"):
        epoch(split)
    (problem,) = unreadable_images(split, transform=centre, cache=None)
    assert "5.png: the file is empty" in problem


def test_a_batch_without_readable_images_keeps_its_shape(split):
    """Another shape would need another compiled program."""
    for i in range(4, 8):
        split.path(i).write_bytes(b"")
    shapes = {b.inputs.shape for b in eval_batches(split, 4, transform=centre)}
    assert shapes == {(4, SIZE, SIZE, 3)}


@pytest.mark.parametrize("size", [(64, 64), (500, 375), (40, 400)])
def test_boxes_keep_to_area_and_aspect(size):
    width, height = size
    rng = np.random.default_rng(0)
    boxes = [random_box(width, height, rng) for _ in range(2000)]
    areas, aspects, lefts = [], [], []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        w, h = right - left, bottom - top
        areas.append(w * h / (width * height))
        aspects.append(w / h)
        lefts.append(left)
    if size == (40, 400):  # no box of half the area fits: centred fallback
        assert {(b[2] - b[0], b[3] - b[1]) for b in boxes} == {(40, 53)}
        return
    assert min(areas) > 0.47
    assert max(areas) <= 1
    assert min(aspects) > 0.72
    assert max(aspects) < 1.4
    assert np.std(lefts) > 0
    if size == (64, 64):  # every aspect fits, so the mean of its logarithm is 0
        assert abs(np.mean(np.log(aspects))) < 0.02


def test_half_of_the_images_are_flipped():
    image = Image.fromarray(np.tile(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (32, 1, 3)))
    augment, rng = random_crop_and_flip(SIZE, Image.Resampling.BICUBIC), np.random.default_rng(0)
    flipped = [bool(a[0, 0, 0] > a[0, -1, 0]) for a in (augment(image, rng) for _ in range(400))]
    assert 0.42 < np.mean(flipped) < 0.58


@pytest.mark.parametrize("count", [2, 3, 4])
def test_shares_of_training_batches_make_up_the_whole(split, count):
    """10 images in batches of 4, padded to 12 rows."""
    augment = random_crop_and_flip(SIZE, Image.Resampling.BICUBIC)

    def rows(share):
        return list(
            train_batches(split, 4, augment=augment, seed=1, epoch=0, num_rows=12, share=share)
        )

    whole = rows(Share())
    assert [b.weights.sum() for b in whole] == [4, 4, 2]
    assert [len(b.inputs) for b in whole] == [12, 12, 12]
    parts = [rows(Share(number, count)) for number in range(count)]
    for all_rows, *shares in zip(whole, *parts, strict=True):
        for name in ("inputs", "labels", "weights", "indices"):
            together = np.concatenate([getattr(share, name) for share in shares])
            np.testing.assert_array_equal(together, getattr(all_rows, name))
    unpadded = epoch(split)
    for padded, plain in zip(whole, unpadded, strict=True):
        np.testing.assert_array_equal(padded.inputs[:4], plain.inputs)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("num_images", "count", "num_files"), [(10, 2, 2), (10, 3, 3), (4, 3, 2), (1, 2, 1)]
)
def test_shares_of_an_evaluation_make_up_the_whole(
    split, num_images, count, num_files, kept, tmp_path
):
    split = split.select(range(num_images))
    cache = ImageCache(tmp_path / "cache", 10**6) if kept else None
    for _ in range(1 + kept):
        parts = [
            list(eval_batches(split, 4 * count, transform=centre, cache=cache, share=share))
            for share in (Share(number, count) for number in range(count))
        ]
        assert len({len(part) for part in parts}) == 1
        assert {b.inputs.shape for part in parts for b in part} == {(4, SIZE, SIZE, 3)}
        seen = {}
        for batch in (b for part in parts for b in part):
            real = batch.indices >= 0
            np.testing.assert_array_equal(real, batch.weights > 0)
            assert not set(batch.indices[real].tolist()) & seen.keys()
            seen |= dict(zip(batch.indices[real].tolist(), batch.inputs[real], strict=True))
            np.testing.assert_array_equal(split.labels[batch.indices[real]], batch.labels[real])
        assert seen.keys() == set(range(num_images))
        for index, image in seen.items():
            np.testing.assert_array_equal(image, centre(split.image(index)))
        if kept:  # one file for each share that is not empty
            assert len(list((tmp_path / "cache").iterdir())) == num_files
