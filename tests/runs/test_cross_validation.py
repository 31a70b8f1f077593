"""The cross-validated estimate of a run without a test split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax.data import load_shapes
from fgvpl_jax.evaluation import share_interval
from fgvpl_jax.files import read_arrays, read_json
from fgvpl_jax.runs import copies, cross_validation, experiment
from fgvpl_jax.runs.cross_validation import (
    FoldLogits,
    HeldOut,
    chosen_by_folds,
    number_of_folds,
    stratified_folds,
)
from fgvpl_jax.runs.measuring import fold_scores
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.results import ImageCounts
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import PixelInputs
from tests.cases import further
from tests.conftest import write_photo_folders
from tests.whole_runs import stored_results, without_times


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=5), st.integers(2, 6), st.integers(0, 99))
def test_folds_are_stratified_and_of_equal_size(counts, num_folds, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    folds = stratified_folds(labels, num_folds, seed)
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 1
    for label in range(len(counts)):
        in_class = np.bincount(folds[labels == label], minlength=folds.max() + 1)
        assert in_class.max() - in_class.min() <= 1
    np.testing.assert_array_equal(folds, stratified_folds(labels, num_folds, seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 99), st.data())
def test_copies_share_a_fold_and_first_copies_are_stratified(num_folds, seed, data):
    labels = np.repeat(np.arange(3), 8)
    first = np.arange(24)
    for place in range(1, 24):
        earlier = data.draw(st.integers(0, place))
        first[place] = earlier if first[earlier] == earlier else place
    folds = stratified_folds(labels, num_folds, seed, first)
    np.testing.assert_array_equal(folds, folds[first])
    firsts = np.flatnonzero(first == np.arange(24))
    sizes = np.bincount(folds[firsts])
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1


def test_folds_without_copies_are_those_of_earlier_versions():
    labels = np.repeat(np.arange(3), 5)
    expected = [1, 2, 0, 0, 3, 1, 0, 3, 1, 2, 2, 2, 1, 3, 0]
    assert stratified_folds(labels, 4, 1).tolist() == expected
    assert stratified_folds(labels, 4, 1, np.arange(15)).tolist() == expected


def test_few_photos_have_so_few_folds_that_all_classes_keep_equally_many():
    for photos, expected in ((1, 4), (2, 2), (3, 3), (4, 4), (16, 4)):
        labels = np.repeat(np.arange(10), photos)
        assert number_of_folds(labels, 4) == expected
        folds = stratified_folds(labels, expected, 1)
        if photos > 1:
            left = [np.bincount(labels[folds != fold]) for fold in range(expected)]
            assert all(np.ptp(counts) == 0 for counts in left)
    most_have_two = np.array([0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 4])
    assert number_of_folds(most_have_two, 4) == 2
    assert number_of_folds(np.repeat(np.arange(10), [1] * 9 + [2]), 4) == 4
    assert number_of_folds(np.array([0, 0, 1, 1, 1]), 4) == 2


def test_copies_count_as_one_photo_in_the_interval():
    labels = np.arange(10) % 2
    held_out = HeldOut(np.eye(2)[labels], np.eye(2)[1 - labels], labels, None)
    assert fold_scores(held_out, 5)["cv_interval"] == share_interval(5, 5)
    assert fold_scores(held_out, 10)["cv_interval"] == share_interval(10, 10)


def test_a_film_of_most_photos_is_not_one_fold(folder_config, tmp_path, monkeypatch):
    run = prepare(folder_config, Workdir(tmp_path / "W"))
    support = run.few_shot.support
    monkeypatch.setattr(copies, "linked_copies", lambda found: np.zeros(len(found), int))
    monkeypatch.setattr(copies, "first_copies", lambda found: np.arange(len(found)) // 2 * 2)
    found = copies.with_copies(support, run.clip, None, "support")
    np.testing.assert_array_equal(found.copies, np.arange(len(support)) // 2 * 2)


def test_the_interval_is_that_of_wilson():
    """The ends are (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) at 45 of 50."""
    p, n, z = 0.9, 50, 1.959964
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    expected = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    np.testing.assert_allclose(share_interval(45, 50), expected, rtol=1e-5)


@pytest.fixture
def folder_config(tiny_config, tmp_path):
    write_photo_folders(tmp_path / "photos", 6)
    tiny_config.data.root = str(tmp_path / "photos")
    tiny_config.cv_folds = 3
    tiny_config.epochs = 2
    with tiny_config.ignore_type():
        tiny_config.shots = None
    return tiny_config


def test_a_plain_folder_gets_an_estimate_and_a_model_trained_on_all_photos(
    folder_config, tmp_path, monkeypatch
):
    sizes = []
    original = cross_validation.predict_fold

    def spy(run, held_out, place):
        sizes.append(int(held_out.sum()))
        return original(run, held_out, place)

    monkeypatch.setattr(cross_validation, "predict_fold", spy)
    workdir = Workdir(tmp_path / "W")
    results = experiment.train_and_evaluate(folder_config, workdir)
    assert sizes == [6, 6, 6]
    left = {file.name for file in (tmp_path / "W" / "cv" / "fold_1").iterdir()}
    assert left == {"metrics.jsonl", "held_out.npz"}
    assert results.test_accuracy is None
    assert results.counts == ImageCounts(train=18, validation=0, test=0)
    low, high = results.cv_interval
    assert low <= results.cv_accuracy <= high
    assert 1 < results.temperature < 4  # two epochs of noise: flatter is likelier, but few photos
    assert results.choices["cache_logit_weight"] in folder_config.cache_logit_weight_grid
    stored = stored_results(tmp_path / "W")
    again = experiment.evaluate(workdir)
    assert len(sizes) == 3  # the folds are not trained again
    assert without_times(again.to_json()) == without_times(stored)


def test_folds_and_the_final_training_read_each_augmented_pass_once(
    folder_config, tmp_path, monkeypatch
):
    folder_config.prompt_layer, folder_config.augmented_passes = 3, 2
    passes, augmented = [], PixelInputs.augmented

    def spy(inputs, split, rows, number):
        passes.append((len(split), number))
        return augmented(inputs, split, rows, number)

    monkeypatch.setattr(PixelInputs, "augmented", spy)
    experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
    assert sorted(passes) == [(18, 0), (18, 1)]


def made_up_folds(rng, right):
    """Returns three folds of 12 photos; candidate i is right about a photo with chance right[i]."""
    parts = []
    for _ in range(3):
        labels = rng.integers(0, 4, 12)
        guesses = [np.where(rng.random(12) < p, labels, (labels + 1) % 4) for p in right]
        parts.append(FoldLogits(3 * np.eye(4)[guesses], np.zeros((12, 4)), labels))
    return parts


@pytest.mark.parametrize("rule", ["accuracy", "likelihood"])
def test_the_folds_choose_and_no_photo_chooses_its_own_candidate(rule):
    candidates = [{"cache_logit_weight": value} for value in (1.0, 0.5, 4.0)]
    parts = made_up_folds(np.random.default_rng(0), (0.5, 0.3, 0.95))
    found = chosen_by_folds(parts, candidates, rule)
    assert found.choices == candidates[2]
    np.testing.assert_array_equal(found.logits, np.concatenate([part.logits[2] for part in parts]))
    # In the last fold the first candidate would be best, which only the other folds may know.
    labels = parts[2].labels
    wrong = 3 * np.eye(4)[[labels, labels, (labels + 1) % 4]]
    parts[2] = parts[2]._replace(logits=wrong)
    assert (chosen_by_folds(parts, candidates, rule).logits[24:].argmax(axis=1) != labels).all()


def test_a_fold_of_an_earlier_version_leaves_no_choice():
    parts = made_up_folds(np.random.default_rng(0), (0.5,))
    old = [part._replace(logits=part.logits[0]) for part in parts]
    found = chosen_by_folds(old, [{"cache_logit_weight": 1.0}], "likelihood")
    assert found.choices is None
    np.testing.assert_array_equal(found.logits, np.concatenate([part.logits for part in old]))


def test_classes_with_a_single_photo_are_reported(folder_config, tmp_path, monkeypatch, caplog):
    for photo in list((tmp_path / "photos" / "red_square").iterdir())[1:]:
        photo.unlink()

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "predict_fold", stop)
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
    assert "1 classes have a single photo" in caplog.text
    assert "red square" in caplog.text


@pytest.mark.parametrize("method", ["tip_adapter_f", *further("linear_probe", "tip_adapter")])
def test_a_fold_stopped_between_training_and_prediction_ends_the_same(
    method, folder_config, tmp_path, monkeypatch
):
    folder_config.method = method
    whole = experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "whole"))
    monkeypatch.setattr(cross_validation, "choose_on_validation", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "cut"))
    monkeypatch.undo()
    assert any((tmp_path / "cut" / "cv" / "fold_1" / "checkpoints").iterdir())
    cut = experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "cut"))
    for name in ("cv_nll", "cv_accuracy", "zero_shot_nll"):
        assert getattr(cut, name) == getattr(whole, name)


def test_an_interrupted_estimate_resumes_where_it_stopped(
    folder_config, tmp_path, monkeypatch, caplog
):
    original = cross_validation.predict_fold
    calls = []

    def interrupted(run, held_out, place):
        calls.append(place.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(run, held_out, place)

    monkeypatch.setattr(cross_validation, "predict_fold", interrupted)
    workdir = Workdir(tmp_path / "W")
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_evaluate(folder_config, workdir)
    experiment.train_and_evaluate(folder_config, workdir)
    assert calls == ["fold_1", "fold_2", "fold_2", "fold_3"]
    file = tmp_path / "W" / "cv" / "fold_2" / "held_out.npz"
    file.write_bytes(file.read_bytes()[:-9])
    experiment.train_and_evaluate(folder_config, workdir)
    assert calls[4:] == ["fold_2"]
    assert f"{file} is damaged" in caplog.text


def test_copies_of_a_photo_are_in_one_fold(folder_config, tmp_path, monkeypatch, caplog):
    """A copy of half the size, and the same photo in another class."""
    photos = tmp_path / "photos"
    for number in range(6):
        scene = load_shapes().train.image(40 * number).resize((96, 96))
        scene.save(photos / "red_square" / f"{number:03}.png")
    scene.resize((48, 48)).save(photos / "red_square" / "copy.png")
    scene.save(photos / "blue_square" / "copy.png")
    seen = []

    def keep(run, held_out, place):
        seen.append({run.few_shot.support.keys[i] for i in np.flatnonzero(held_out)})
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "predict_fold", keep)
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
    assert "support images look like copies of others" in caplog.text
    folds = read_arrays(tmp_path / "W" / "cv" / "folds.npz")["folds"]
    few_shot = read_json(tmp_path / "W" / "few_shot.json")
    keys = [key for drawn in few_shot["train"].values() for key in drawn]
    alike = {"red_square/005.png", "red_square/copy.png", "blue_square/copy.png"}
    assert len({int(folds[keys.index(key)]) for key in alike}) == 1
    assert len(np.unique(folds)) == 3
    assert seen == [{key for key, fold in zip(keys, folds, strict=True) if fold == 0}]

    for damage in (lambda file: file.write_bytes(b"x"), lambda file: None):  # the folds stay
        damage(tmp_path / "W" / "cv" / "folds.npz")
        with pytest.raises(KeyboardInterrupt):
            experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
        assert seen[-1] == seen[0]


@pytest.mark.parametrize("left", ["cv/fold_1/checkpoints", "candidates/gda_pool"])
def test_a_run_that_an_earlier_version_began_keeps_its_folds(
    left, folder_config, tmp_path, monkeypatch
):
    photo = next((tmp_path / "photos" / "red_square").iterdir())
    (photo.parent / "copy.png").write_bytes(photo.read_bytes())

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "predict_fold", stop)
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
    folds = tmp_path / "W" / "cv" / "folds.npz"
    folds.unlink()
    (tmp_path / "W" / left).mkdir(parents=True, exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
    assert not folds.exists()


def test_copies_among_too_many_photos_are_not_looked_for(
    folder_config, tmp_path, monkeypatch, caplog
):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "predict_fold", stop)
    monkeypatch.setattr(copies, "MOST_PHOTOS", 17)
    with pytest.raises(KeyboardInterrupt):
        experiment.train_and_evaluate(folder_config, Workdir(tmp_path / "W"))
    assert "among at most 17 support images, not among 18" in caplog.text
