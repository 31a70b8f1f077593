"""The method "auto": what it tries, what it keeps, and how it resumes."""

import errno
import json

import numpy as np
import pytest
from scipy.special import softmax

import fgvpl_jax as fg
from fgvpl_jax.data import Split
from fgvpl_jax.errors import SharedError, UserError
from fgvpl_jax.inference.export import export_classifier
from fgvpl_jax.methods import METHODS, kernel_ridge
from fgvpl_jax.runs import automatic, candidates, default_config, experiment, prepare, trying
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.summary import summary_lines
from fgvpl_jax.runs.training_monitor import LogTargets
from fgvpl_jax.runs.workdir import Workdir
from tests.cases import further
from tests.conftest import write_photo_folders
from tests.whole_runs import interruption_in_epoch, without_times

TRIED = ("gda", "kernel_ridge_plain", "tar")


@pytest.fixture
def config(tiny_config, monkeypatch):
    """Returns the config of a run with "auto" that may try three methods."""
    tiny_config.method = "auto"
    tiny_config.cv_folds = 2
    tiny_config.shots = 2  # folds of equal size, so that they share their programs
    only(monkeypatch, *TRIED)
    return tiny_config


def only(monkeypatch, *names):
    monkeypatch.setattr(candidates, "METHODS", {name: METHODS[name] for name in names})


def keep(monkeypatch, **weights):
    """Makes the choice for the run: these weights by method."""
    choose = automatic.choose_mix

    def chosen(logits, *arguments):
        names = list(candidates.METHODS)
        given = np.array([weights.get(name, 0.0) for name in names])
        return choose(logits, *arguments)._replace(weights=given)

    monkeypatch.setattr(automatic, "choose_mix", chosen)


def train(config, path):
    return experiment.train_and_evaluate(config, Workdir(path))


@pytest.fixture
def test_photos(photos_dir):
    return sorted((photos_dir / "test").rglob("*.png"))


def test_the_best_method_becomes_the_classifier(config, tmp_path, monkeypatch, test_photos):
    events = []
    image, compare = Split.image, automatic.compare

    def read(split, i):
        if split.keys[i].startswith("test/"):
            events.append("test")
        return image(split, i)

    def compared(*arguments):
        found = compare(*arguments)
        events.append("chosen")
        return found

    monkeypatch.setattr(Split, "image", read)
    monkeypatch.setattr(automatic, "compare", compared)
    keep(monkeypatch, kernel_ridge_plain=1.0)
    results = train(config, tmp_path / "auto")
    # Once for the predictions, and once more, when results.json is written, to look for copies.
    assert events == ["chosen"] + ["test"] * 2 * results.counts.test

    assert results == RunResults.read(Workdir(tmp_path / "auto"))
    assert [one.method for one in results.tried] == list(TRIED)
    assert all(one.nll is not None and one.seconds > 0 and not one.note for one in results.tried)
    assert [one.method for one in results.members] == ["kernel_ridge_plain"]
    assert results.cv_interval[0] <= results.cv_accuracy <= results.cv_interval[1]
    assert results.cv_accuracy is not None and results.reason

    # It is the run of that method with values chosen by likelihood.
    config.method, config.selection_rule = "kernel_ridge_plain", "likelihood"
    alone = train(config, tmp_path / "alone")
    for name in ("test_accuracy", "test_nll", "choices", "facts", "zero_shot_nll"):
        assert getattr(results, name) == getattr(alone, name), name

    predictions = fg.load_classifier(tmp_path / "auto").predict(test_photos, top_k=1)
    right = [p.class_names[0].replace(" ", "_") in p.name.replace(" ", "_") for p in predictions]
    assert np.mean(right) == pytest.approx(results.test_accuracy)

    lines = summary_lines(results)
    assert any(line.startswith("chosen: ") for line in lines)
    table = [line.split() for line in lines if line.startswith("  ")]
    assert {row[0] for row in table} == {"method", *TRIED}
    again = experiment.evaluate(Workdir(tmp_path / "auto"))
    assert without_times(again) == without_times(results)


@pytest.mark.parametrize(
    ("first", "second"), [("gda", "tar"), ("gda_pool", "tar"), *further(("gda", "fvp"))]
)
def test_a_mix_adds_up_the_probabilities_of_its_members(
    first, second, config, tmp_path, monkeypatch, test_photos
):
    only(monkeypatch, first, second)
    keep(monkeypatch, **{first: 0.25, second: 0.75})
    results = train(config, tmp_path / "auto")
    assert [one.method for one in results.members] == [first, second]
    assert results.choices == {} and results.epochs == 4
    classifier = fg.load_classifier(tmp_path / "auto")
    predictions = classifier.predict(test_photos, top_k=3)

    expected, masks = np.zeros((len(test_photos), 3)), []
    for one in results.members:
        folder = Workdir(tmp_path / "auto").candidate(one.method)
        part = json.loads((tmp_path / "auto" / "results.json").read_text())
        part |= {"method": one.method, "temperature": one.temperature, **one.choices}
        part["tried"] = part["none_of_these"] = None
        folder.write(folder.results_file, part)
        member = fg.load_classifier(folder.path)
        for row, found in enumerate(member.predict(test_photos, top_k=3)):
            if member.finds_objects:
                masks.append(found.location.object_mask)
            for name, probability in zip(found.class_names, found.probabilities, strict=True):
                expected[row, classifier.class_names.index(name)] += one.weight * probability
    expected = softmax(np.log(expected) / results.temperature, axis=1)
    for row, found in enumerate(predictions):
        for name, probability in zip(found.class_names, found.probabilities, strict=True):
            own = expected[row, classifier.class_names.index(name)]
            assert probability == pytest.approx(own, abs=1e-5)
    right = [p.class_names[0].replace(" ", "_") in p.name.replace(" ", "_") for p in predictions]
    assert np.mean(right) == pytest.approx(results.test_accuracy)
    assert classifier.finds_objects == bool(masks)
    if masks:
        np.testing.assert_array_equal([p.location.object_mask for p in predictions], masks)
    assert classifier.evidence(test_photos[0]).map.shape == classifier.clip.vision.grid
    assert export_classifier(classifier, tmp_path / "mix.fgvpl").exists()


def test_an_interrupted_run_makes_the_same_choices(config, tmp_path):
    whole = train(config, tmp_path / "whole")
    with interruption_in_epoch(4):  # of the first fold of tar, after its speed was measured
        train(config, tmp_path / "cut")
    assert (tmp_path / "cut" / "candidates" / "tar" / "cv").is_dir()
    with pytest.raises(UserError, match="has not tried all methods yet"):
        experiment.evaluate(Workdir(tmp_path / "cut"))
    recorded = json.loads(Workdir(tmp_path / "cut").record_file.read_text())["attempts"]
    resumed = train(config, tmp_path / "cut")
    after = json.loads(Workdir(tmp_path / "cut").record_file.read_text())["attempts"]
    assert [one for one in after if one["method"] != "tar"] == recorded[:2]
    assert after[2]["predicted_seconds"] == recorded[2]["predicted_seconds"]
    assert after[2]["seconds"] > recorded[2]["seconds"] > 0

    def comparable(results):
        content = without_times(results)
        content["tried"] = [without_times(one) for one in content["tried"]]
        return content

    assert comparable(resumed) == comparable(whole)


def test_what_does_not_fit_is_named_with_the_time_it_needs(config, tmp_path, monkeypatch, capsys):
    needed = candidates.PredictedSeconds(folds=7000.0, final=1000.0)
    monkeypatch.setattr(trying, "predict_seconds", lambda *arguments: needed)
    results = train(config, tmp_path / "W")
    assert results.tried[2].note == "not tried: needs about 2 h 13 min"
    assert results.tried[2].nll is None and results.tried[2].predicted_seconds == 8000
    assert "tar: not tried: needs about 2 h 13 min" in capsys.readouterr().out


def test_what_was_begun_is_finished_although_its_time_counts(tmp_path):
    record = trying.Record(Workdir(tmp_path))
    begun, new = record.attempt("tar"), record.attempt("fvp")
    begun.seconds = 60.0
    for attempt in (begun, new):
        trying.leave_out(record, attempt, "needs about 3 min")
    assert (begun.note, new.note) == ("", "not tried: needs about 3 min")
    assert trying.Record(Workdir(tmp_path)).attempts == record.attempts


def test_the_cheapest_method_is_tried_in_any_case(config, tmp_path):
    config.minutes = 1e-6
    results = train(config, tmp_path / "W")
    notes = [one.note for one in results.tried]
    assert notes == [
        "",
        "not tried: the time was over",
        "not tried: no time was left to measure its speed",
    ]
    assert results.members[0].method == "gda"


def test_a_method_that_fails_is_left_out(config, tmp_path, monkeypatch):
    def fail(*arguments):
        raise UserError("too few photos")

    monkeypatch.setattr(METHODS["gda"], "initialise", fail)
    only(monkeypatch, "gda", "kernel_ridge_plain")
    results = train(config, tmp_path / "W")
    assert results.tried[0].note == "failed: too few photos"
    assert results.members[0].method == "kernel_ridge_plain"
    only(monkeypatch, "gda")
    with pytest.raises(UserError, match="none of the methods could be trained: gda failed: too"):
        train(config, tmp_path / "V")


def test_a_method_that_refuses_all_photos_is_left_out_before_its_folds(
    config, tmp_path, monkeypatch
):
    only(monkeypatch, "gda", "kernel_ridge")
    count = len(prepare.prepare(config, Workdir(tmp_path / "W")).few_shot.support)
    monkeypatch.setattr(kernel_ridge, "MOST_IMAGES", count - 1)
    results = train(config, tmp_path / "W")
    assert results.tried[1].note.startswith(f"failed: kernel_ridge takes at most {count - 1}")
    assert results.members[0].method == "gda"


def test_an_error_of_the_machine_is_tried_again(config, tmp_path, monkeypatch):
    only(monkeypatch, "gda", "kernel_ridge_plain")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        for name in ("gda", "kernel_ridge_plain"):
            disk.setattr(METHODS[name], "initialise", fail)
        with pytest.raises(UserError, match="none of the methods could be trained: gda failed"):
            train(config, tmp_path / "W")
    results = train(config, tmp_path / "W")
    assert [one.note for one in results.tried] == ["", ""]


def test_methods_that_saw_different_validation_images_are_not_compared(config, tmp_path):
    train(config, tmp_path / "W")
    file = tmp_path / "W" / "candidates" / "gda" / "held_out.npz"
    arrays = dict(np.load(file))
    np.savez(file, **arrays | {"labels": (arrays["labels"] + 1) % 3})
    with pytest.raises(UserError, match="were tried on different validation images"):
        experiment.evaluate(Workdir(tmp_path / "W"))


def test_in_a_job_only_an_error_of_all_processes_fails_a_method(monkeypatch):
    monkeypatch.setattr(trying.jax, "process_count", lambda: 2)
    attempt = trying.Attempt("gda")
    with pytest.raises(UserError, match="the disk is full"):
        trying.note_failure(attempt, UserError("the disk is full"))
    assert not attempt.is_settled
    trying.note_failure(attempt, SharedError("add photos"))
    assert attempt.note == "failed: add photos"


def test_a_method_without_finite_logits_is_left_out(config, tmp_path, monkeypatch):
    fold = candidates.held_out_fold

    def broken(run, *given):
        found = fold(run, *given)
        factor = np.nan if run.config.method == "gda" else 1.0
        return found._replace(logits=factor * found.logits)

    monkeypatch.setattr(candidates, "held_out_fold", broken)
    only(monkeypatch, "gda", "kernel_ridge_plain")
    results = train(config, tmp_path / "W")
    assert results.tried[0].note == "failed: its logits of held-out photos are not finite"
    assert results.reason == "kernel_ridge_plain is the only method that could be compared"


@pytest.mark.parametrize("per_class", [1, 4])
def test_a_plain_folder_has_a_nested_estimate(per_class, config, tmp_path, monkeypatch, caplog):
    write_photo_folders(tmp_path / "photos", per_class)
    config.data.root = str(tmp_path / "photos")
    only(monkeypatch, "gda", "kernel_ridge")
    with config.ignore_type():
        config.shots = None
    results = train(config, tmp_path / "W")
    assert results.test_accuracy is None
    assert results.cv_interval[0] <= results.cv_accuracy <= results.cv_interval[1]
    if per_class == 1:
        assert [one.method for one in results.tried] == ["gda_pool"]
        assert "fewer than half of the classes have a photo to compare methods" in results.reason
        assert "methods cannot be compared and the estimate is too low" in caplog.text
    else:
        assert results.learning_curve is not None
        assert "classes have a single photo" not in caplog.text
    assert fg.load_classifier(tmp_path / "W").predict(np.zeros((40, 40, 3), np.uint8))


def test_validation_photos_that_cannot_be_read_are_left_out(
    config, tmp_path, monkeypatch, photos_dir
):
    for split in ("train", "val", "test"):
        write_photo_folders(tmp_path / "photos" / split, 3)
    (tmp_path / "photos" / "val" / "red_square" / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    config.data.root, config.shots = str(tmp_path / "photos"), 3
    only(monkeypatch, "gda", "tar")
    monkeypatch.setattr(automatic, "without_copies", lambda run, split: split)  # all are alike
    results = train(config, tmp_path / "W")
    assert len(results.validation_unreadable) == 1 and results.counts.validation == 9
    folds = np.load(tmp_path / "W" / "candidates" / "gda" / "held_out.npz")["folds"]
    assert len(folds) == 9 + 8


def test_closed_forms_are_tried_first_and_the_most_accurate_one_before_them(tiny_config, tmp_path):
    tiny_config.method = "auto"
    run = prepare.prepare(tiny_config, Workdir(tmp_path / "W"))
    found = candidates.candidate_runs(run, candidates.photo_folds(run))
    assert found[0].config.method == "gda_pool"
    trains = [one.config.epochs > 0 for one in found]
    assert trains == sorted(trains) and {one.config.method for one in found} == set(METHODS)


def test_it_is_the_default_for_own_photos_only():
    assert default_config.folder_config().method == "auto"
    assert default_config.benchmark_config("eurosat").method == "fg_vpl"


def test_logs_are_refused(config, tmp_path):
    with pytest.raises(UserError, match="leave --tensorboard and --wandb out"):
        experiment.train_and_evaluate(config, Workdir(tmp_path / "W"), LogTargets(tensorboard=True))
    assert not (tmp_path / "W").exists()


def test_a_sweep_can_remove_the_models_and_keeps_the_results(config, tmp_path, monkeypatch):
    only(monkeypatch, "gda")
    train(config, tmp_path / "W")
    workdir = Workdir(tmp_path / "W")
    workdir.remove_model()
    left = {path.name for path in workdir.candidate("gda").path.iterdir()}
    assert left == {"config.json", "held_out.npz", "metrics.jsonl"}
    assert workdir.results_file.exists()


def test_a_damaged_record_is_named(config, tmp_path, monkeypatch):
    only(monkeypatch, "gda")
    train(config, tmp_path / "W")
    record = Workdir(tmp_path / "W").record_file
    record.write_text('{"complete": true, "attempts": [{"name": "gda"}]}')
    with pytest.raises(UserError, match=r"tried\.json is damaged"):
        train(config, tmp_path / "W")


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("inf"), float("nan")])
def test_minutes_must_be_a_time(config, tmp_path, minutes):
    config.minutes = minutes
    with pytest.raises(UserError, match=f"minutes is {minutes}: give a number above 0"):
        train(config, tmp_path / "W")


def test_minutes_of_another_method_are_refused(config, tmp_path):
    config.method, config.minutes = "gda", 1.0
    with pytest.raises(UserError, match="which gda does not use: leave it at 5"):
        train(config, tmp_path / "W")


def test_the_time_of_a_method_that_reads_pixels_grows_with_its_photos(
    tiny_config, tmp_path, monkeypatch
):
    tiny_config.method = "auto"
    run = prepare.prepare(tiny_config, Workdir(tmp_path / "W"))
    folds = candidates.photo_folds(run)
    fvp = candidates.candidate_run(run, "fvp")
    monkeypatch.setattr(candidates, "measured_seconds", lambda run, count: (2.0, 0.5 * count))
    photos = [int((folds.support != number).sum()) for number in folds.numbers]
    # A fold of validation photos alone takes the model of all support photos.
    seconds = [2 + 0.5 * fvp.config.epochs * count for count in photos if count < 9]
    final = 2 + 0.5 * fvp.config.epochs * 9
    assert candidates.predict_seconds(fvp, folds) == pytest.approx((sum(seconds), final))
