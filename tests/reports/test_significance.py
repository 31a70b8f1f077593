"""Paired comparisons against binomial tails and normal approximations computed by hand."""

import numpy as np
import pytest

from fgvpl_jax.reports.find_runs import read_runs
from fgvpl_jax.reports.significance import compare, interval_of_mean, mcnemar
from fgvpl_jax.reports.verdicts import verdicts_of
from tests.reports.run_folders import write_run


def right(count, total, start=0):
    """Returns `count` correct predictions among `total`, starting at position `start`."""
    correct = np.zeros(total, bool)
    correct[start : start + count] = True
    return correct


@pytest.mark.parametrize(
    ("alone", "other", "p_value"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (8, 0, 2 / 2**8),  # both tails of 8 tosses that all land the same way
        (9, 1, 2 * (1 + 10) / 2**10),  # ten tosses, at most one of which lands the other way
        (1, 9, 2 * (1 + 10) / 2**10),
    ],
)
def test_mcnemar_is_a_binomial_tail(alone, other, p_value):
    first = np.concatenate([right(alone, alone), right(0, other), right(50, 50)])
    second = np.concatenate([right(0, alone), right(other, other), right(50, 50)])
    assert mcnemar(first, second) == pytest.approx(p_value)


def test_the_interval_of_a_mean_is_the_normal_one_for_many_images():
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], 4000, p=[0.1, 0.6, 0.3])
    half = 1.96 * values.std() / np.sqrt(len(values))
    low, high = interval_of_mean(values)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_a_single_value_is_its_own_interval():
    assert interval_of_mean(np.array([2.5])) == (2.5, 2.5)


def test_images_are_resampled_with_all_their_seeds():
    """Three seeds with the same predictions say no more than one, and narrow no interval."""
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 1, 500)) < [[[0.7]], [[0.6]]]
    once = compare(first, second)
    thrice = compare(np.repeat(first, 3, axis=0), np.repeat(second, 3, axis=0))
    assert thrice[:3] == pytest.approx(once[:3])
    assert thrice.p_value == once.p_value


def test_difference_seeds_ahead_and_the_least_favourable_seed():
    first = np.stack([right(80, 100), right(70, 100), right(62, 100)])
    second = np.stack([right(60, 100), right(60, 100), right(60, 100)])
    found = compare(first, second)
    assert found.difference == pytest.approx((20 + 10 + 2) / 3)
    assert (found.seeds, found.seeds_ahead) == (3, 3)
    assert found.p_value == pytest.approx(2 / 2**2)  # of the third seed
    assert found.low > 0
    assert not found.is_significant
    assert compare(first[:2], second[:2]).is_significant


def test_seeds_that_contradict_each_other_are_no_verdict():
    """Each seed alone is significant, and so is the mean, but one seed shows the opposite."""
    first = np.stack([right(90, 100), right(90, 100), right(40, 100)])
    second = np.stack([right(40, 100), right(40, 100), right(60, 100)])
    found = compare(first, second)
    assert found.p_value < 1e-5
    assert found.low > 0
    assert found.seeds_ahead == 2
    assert not found.is_significant
    assert compare(first[:2], second[:2]).is_significant
    assert compare(second[:2], first[:2]).is_significant


def test_equal_predictions_are_no_difference():
    same = right(30, 100)[None]
    found = compare(same, same)
    assert found[:3] == (0.0, 0.0, 0.0)
    assert not found.is_significant


def predictions(correct, **fields):
    labels = np.ones(len(correct), np.int32)
    return {"labels": labels, "predicted": np.where(correct, 1, 2).astype(np.int32), **fields}


def verdicts(root):
    records, _, _ = read_runs([root], {})
    saved = {record: record.saved_predictions() for record in records}
    return {v.row: v for v in verdicts_of(records, saved)}


def test_each_method_is_compared_with_the_best_other_on_shared_seeds_and_images(tmp_path):
    for method, counts in {"fg_vpl": (80, 84), "tar": (70, 74), "coop": (60, 64, 100)}.items():
        for seed, count in enumerate(counts, start=1):
            config = {"method": method, "seed": seed}
            name = tmp_path / f"{method}_{seed}"
            write_run(name, count / 100, config=config, predictions=predictions(right(count, 100)))
    found = verdicts(tmp_path)
    assert {row: v.rival for row, v in found.items()} == {
        "FG-VPL": "TAR alone",
        "TAR alone": "FG-VPL",
        "CoOp": "FG-VPL",
    }
    assert found["FG-VPL"].comparison.difference == pytest.approx(10.0)
    assert found["CoOp"].comparison.difference == pytest.approx(-20.0)
    assert found["CoOp"].comparison.seeds == 2
    assert found["FG-VPL"].images == 100


def test_images_that_one_run_could_not_read_are_left_out_of_the_pairs(tmp_path):
    correct = right(50, 100)
    write_run(tmp_path / "a", 0.5, config={"method": "tar"}, predictions=predictions(correct))
    places = np.arange(0, 100, 2)
    kept = predictions(correct[::2], indices=places)
    write_run(tmp_path / "b", 0.5, config={"method": "fg_vpl"}, predictions=kept)
    verdict = verdicts(tmp_path)["FG-VPL"]
    assert verdict.images == 50
    assert verdict.comparison.difference == 0.0


def test_runs_on_other_test_images_are_not_compared(tmp_path):
    write_run(
        tmp_path / "a", 0.5, config={"method": "tar"}, predictions=predictions(right(50, 100))
    )
    other = predictions(right(50, 100), labels=np.full(100, 2, np.int32))
    write_run(tmp_path / "b", 0.5, config={"method": "fg_vpl"}, predictions=other)
    assert {v.rival for v in verdicts(tmp_path).values()} <= {"Zero-shot CLIP"}


def test_the_next_best_rival_replaces_one_tested_on_other_images(tmp_path):
    write_run(
        tmp_path / "a", 0.7, config={"method": "fg_vpl"}, predictions=predictions(right(70, 100))
    )
    other = predictions(right(90, 100), labels=np.full(100, 2, np.int32))
    other["predicted"] = np.where(right(90, 100), 2, 1).astype(np.int32)
    write_run(tmp_path / "b", 0.9, config={"method": "tar"}, predictions=other)
    write_run(
        tmp_path / "c", 0.6, config={"method": "coop"}, predictions=predictions(right(60, 100))
    )
    verdict = verdicts(tmp_path)["FG-VPL"]
    assert verdict.rival == "CoOp"
    assert verdict.comparison.difference == pytest.approx(10.0)
