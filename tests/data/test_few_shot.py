"""The draw: by the seed alone, nested in the number of shots, named when impossible."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax.data import Dataset, draw_few_shot, few_shot_record
from fgvpl_jax.data.splits import make_split
from fgvpl_jax.errors import UserError

NAMES = ("cat", "dog", "eel")


def split(counts, prefix="t", order=None):
    rows = [(f"{prefix}/{NAMES[c]}/{i}", c) for c, n in enumerate(counts) for i in range(n)]
    if order is not None:
        rows = [rows[i] for i in order]
    return make_split(Path("/nowhere"), rows)


def dataset(train, validation=None, order=None):
    held_out = None if validation is None else split(validation, "v")
    return Dataset(NAMES, split(train, order=order), held_out, None)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), shots=st.integers(1, 8), listing=st.integers(0, 2**31))
def test_the_draw_is_the_seeds_alone(seed, shots, listing):
    order = np.random.default_rng(listing).permutation(30)
    plain = draw_few_shot(dataset([10, 10, 10]), shots, seed)
    mixed = draw_few_shot(dataset([10, 10, 10], order=order), shots, seed)
    assert few_shot_record(plain) == few_shot_record(mixed)
    assert np.bincount(plain.support.labels).tolist() == [shots] * 3
    more = draw_few_shot(dataset([10, 10, 10]), shots + 1, seed)
    assert set(plain.support.keys) < set(more.support.keys)
    held_out = draw_few_shot(dataset([10, 10, 10], [5, 5, 5]), shots, seed)
    assert held_out.support.keys == plain.support.keys
    assert not set(plain.support.keys) & set(plain.validation.keys)
    for key, label in zip(plain.support.keys, plain.support.labels, strict=True):
        assert f"/{NAMES[label]}/" in key


def test_seeds_differ():
    draws = {draw_few_shot(dataset([20, 20, 20]), 4, seed).support.keys for seed in range(10)}
    assert len(draws) == 10


@pytest.mark.parametrize(("shots", "expected"), [(1, 1), (2, 2), (4, 4), (8, 4), (16, 4)])
def test_validation_is_at_most_four_a_class(shots, expected):
    few = draw_few_shot(dataset([20, 20, 20], [9, 9, 9]), shots, 0)
    assert np.bincount(few.validation.labels).tolist() == [expected] * 3
    assert all(key.startswith("v/") for key in few.validation.keys)
    leftover = draw_few_shot(dataset([20, 20, 20]), shots, 0)
    assert np.bincount(leftover.validation.labels).tolist() == [expected] * 3


def test_without_leftovers_there_is_no_validation():
    assert draw_few_shot(dataset([4, 4, 4]), 4, 0).validation is None


def test_classes_with_too_few_images_are_named():
    with pytest.raises(UserError, match=r"1 of 3 classes: dog \(2\).*--config\.allow_fewer=True"):
        draw_few_shot(dataset([5, 2, 5]), 4, 0)
    few = draw_few_shot(dataset([5, 2, 5]), 4, 0, allow_fewer=True)
    assert np.bincount(few.support.labels).tolist() == [4, 2, 4]
    with pytest.raises(UserError, match=r"dog \(0\)"):
        draw_few_shot(dataset([5, 0, 5]), 4, 0, allow_fewer=True)


def test_the_record_names_every_image_under_its_class():
    record = few_shot_record(draw_few_shot(dataset([3, 3, 3], [2, 2, 2]), 2, 5))
    assert (record["shots"], record["seed"]) == (2, 5)
    assert [len(keys) for keys in record["train"].values()] == [2, 2, 2]
    assert all(key.startswith("v/eel/") for key in record["validation"]["eel"])


def test_twin_class_names_are_kept_apart():
    """ImageNet calls two pairs of classes alike."""
    twins = Dataset(("crane", "crane", "eel"), split([2, 2, 2]), None, None)
    record = few_shot_record(draw_few_shot(twins, 1, 0))
    assert list(record["train"]) == ["0 crane", "1 crane", "2 eel"]
