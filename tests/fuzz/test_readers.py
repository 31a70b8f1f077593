"""Readers of damaged files return a value or raise `UserError`; `campaign.py` tests for longer."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import all_targets

NAMES = (
    *("safetensors", "shard index", "msgpack", "config.json", "split file", "manifest .csv"),
    *("manifest .jsonl", "few-shot file", "benchmark's list", "image", "support.npz"),
    *("results.json", "overrides", pytest.param("pytorch", marks=pytest.mark.torch)),
)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return all_targets(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(targets, name):
    if name not in targets:
        pytest.skip("PyTorch is not installed")
    assert targets[name].accepts(next(seed for seed in targets[name].seeds if seed))


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_are_refused_with_a_message_or_read(targets, name):
    if name not in targets:
        pytest.skip("PyTorch is not installed")
    target = targets[name]

    @settings(
        max_examples=100,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(st.randoms(use_true_random=False))
    def check(rng):
        target.accepts(target.input(rng))

    check()
