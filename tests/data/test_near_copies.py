"""Copies of a photo are found whatever their size, format and brightness; other photos are not."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from fgvpl_jax.data import load_shapes
from fgvpl_jax.data.near_copies import (
    SIDE,
    SIGNATURE,
    SQUARES,
    are_alike,
    copied_from,
    first_copies,
    groups_of_copies,
    least_correlation,
    linked_copies,
    signature,
    signatures,
)
from fgvpl_jax.data.splits import make_split

PHOTOS = [
    Image.fromarray(getattr(skimage.data, name)())
    for name in ("astronaut", "cat", "coffee", "rocket", "camera", "coins", "moon", "page", "text")
]


def compressed(image, quality):
    stream = io.BytesIO()
    image.convert("RGB").save(stream, "JPEG", quality=quality)
    return Image.open(stream)


COPIES = {
    "a third": lambda image: image.resize((image.width // 3, image.height // 3)),
    "a thumbnail": lambda image: compressed(image.resize((120, 90)), 75),
    "compressed": lambda image: compressed(image, 20),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind):
    found = np.array([signature(photo) for photo in PHOTOS])
    copies = np.array([signature(COPIES[kind](photo)) for photo in PHOTOS])
    alike = are_alike(copies, found, least_correlation(np.concatenate([found, copies])))
    np.testing.assert_array_equal(alike, np.eye(len(PHOTOS), dtype=bool))


def test_copies_are_defined_by_correlation_and_difference():
    """numpy's own correlation and difference of the squares, in double precision."""
    photos = [*PHOTOS, *(COPIES[kind](photo) for kind in COPIES for photo in PHOTOS)]
    squares = np.array(
        [
            np.asarray(photo.convert("YCbCr").resize((SIDE, SIDE), Image.Resampling.BOX), float)
            for photo in photos
        ]
    )
    light = np.corrcoef(squares[..., 0].reshape(len(photos), -1))
    colour = squares[..., 1:].reshape(len(photos), -1)
    apart = np.sqrt(((colour[:, None] - colour) ** 2).mean(-1))
    found = np.array([signature(photo) for photo in photos])
    np.testing.assert_array_equal(are_alike(found, found, 0.9), (light >= 0.9) & (apart <= 16))


def test_other_photos_are_no_copies():
    scenes = load_shapes().train
    found = np.array([signature(scenes.image(place)) for place in range(len(scenes))])
    assert len(groups_of_copies(first_copies(found))) <= 4
    left, right = (Image.new("RGB", (64, 64), (128, 128, 128)) for _ in range(2))
    left.paste((200, 60, 60), (10, 10, 40, 40))  # of about equal brightness
    right.paste((60, 120, 60), (10, 10, 40, 40))
    assert not are_alike(signature(left)[None], signature(right)[None], 0.7).any()


def test_copies_of_noise_are_found_though_little_of_it_survives():
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(8)]
    copies = [compressed(photo.resize((32, 24)), 75) for photo in photos]
    found = np.array([signature(photo) for photo in photos + copies])
    assert first_copies(found).tolist() == [*range(8), *range(8)]


def test_pictures_that_are_alike_by_nature_need_a_higher_correlation():
    """Handwritten digits, 8 × 8: most pairs of different ones are no copies."""
    digits = [
        Image.fromarray((255 - 15 * digit).astype(np.uint8)) for digit in load_digits().images
    ]
    found = np.array([signature(digit) for digit in digits])
    noise = np.random.default_rng(0).normal(size=(300, SIGNATURE)).astype(np.float32)
    noise[:, :SQUARES] -= noise[:, :SQUARES].mean(axis=1, keepdims=True)
    noise[:, :SQUARES] /= np.linalg.norm(noise[:, :SQUARES], axis=1, keepdims=True)
    assert least_correlation(found) > 0.95
    # 64 squares without their mean: the deviation of Fisher's z is 1 / sqrt(64 - 4).
    assert least_correlation(noise) == pytest.approx(np.tanh(7 / np.sqrt(60)), abs=0.01)
    assert least_correlation(found[:5]) == 0.95
    first = first_copies(found)
    assert (first != np.arange(len(first))).mean() < 0.2


def test_plain_photos_are_copies_of_equal_ones_alone():
    colours = [(0, 0, 0), (200, 30, 40), (201, 30, 40)]
    found = np.array([signature(Image.new("RGB", (9, 9), colour)) for colour in colours])
    assert not found[:, :SQUARES].any()
    assert first_copies(found).tolist() == [0, 1, 2]
    twice = np.concatenate([found, found, np.zeros((2, SIGNATURE), np.float32)])  # 2 unreadable
    assert first_copies(twice).tolist() == [0, 1, 2, 0, 1, 2, 6, 7]


def vector(*angles):
    """Returns unit vectors in a plane, whose correlation is the cosine of their angle."""
    rows = np.zeros((len(angles), SIGNATURE), np.float32)
    rows[:, 0], rows[:, 1] = np.cos(np.radians(angles)), np.sin(np.radians(angles))
    return rows


def test_a_chain_of_photos_is_no_single_group():
    """Neighbours are 15 degrees apart (0.97), photos two steps apart 30 degrees (0.87)."""
    assert first_copies(vector(0, 15, 30, 45, 60)).tolist() == [0, 0, 2, 2, 4]
    assert groups_of_copies(np.array([0, 0, 2, 2, 4])) == [[0, 1], [2, 3]]


def test_a_chain_of_photos_is_linked():
    found = vector(0, 15, 90, 30, 105)
    assert linked_copies(found).tolist() == [0, 0, 2, 0, 2]
    # The third photo joins two groups that were separate.
    assert linked_copies(vector(0, 30, 15)).tolist() == [0, 0, 0]
    assert linked_copies(found[:0]).tolist() == []


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(0)
    found = vector(*rng.uniform(0, 3600, 300))
    expected, linked = first_copies(found), linked_copies(found)
    monkeypatch.setattr("fgvpl_jax.data.near_copies.BLOCK", 7)
    np.testing.assert_array_equal(first_copies(found), expected)
    np.testing.assert_array_equal(linked_copies(found), linked)
    others = vector(5, 95)
    expected = ((found @ others.T) >= 0.98).any(axis=1)
    np.testing.assert_array_equal(copied_from(found, others), expected)
    assert not copied_from(found, others[:0]).any()
    assert copied_from(found[:0], others).shape == (0,)


def test_signatures_of_a_split_are_those_of_its_transformed_photos(tmp_path):
    for number, photo in enumerate(PHOTOS[:3]):
        photo.save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    split = make_split(tmp_path, [(f"{number}.png", 0) for number in range(4)])

    def transform(image):
        return np.asarray(image.resize((32, 32)))

    found = signatures(split, transform, None)
    for row, photo in zip(found[:3], PHOTOS[:3], strict=True):
        np.testing.assert_array_equal(row, signature(photo.convert("RGB").resize((32, 32))))
    assert not found[3].any()
