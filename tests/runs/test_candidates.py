"""Folds of the photos that compare methods, and what a candidate's trainings would take."""

import shutil

import numpy as np
import pytest

from fgvpl_jax.runs import automatic, candidates, prepare, trying
from fgvpl_jax.runs.cross_validation import choose_folds
from fgvpl_jax.runs.workdir import Workdir
from tests.conftest import write_photo_folders


@pytest.fixture
def config(tiny_config):
    tiny_config.method, tiny_config.cv_folds, tiny_config.shots = "auto", 2, 2
    return tiny_config


def test_a_method_that_must_encode_too_long_is_not_measured(config, tmp_path, monkeypatch):
    run, _ = automatic.with_shared_features(prepare.prepare(config, Workdir(tmp_path / "W")))
    run.shared_features.pass_seconds = 60.0
    folds = candidates.PhotoFolds(np.arange(6) % 2, np.empty(0, int))  # trained on 6, 3 and 3
    fvp, gda = (candidates.candidate_run(run, name) for name in ("fvp", "gda"))
    assert candidates.least_seconds(fvp, folds) == fvp.config.epochs * 60 * 2 > 0
    assert candidates.least_seconds(gda, folds) == 0
    validation = candidates.PhotoFolds(np.full(6, -1), np.arange(4))  # the final model suffices
    assert candidates.least_seconds(fvp, validation) == fvp.config.epochs * 60
    record = trying.Record(run.workdir)
    trying.predict(fvp, folds, record, budget=60.0)
    note = record.attempt("fvp").note
    assert note == f"not tried: needs more than {2 * fvp.config.epochs} min"


def test_only_passes_that_are_encoded_take_time(config, tmp_path):
    config.data.image_cache_gb, config.data.cache_dir = 1.0, str(tmp_path / "cache")

    def features_of(run, passes):
        shared = automatic.with_shared_features(run)[0].shared_features
        for epoch in range(passes):
            list(shared.epoch(run.few_shot.support, 4, epoch))
        return shared

    run = prepare.prepare(config, Workdir(tmp_path / "W"))
    first = features_of(run, 2)
    assert first.encoding_seconds(2) == 0 < first.pass_seconds
    assert first.encoding_seconds(5) == 3 * first.pass_seconds
    again = features_of(run, 2)  # from the files of the first
    assert again.pass_seconds == 0
    assert again.encoding_seconds(2) == again.pass_seconds == 0
    seconds = again.encoding_seconds(5)  # encodes two of three
    assert seconds == again.pass_seconds > 0


def test_a_class_of_one_photo_is_named(config, tmp_path, caplog):
    write_photo_folders(tmp_path / "photos", 3)
    for number in (1, 2):
        (tmp_path / "photos" / "red_square" / f"{number:03}.png").unlink()
    config.data.root = str(tmp_path / "photos")
    with config.ignore_type():
        config.shots = None
    run = prepare.prepare(config, Workdir(tmp_path / "W"))
    candidates.warn_of_classes_left_out(run, candidates.photo_folds(run))
    assert "1 classes have a single photo" in caplog.text
    assert "red square; the comparison of methods and the estimate leave them out" in caplog.text


def test_photos_of_few_classes_do_not_compare_methods(config, tmp_path, caplog):
    write_photo_folders(tmp_path / "photos", 4)
    config.data.root = str(tmp_path / "photos")
    with config.ignore_type():
        config.shots = None
    run = prepare.prepare(config, Workdir(tmp_path / "W"))
    names = run.dataset.class_names
    assert candidates.photo_folds(run).can_compare
    for folder in sorted((tmp_path / "photos").iterdir())[1:]:
        for photo in sorted(folder.iterdir())[1:]:
            photo.unlink()
    run = prepare.prepare(config, Workdir(tmp_path / "V"))
    folds = candidates.photo_folds(run)
    assert len(names) > 2 and not folds.can_compare
    assert len(folds.support) == len(names) + 3 and (folds.support >= 0).all()
    candidates.warn_of_classes_left_out(run, folds)
    assert f"{len(names) - 1} classes have a single photo" in caplog.text
    assert "methods cannot be compared" in caplog.text
    for folder in sorted((tmp_path / "photos").iterdir())[2:]:
        shutil.rmtree(folder)
    run = prepare.prepare(config, Workdir(tmp_path / "U"))
    assert not candidates.photo_folds(run).can_compare  # of two classes, one is held out


def test_photos_that_are_alone_in_their_class_are_never_held_out(config, tmp_path):
    config.shots = 1
    run = prepare.prepare(config, Workdir(tmp_path / "W"))
    folds = candidates.photo_folds(run)
    assert folds.support.tolist() == [-1, -1, -1]
    assert sorted(folds.validation.tolist()) == [0, 0, 1]
    assert folds.can_compare and folds.numbers == [0, 1]


def test_two_photos_per_class_have_two_folds_which_validation_shares(config, tmp_path):
    config.shots, config.cv_folds = 2, 4
    run = prepare.prepare(config, Workdir(tmp_path / "W"))
    choose_folds(run)
    for _ in range(2):  # the file of the folds is read again
        folds = candidates.photo_folds(run)
        assert folds.numbers == [0, 1]
        for own, split in ((folds.support, "support"), (folds.validation, "validation")):
            labels = getattr(run.few_shot, split).labels
            assert np.bincount(labels[own == 0]).tolist() == [1, 1, 1]
        (run.workdir.candidates / "gda").mkdir(parents=True, exist_ok=True)
        choose_folds(run)


def test_folds_stay_until_every_process_has_read_them(config, tmp_path, monkeypatch):
    run = candidates.candidate_run(prepare.prepare(config, Workdir(tmp_path)), "gda")
    workdir = run.workdir
    fold, whole = workdir.folds / "fold_1" / "held_out.npz", workdir.path / "held_out.npz"
    logits = np.zeros((1, 2), np.float32)
    found = candidates.HeldOutPhotos(logits, logits, np.zeros(1, int), np.zeros(1, int))
    fold.parent.mkdir(parents=True)
    workdir.write_arrays(fold, **found._asdict())
    seen = []
    monkeypatch.setattr(
        candidates, "wait_for_all", lambda _: seen.append((fold.exists(), whole.exists()))
    )
    folds = candidates.PhotoFolds(np.zeros(1, int), np.empty(0, int))
    candidates.held_out_photos(run, folds)
    assert seen == [(True, False), (False, True)]
