"""Runs with several labels a photo train, resume, and refuse what they cannot use."""

import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score

from fgvpl_jax.errors import UserError
from fgvpl_jax.runs import copies, multi_label
from fgvpl_jax.runs.default_config import folder_config
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.label_results import LabelResults, label_summary
from fgvpl_jax.runs.label_run import prepare_labels
from fgvpl_jax.runs.multi_label import (
    evaluate_labels,
    fit_labels,
    label_folds,
    read_trained,
    train_labels,
)
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.workdir import Workdir
from tests.label_lists import COLOURS, write_label_list
from tests.whole_runs import stored_results, without_times


def config_of(clip, file, method="kernel_ridge_plain"):
    config = folder_config()
    config.clip, config.method = str(clip), method
    config.data.root, config.data.image_cache_gb = str(file), 0.0
    config.eval_batch_size = 8
    return config


@pytest.fixture(scope="module")
def list_file(tmp_path_factory):
    return write_label_list(tmp_path_factory.mktemp("list"))


@pytest.fixture(scope="module")
def finished(demo_clip_dir, list_file, tmp_path_factory):
    """Returns config, folder and results of a finished run, which tests must not change."""
    config = config_of(demo_clip_dir, list_file)
    path = tmp_path_factory.mktemp("finished") / "W"
    return config, path, train_labels(config, Workdir(path))


def test_a_run_learns_the_labels(finished):
    _, path, results = finished
    assert results.num_classes == 3
    assert list(results.thresholds) == sorted(COLOURS)
    assert 1 > results.cv_mean_average_precision > 0.7 > results.chance
    assert 1 > results.test_mean_average_precision > 0.7
    low, high = results.cv_interval
    assert low < results.cv_mean_average_precision < high
    assert results.photos_without_label > 0
    assert LabelResults.read(Workdir(path)) == results
    lines = "\n".join(label_summary(results))
    assert "of 16 test images" in lines
    assert "of held-out photos; 95% interval" in lines


def test_scores_are_those_of_scikit_learn(finished):
    config, path, results = finished
    run = prepare_labels(config, Workdir(path))
    trained = read_trained(Workdir(path))
    truth = run.dataset.train.truth
    held_out = trained.held_out
    assert results.cv_mean_average_precision == pytest.approx(
        average_precision_score(truth, held_out.probabilities)
    )
    assert results.cv_macro_f1 == pytest.approx(f1_score(truth, held_out.assigned, average="macro"))
    found = run.features(run.dataset.test)
    probabilities = trained.model.probabilities(found.features)
    assert results.test_mean_average_precision == pytest.approx(
        average_precision_score(found.truth, probabilities)
    )
    assigned = probabilities >= trained.model.thresholds
    assert results.test_micro_f1 == pytest.approx(f1_score(found.truth, assigned, average="micro"))
    assert results.zero_shot_mean_average_precision == pytest.approx(
        average_precision_score(found.truth, run.cosines(found.features))
    )
    assert results.chance == pytest.approx(found.truth.mean(axis=0).mean())


def test_no_photo_takes_part_in_its_own_held_out_prediction(
    demo_clip_dir, list_file, tmp_path, monkeypatch
):
    """Turns the labels of one fold over: its photos keep their order for every label."""
    run = prepare_labels(config_of(demo_clip_dir, list_file, "svm"), Workdir(tmp_path / "W"))
    folds, chosen_from = label_folds(run), multi_label.chosen_from
    numbers = []

    def counted(values, truth):
        numbers.append(len(truth))
        return chosen_from(values, truth)

    monkeypatch.setattr(multi_label, "label_folds", lambda _: folds)
    monkeypatch.setattr(multi_label, "chosen_from", counted)
    before = fit_labels(run).held_out.probabilities
    assert numbers == [*(40 - np.bincount(folds)), 40]
    run.dataset.train.truth[folds == 1] ^= True
    after = fit_labels(run).held_out.probabilities
    for fold, same in ((1, True), (0, False)):
        orders = [x[folds == fold].argsort(axis=0) for x in (before, after)]
        assert np.array_equal(*orders) == same


def test_a_finished_run_is_measured_again_but_not_trained(finished, monkeypatch):
    config, path, results = finished
    monkeypatch.setattr(multi_label, "fit_labels", None)
    content = stored_results(path)
    again = train_labels(config, Workdir(path))
    assert without_times(again.__dict__) == without_times(results.__dict__)
    evaluate_labels(Workdir(path))
    assert without_times(stored_results(path)) == without_times(content)


def test_a_second_run_is_the_same_and_an_interrupted_one_ends_the_same(
    finished, tmp_path, monkeypatch
):
    config, path, _ = finished

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(multi_label, "write_trained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_labels(config, Workdir(tmp_path / "W"))
    assert not (tmp_path / "W" / "results.json").exists()
    train_labels(config, Workdir(tmp_path / "W"))
    assert without_times(stored_results(tmp_path / "W")) == without_times(stored_results(path))


def test_the_order_of_the_lines_changes_nothing(demo_clip_dir, tmp_path):
    file = write_label_list(tmp_path / "list", {"train": 12, "test": 6})
    config = config_of(demo_clip_dir, file)
    results = train_labels(config, Workdir(tmp_path / "W"))
    header, *lines = file.read_text().splitlines()
    file.write_text("\n".join([header, *reversed(lines)]))
    for folder in ("W", "V"):  # measured again, and trained
        again = train_labels(config, Workdir(tmp_path / folder))
        assert without_times(again.__dict__) == without_times(results.__dict__)


def test_held_out_values_that_say_nothing_are_warned_of(
    demo_clip_dir, list_file, tmp_path, monkeypatch, caplog
):
    run = prepare_labels(config_of(demo_clip_dir, list_file, "svm"), Workdir(tmp_path / "W"))
    truth = run.dataset.train.truth
    monkeypatch.setattr(multi_label, "out_of_fold_values", lambda *_: -truth[None].astype(float))
    fit_labels(run)
    assert "with a label have no higher values" in caplog.text


def test_a_damaged_model_is_trained_again(finished, tmp_path):
    config, path, _ = finished
    shutil.copytree(path, tmp_path / "W")
    file = tmp_path / "W" / "labels.npz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"labels.npz is damaged .*: run the same training"):
        evaluate_labels(Workdir(tmp_path / "W"))
    train_labels(config, Workdir(tmp_path / "W"))
    assert without_times(stored_results(tmp_path / "W")) == without_times(stored_results(path))


@pytest.mark.parametrize("method", ["linear_probe", "svm"])
def test_other_methods_learn_too(method, demo_clip_dir, list_file, tmp_path):
    results = train_labels(config_of(demo_clip_dir, list_file, method), Workdir(tmp_path / "W"))
    assert results.test_mean_average_precision > results.chance + 0.1


def test_without_test_photos_the_lines_say_so(demo_clip_dir, tmp_path):
    file = write_label_list(tmp_path / "list", {"train": 24})
    results = train_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "W"))
    assert results.test_mean_average_precision is None
    assert "test_interval" not in stored_results(tmp_path / "W")
    assert label_summary(results)[-1].startswith("there is no test split")


def test_photos_that_cannot_be_read_are_named(demo_clip_dir, tmp_path):
    file = write_label_list(tmp_path / "list", {"train": 12, "test": 3})
    (tmp_path / "list" / "test_001.png").write_bytes(b"damaged")
    results = train_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "W"))
    assert results.test_images_read == 2
    assert "test_001.png" in results.unreadable[0]
    assert "1 test images could not be read" in label_summary(results)
    (tmp_path / "list" / "train_001.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"1 of the 12 .* cannot be read: .*train_001"):
        train_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "V"))
    assert not (tmp_path / "V").exists()


def test_copies_of_a_photo_share_their_fold(demo_clip_dir, tmp_path, caplog):
    file = write_label_list(tmp_path / "list", {"train": 16})
    for number in range(8):  # the other eight become larger copies of them
        with Image.open(tmp_path / "list" / f"train_{number:03}.png") as photo:
            photo.resize((96, 96)).save(tmp_path / "list" / f"train_{number + 8:03}.png")
    run = prepare_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "W"))
    folds = label_folds(run)
    assert folds[:8].tolist() == folds[8:].tolist()
    assert len(set(folds.tolist())) == 4
    assert "8 of the 16 training images look like copies" in caplog.text


def test_copies_among_too_many_photos_are_not_looked_for(
    demo_clip_dir, list_file, tmp_path, monkeypatch, caplog
):
    run = prepare_labels(config_of(demo_clip_dir, list_file), Workdir(tmp_path / "W"))
    monkeypatch.setattr(copies, "MOST_PHOTOS", 39)
    label_folds(run)
    assert "among at most 39 training images, not among 40" in caplog.text


def test_test_photos_that_are_copies_are_warned_of(demo_clip_dir, tmp_path, caplog):
    file = write_label_list(tmp_path / "list", {"train": 12, "test": 3})
    shutil.copy(tmp_path / "list" / "train_000.png", tmp_path / "list" / "test_001.png")
    train_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "W"))
    assert "1 of the 3 test images look like copies" in caplog.text
    assert "test_001.png" in caplog.text


def test_rare_labels_are_spread_over_the_folds(finished):
    config, path, _ = finished
    run = prepare_labels(config, Workdir(path))
    folds, truth = label_folds(run), run.dataset.train.truth
    for label in range(3):
        counts = np.bincount(folds[truth[:, label]], minlength=4)
        assert counts.min() >= truth[:, label].sum() / 4 - 4


def test_a_label_of_a_single_photo_is_warned_of(demo_clip_dir, tmp_path, caplog):
    file = write_label_list(tmp_path / "list", {"train": 12})
    text = file.read_text().splitlines()
    text[1] = "train_000.png,purple,train"
    file.write_text("\n".join(text))
    results = train_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "W"))
    assert "1 labels have a single photo" in caplog.text
    assert 0 < results.thresholds["purple"] < 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", "fg_vpl", "set method to one of kernel_ridge_plain, linear_probe, svm"),
        ("shots", 4, "shots is 4, which a run with several labels"),
        ("selection_rule", "accuracy", "set it to 'likelihood'"),
        ("calibrate", False, "calibrate is False"),
        ("cv_folds", 1, "cv_folds is 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    name, value, message, demo_clip_dir, list_file, tmp_path
):
    config = config_of(demo_clip_dir, list_file)
    config[name] = value
    with pytest.raises(UserError, match=message):
        train_labels(config, Workdir(tmp_path / "W"))
    assert not (tmp_path / "W").exists()


def test_few_photos_are_refused(demo_clip_dir, tmp_path):
    file = write_label_list(tmp_path / "list", {"train": 9})
    with pytest.raises(UserError, match="9 photos for training: add some"):
        train_labels(config_of(demo_clip_dir, file), Workdir(tmp_path / "W"))


def test_a_folder_holds_one_run(finished, demo_clip_dir, tmp_path):
    config, path, _ = finished
    other = config.copy_and_resolve_references()
    other.seed = 2
    with pytest.raises(UserError, match=r"other seed \(1 there, 2 now\)"):
        train_labels(other, Workdir(path))
    changed = write_label_list(tmp_path / "list", seed=1)
    with pytest.raises(UserError, match=r"the data in .* changed"):
        train_labels(config_of(demo_clip_dir, changed), Workdir(path))
    shutil.copytree(path, tmp_path / "W")
    (tmp_path / "W" / "config.json").unlink()
    with pytest.raises(UserError, match=r"labels\.npz belongs to a run without its config"):
        train_labels(config, Workdir(tmp_path / "W"))


def test_commands_for_one_label_refuse_the_run_and_the_list(finished, tmp_path):
    config, path, _ = finished
    with pytest.raises(UserError, match="several labels a photo, which only training"):
        RunResults.read(Workdir(path))
    with pytest.raises(UserError, match="has the column labels"):
        train_and_evaluate(config, Workdir(tmp_path / "W"))
