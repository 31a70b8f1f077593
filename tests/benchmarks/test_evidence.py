"""The benchmark of evidence: what it hides, and the table of its figures."""

import numpy as np
import pytest

from benchmarks import evidence
from fgvpl_jax.data import photos_at
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.workdir import Workdir


def test_the_highest_fifth_is_hidden():
    values = np.arange(25.0).reshape(5, 5)[::-1]
    assert evidence.highest(values).sum() == 5
    assert values[evidence.highest(values)].min() == 20
    assert evidence.highest(np.zeros((5, 5))).sum() == 5


@pytest.mark.parametrize("method", ["fg_vpl", "tip_adapter"])
def test_every_ranking_is_compared_with_the_evidence(tiny_config, photos_dir, tmp_path, method):
    tiny_config.method = method
    train_and_evaluate(tiny_config, Workdir(tmp_path / "W"))
    photos = photos_at(photos_dir / "test")
    result = evidence.main(str(tmp_path / "W"), photos, 3)
    assert result["photos"] == 3
    others = {"random"} | ({"attention_map"} if method == "fg_vpl" else set())
    for way in ("hide", "show"):
        names = {name.removeprefix(f"{way} ") for name in result if name.startswith(way)}
        assert names == {"evidence", *others, *(f"evidence less {other}" for other in others)}
        for other in others:
            gain = result[f"{way} evidence"][0] - result[f"{way} {other}"][0]
            assert result[f"{way} evidence less {other}"][0] == pytest.approx(gain)
    assert 0 < result["unhidden"][0] <= 1
