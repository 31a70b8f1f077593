"""Draws depend on the seed alone and are nested; impossible draws are reported."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax.data import Dataset, Split, draw_few_shot, few_shot_record, read_few_shot
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
    return Dataset(NAMES, split(train, order=order), held_out, None, "invented")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), shots=st.integers(1, 8), listing=st.integers(0, 2**31))
def test_the_draw_depends_on_the_seed_alone(seed, shots, listing):
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
    with pytest.raises(UserError, match=r"1 of 3 classes: dog \(2\).*set allow_fewer to True"):
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
    """ImageNet has two pairs of classes with the same name."""
    twins = Dataset(("crane", "crane", "eel"), split([2, 2, 2]), None, None, "invented")
    record = few_shot_record(draw_few_shot(twins, 1, 0))
    assert list(record["train"]) == ["0 crane", "1 crane", "2 eel"]


@pytest.fixture
def drawn(tmp_path):
    data = dataset([5, 5, 5], [3, 3, 3])
    record = few_shot_record(draw_few_shot(data, 2, 7))
    return data, record, tmp_path / "few_shot.json"


def read(data, record, file, shots=2):
    file.write_text(json.dumps(record))
    return read_few_shot(str(file), data, shots)


def test_a_draw_is_read_back(drawn):
    data, record, file = drawn
    again = read(data, record, file)
    assert few_shot_record(again) == record
    assert again.support.keys == draw_few_shot(data, 2, 7).support.keys
    shuffled = record | {"train": dict(reversed(record["train"].items()))}
    assert few_shot_record(read(data, shuffled, file)) == record
    leftover = dataset([5, 5, 5])
    record = few_shot_record(draw_few_shot(leftover, 2, 7))
    assert few_shot_record(read(leftover, record, file)) == record
    assert read(data, record | {"validation": None}, file).validation is None


def test_twin_classes_are_read_back(drawn):
    twins = Dataset(("crane", "crane", "eel"), split([2, 2, 2]), None, None, "invented")
    record = few_shot_record(draw_few_shot(twins, 1, 0))
    assert few_shot_record(read(twins, record, drawn[2], shots=1)) == record


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shots": 4}, "a draw of 4 shots, the run has 2"),
        ({"train": {"cat": ["t/cat/0"], "dog": [], "fox": []}}, r"other classes.*'fox'.*'eel'"),
        ({"train": {"cat": ["t/cat/0"], "dog": ["t/dog/1"], "eel": []}}, r"no training.*'eel'"),
        (
            {"train": {"cat": ["t/cat/99"], "dog": ["t/dog/1"], "eel": ["t/eel/1"]}},
            r"1 images.*t/cat/99",
        ),
        (
            {"train": {"cat": ["t/dog/1"], "dog": ["t/dog/2"], "eel": ["t/eel/1"]}},
            r"1 images.*t/dog/1",
        ),
        (
            {"train": {"cat": ["v/cat/1"], "dog": ["t/dog/2"], "eel": ["t/eel/1"]}},
            r"'v/cat/1' twice|1 images.*v/cat/1",
        ),
        (
            {"train": {"cat": ["t/cat/1"] * 2, "dog": ["t/dog/2"], "eel": ["t/eel/1"]}},
            r"'t/cat/1' twice",
        ),
        ({"train": ["t/cat/1"]}, "not a list of drawn images"),
        ({"seed": "one"}, "not a list of drawn images"),
        ({"seed": float("inf")}, "not a list of drawn images"),
        ({"validation": []}, "not a list of drawn images"),
        ({"train": {"cat": [["t/cat/1"]]}}, "not a list of drawn images"),
        ({"train": {"cat": [0]}}, "not a list of drawn images"),
        ({"train": {"cat": "t/cat/1"}}, "not a list of drawn images"),
    ],
)
def test_draws_of_other_data_are_refused(drawn, change, message):
    data, record, file = drawn
    with pytest.raises(UserError, match=message):
        read(data, record | change, file)


def test_a_draw_that_is_not_there(drawn):
    with pytest.raises(UserError, match=r"few_shot_file=/none.*name a few_shot\.json"):
        read_few_shot("/none", drawn[0], 2)


def test_the_first_of_each_group_of_copies_is_found():
    split = Split(Path(), tuple("abcde"), np.zeros(5, np.int32), copies=np.array([7, 2, 7, 2, 5]))
    assert split.first_copies.tolist() == [0, 1, 0, 1, 4]
    assert split.num_different == 3
    few = split.select([3, 2, 0])
    assert few.first_copies.tolist() == [0, 1, 1]
    alone = Split(Path(), ("a", "b"), np.zeros(2, np.int32))
    assert alone.first_copies.tolist() == [0, 1] and alone.num_different == 2
