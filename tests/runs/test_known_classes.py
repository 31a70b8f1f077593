"""The known classes of a run: from frozen features, whatever the method."""

import json
from dataclasses import replace

import numpy as np
import pytest

import fgvpl_jax as fg
from fgvpl_jax.data import Split
from fgvpl_jax.inference.predict import as_text, content_of
from fgvpl_jax.runs import known_classes
from fgvpl_jax.runs.known_classes import known_classes_of
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.summary import none_of_these_lines
from fgvpl_jax.runs.workdir import Workdir
from tests.cases import further
from tests.conftest import make_tiny_config
from tests.whole_runs import made_up_results, run


@pytest.fixture(scope="module")
def prepared(tiny_clip_dir, photos_dir, tmp_path_factory):
    config = make_tiny_config(tiny_clip_dir, photos_dir)
    runs = []
    for method in ("fg_vpl", "gda"):
        config.method = method
        runs.append(prepare(config, Workdir(tmp_path_factory.mktemp("run") / method)))
    return runs


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    """A split of eight photos of noise, one of which is damaged."""
    from PIL import Image

    root, rng = tmp_path_factory.mktemp("other"), np.random.default_rng(0)
    keys = tuple(f"{i}.png" for i in range(8))
    for key in keys[1:]:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / key)
    (root / keys[0]).write_bytes(b"no photo")
    return Split(root, keys, np.zeros(8, np.int32))


def test_they_are_the_same_for_all_methods(prepared):
    pixels, features = (known_classes_of(run) for run in prepared)
    assert pixels.rates == features.rates
    for ours, theirs in zip(pixels.known, features.known, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert pixels.rates.held_out_photos == 18  # 9 support images and 9 validation images
    assert pixels.known.threshold == pixels.rates.threshold


def test_the_test_split_is_not_read(prepared):
    without = replace(prepared[0], dataset=replace(prepared[0].dataset, test=None))
    assert known_classes_of(without).rates == known_classes_of(prepared[0]).rates


def test_photos_of_other_things_are_used_and_damaged_ones_left_out(
    prepared, strangers, caplog, monkeypatch
):
    with_other = replace(prepared[1], dataset=replace(prepared[1].dataset, other=strangers))
    found = known_classes_of(with_other)
    assert found.known.other.shape == (7, found.known.centre.size)
    assert found.rates.other_photos == 7
    assert "1 of the 8 photos of other things cannot be read" in caplog.text
    caplog.clear()
    monkeypatch.setattr(known_classes, "is_writer", lambda: False)  # as in another process of a job
    known_classes_of(with_other)
    assert not caplog.text


def test_too_few_photos_have_none(tiny_config, tmp_path):
    tiny_config.method, tiny_config.shots = "gda", 1
    results = run(tiny_config, tmp_path / "W")
    assert results.none_of_these is None
    (prediction,) = fg.load_classifier(tmp_path / "W").predict(np.zeros((9, 9, 3), np.uint8))
    assert prediction.belonging is None
    assert "none_of_these" not in content_of(prediction)
    assert "threshold" not in as_text(prediction)


def test_a_summary_says_what_the_threshold_does(prepared):
    rates = known_classes_of(prepared[1]).rates._replace(
        threshold=-1.5,
        false_rejection=0.0526,
        false_rejection_interval=(0.0014, 0.185),
        left_out_caught=0.4,
    )
    (line,) = none_of_these_lines(made_up_results(none_of_these=rates))
    assert line == (
        'photos that score below -1.50 count as "none of these": about 5% of new photos of the '
        "classes (0% to 18%, by 18 held-out photos), and 40% of photos of a class that is not known"
    )
    rates = rates._replace(other_photos=4, other_caught=0.5, other_caught_interval=(0.15, 0.85))
    assert none_of_these_lines(made_up_results(none_of_these=rates))[1] == (
        "of the 4 photos of other things, each scored without its fold, 50% are below it "
        "(15% to 85%)"
    )
    assert none_of_these_lines(made_up_results()) == []


@pytest.mark.parametrize("method", ["gda", *further("fg_vpl")])
def test_a_prediction_has_the_score_of_its_photo(
    tiny_config, photos_dir, strangers, tmp_path, method
):
    tiny_config.method = method
    run(tiny_config, tmp_path / "W")
    classifier = fg.load_classifier(tmp_path / "W")
    prepared = prepare(tiny_config, Workdir(tmp_path / "W"))
    known = known_classes_of(prepared).known
    features, _ = prepared.frozen_features(strangers)
    expected = -((((features - known.centre) @ known.whitening)[:, None] - known.class_means) ** 2)
    for prediction, row in zip(
        classifier.predict([strangers.path(i) for i in range(1, 8)]), expected, strict=True
    ):
        belonging = prediction.belonging
        assert belonging.score == pytest.approx(row.sum(axis=1).max(), rel=1e-3)
        assert belonging.threshold == np.float32(known.threshold)
        assert belonging.none_of_these == (belonging.score < belonging.threshold)
        content = json.loads(json.dumps(content_of(prediction)))
        assert content["none_of_these"] == belonging.none_of_these
        assert content["score"] == pytest.approx(belonging.score, abs=1e-6)
        assert content["threshold"] == pytest.approx(belonging.threshold, abs=1e-6)
        lines = as_text(prediction).splitlines()
        assert ("none of these" in lines[1]) == belonging.none_of_these
        assert lines[-1] == f"  score {belonging.score:.2f}, threshold {belonging.threshold:.2f}"
