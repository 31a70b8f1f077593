"""The benchmark of kept tokens runs, and its sums are those of its parts."""

import pytest

from benchmarks import cached_tokens, measuring
from fgvpl_jax.clip.config import VisionConfig


def test_whole_trainings_are_sums_of_the_programs(monkeypatch):
    tiny = VisionConfig(32, 2, 2, 64, image_size=32, patch_size=8, embed_dim=16)
    monkeypatch.setitem(measuring.SHAPES, "B/16", tiny)
    result = cached_tokens.main("B/16", 0, "product", 2, 2, 2, epochs=3, passes=4, rounds=1)
    assert (result["prompt_layer"], result["batch_of_tokens"]) == (2, 4)
    # Tokens of 17 × 32 numbers in float16, and a map of 16 in float32.
    assert result["kib_per_image"] == (2 * 17 * 32 + 4 * 16) / 1024
    each = result["tokens_seconds_per_image"]
    assert result["tokens_of_4_passes_seconds"] == pytest.approx(160 * 5 * each)
    each = result["tokens_step_cpu_seconds_per_image"]
    assert result["3_epochs_from_tokens_cpu_seconds"] == pytest.approx(160 * 3 * each)
