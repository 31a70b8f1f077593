"""Every method trains, resumes, is evaluated and predicts."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest

import fgvpl_jax as fg
from fgvpl_jax.data import Split, draw_few_shot
from fgvpl_jax.evaluation import Evaluator
from fgvpl_jax.files import read_json
from fgvpl_jax.inference.predict import as_json, predict_files
from fgvpl_jax.methods import METHODS
from fgvpl_jax.methods.gda import GDA
from fgvpl_jax.runs import data_loading, default_config, experiment, prepare, settings
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import FeatureInputs
from tests.cases import further
from tests.conftest import write_photo_folders
from tests.whole_runs import interruption_in_epoch, metrics

# Other methods, and tests of their own, cover their lines.
LEFT_TO_FURTHER = (
    *("kernel_ridge", "lp_plus_plus", "clap", "clip_adapter", "tip_adapter_f"),
    *("clip_svd", "two_stage", "fvp"),
)
# Prefixes of the fields that depend on test labels or on time.
FINAL = ("test_", "zero_shot_", "train_seconds", "wall_seconds")


def without_final_score(results):
    return {k: v for k, v in results.to_json().items() if not k.startswith(FINAL)}


def losses(path):
    """Returns epoch, loss and accuracy of every line of metrics."""
    return [(line["epoch"], line["loss"], line["accuracy"]) for line in metrics(path)]


@pytest.fixture
def relabel_test(monkeypatch):
    """Returns a function that replaces the labels of the test split from then on."""
    original = data_loading.load_dataset

    def change(relabel):
        def load(config):
            dataset = original(config)
            test = replace(dataset.test, labels=relabel(dataset.test.labels))
            return replace(dataset, test=test)

        monkeypatch.setattr(prepare, "load_dataset", load)

    return change


@pytest.fixture
def logits_seen(monkeypatch):
    """Returns a list that collects the test logits of every evaluation, in order."""
    seen = []
    original = Evaluator.predict

    def predict(*args, **kwargs):
        predictions = original(*args, **kwargs)
        seen.append(predictions.logits)
        return predictions

    monkeypatch.setattr(Evaluator, "predict", predict)
    return seen


@pytest.fixture
def events(monkeypatch):
    """Returns a list of events: "test" per test photo read, "selected" once choices are made."""
    found = []
    image, select = Split.image, experiment.selection_of

    def read(split, i):
        if split.keys[i].startswith("test/"):
            found.append("test")
        return image(split, i)

    def selected(*args, **kwargs):
        selection = select(*args, **kwargs)
        found.append("selected")
        return selection

    monkeypatch.setattr(Split, "image", read)
    monkeypatch.setattr(experiment, "selection_of", selected)
    return found


def test_the_time_of_a_fit_is_counted_without_that_of_reading(tiny_config, tmp_path, monkeypatch):
    evaluation = FeatureInputs.evaluation

    def slow_fit(model, few_shot):
        few_shot.plain()
        few_shot.augmented(0)
        time.sleep(0.1)

    def slow_reading(*args, **options):
        time.sleep(0.5)
        yield from evaluation(*args, **options)

    def slow_encoding(*args):
        time.sleep(0.5)
        return augmented(*args)

    augmented = FeatureInputs._augmented
    monkeypatch.setattr(GDA, "initialise", slow_fit)
    monkeypatch.setattr(FeatureInputs, "evaluation", slow_reading)
    monkeypatch.setattr(FeatureInputs, "_augmented", slow_encoding)
    tiny_config.method = "gda"
    workdir = Workdir(tmp_path / "W")
    seconds = experiment.train_and_evaluate(tiny_config, workdir).train_seconds
    assert 0.1 <= seconds < 0.5
    assert experiment.evaluate(workdir).train_seconds == seconds


def test_the_seconds_of_training_in_steps_do_not_contain_encoding(
    tiny_config, tmp_path, monkeypatch
):
    epoch = FeatureInputs.epoch

    def slow_encoding(*args, **options):
        time.sleep(0.2)
        return epoch(*args, **options)

    monkeypatch.setattr(FeatureInputs, "epoch", slow_encoding)
    tiny_config.method = "tar"
    workdir = Workdir(tmp_path / "W")
    seconds = experiment.train_and_evaluate(tiny_config, workdir).train_seconds
    lines = [json.loads(line) for line in workdir.metrics_file.read_text().splitlines()]
    assert all(0.2 <= line["encoding_seconds"] <= line["seconds"] for line in lines)
    own = sum(line["seconds"] - line["encoding_seconds"] for line in lines)
    assert seconds == pytest.approx(own, abs=0.1)


@pytest.mark.parametrize(
    "name",
    [*(name for name in METHODS if name not in LEFT_TO_FURTHER), *further(*LEFT_TO_FURTHER)],
)
def test_a_method_trains_resumes_and_predicts_without_seeing_test_labels(
    name, tiny_config, tmp_path, photos_dir, relabel_test, logits_seen, events
):
    tiny_config.method = name
    whole, cut = Workdir(tmp_path / "whole"), Workdir(tmp_path / "cut")
    results = experiment.train_and_evaluate(tiny_config, whole)
    # Once for the predictions, and once more, when results.json is written, to look for copies.
    assert events == ["selected"] + ["test"] * 2 * results.counts.test
    epochs = results.epochs
    trains = METHODS[name].recipe("", 3, 9).epochs > 0
    assert epochs == (4 if trains else 0)
    assert results.method == name
    assert read_json(whole.config_file)["config"]["learning_rate"] is not None

    # Stops in epoch 4, after a checkpoint of epoch 2, and hides all test labels.
    relabel_test(np.zeros_like)
    if trains:
        with interruption_in_epoch(4):
            experiment.train_and_evaluate(tiny_config, cut)
    resumed = experiment.train_and_evaluate(tiny_config, cut)
    assert without_final_score(resumed) == without_final_score(results)
    assert losses(cut.path) == losses(whole.path)
    assert len(losses(whole.path)) == epochs

    relabel_test(lambda labels: np.random.default_rng(0).permutation(labels))
    again = experiment.evaluate(whole)
    assert without_final_score(again) == without_final_score(results)
    for logits in logits_seen[1:]:
        np.testing.assert_array_equal(logits, logits_seen[0])

    classifier = fg.load_classifier(cut.path)
    photos = sorted((photos_dir / "test").rglob("*.png"))
    predictions = classifier.predict(photos, top_k=1)
    right = [p.class_names[0].replace(" ", "_") in p.name.replace(" ", "_") for p in predictions]
    assert np.mean(right) == pytest.approx(results.test_accuracy)
    assert (predictions[0].location is not None) == METHODS[name].finds_objects
    assert bool(predictions[0].similar) == METHODS[name].uses_cache
    (answer,) = predict_files(classifier, photos[:1], 1, str(tmp_path / "pictures"))
    assert answer.overlay.exists()
    assert ("object_share" in json.loads(as_json(answer))) == METHODS[name].finds_objects


@pytest.mark.parametrize(
    "name",
    [
        *("linear_probe", "gda", "tip_adapter"),
        *further("svm", "gda_pool", "kernel_ridge", "tar", "clip_svd", "two_stage"),
    ],
)
def test_a_plain_folder_is_cross_validated(name, tiny_config, tmp_path):
    write_photo_folders(tmp_path / "photos", 4)
    tiny_config.method = name
    tiny_config.data.root = str(tmp_path / "photos")
    tiny_config.cv_folds = 2
    with tiny_config.ignore_type():
        tiny_config.shots = None
    results = experiment.train_and_evaluate(tiny_config, Workdir(tmp_path / "W"))
    assert results.test_accuracy is None
    assert results.cv_interval[0] <= results.cv_accuracy <= results.cv_interval[1]
    assert fg.load_classifier(tmp_path / "W").predict(np.zeros((40, 40, 3), np.uint8))


def test_a_config_without_numbers_uses_the_recipe_of_the_method(tiny_config):
    for field in ("epochs", "batch_size", "learning_rate", "weight_decay"):
        with tiny_config.ignore_type():
            tiny_config[field] = None
    few_shot = draw_few_shot(data_loading.load_dataset(tiny_config), 3, 1)

    def resolved(method, benchmark, **fields):
        config = tiny_config.copy_and_resolve_references()
        config.method, config.benchmark = method, benchmark
        config.update(fields)
        config = settings.with_recipe(config, len(few_shot.support), len(few_shot.class_names))
        return config.epochs, config.batch_size, config.learning_rate, config.weight_decay

    assert resolved("fg_vpl", "imagenet") == (50, 256, 1e-3, 0.01)
    assert resolved("fg_vpl", "eurosat") == (400, 256, 1e-3, 0.01)
    assert resolved("fvp", "dtd") == resolved("tar", "dtd") == (100, 256, 1e-3, 0.01)
    assert resolved("fg_vpl", "eurosat", epochs=7) == (7, 256, 1e-3, 0.01)
    assert resolved("coop", "dtd") == (100, 32, 2e-3, 5e-4)  # three shots
    assert resolved("tip_adapter_f", "eurosat") == (100, 256, 1e-3, 0.01)
    assert resolved("tip_adapter_f", "dtd") == (20, 256, 1e-3, 0.01)
    assert resolved("clip_lora", "dtd") == (1500, 32, 2e-4, 0.01)  # nine images make one step
    assert resolved("clip_svd", "dtd") == (600, 32, 5e-4, 0.01)
    assert resolved("two_stage", "dtd") == (900, 32, 2e-4, 0.01)
    assert resolved("zero_shot", "dtd", epochs=7)[0] == 0


@pytest.mark.parametrize(
    ("name", "eurosat", "imagenet"),
    [
        ("zero_shot", 0, 0),
        ("linear_probe", 0, 0),
        ("svm", 0, 0),
        ("gda", 0, 0),
        ("kernel_ridge", 0, 0),
        ("kernel_ridge_plain", 0, 0),
        ("lp_plus_plus", 0, 0),
        ("clap", 0, 0),
        ("rla", 0, 0),
        ("clip_adapter", 200, 50),
        ("coop", 200, 50),
        ("tip_adapter", 0, 0),
        ("tip_adapter_f", 100, 20),
        ("fvp", 400, 50),
        ("tar", 400, 50),
        ("fg_vpl", 400, 50),
        ("clip_svd", 640, 7),
        ("two_stage", 960, 10),
        ("clip_lora", 1600, 16),  # 8,000 steps; an epoch has 5 or 500
    ],
)
def test_the_config_of_a_benchmark_leaves_the_epochs_to_the_method(name, eurosat, imagenet):
    for benchmark, num_classes, epochs in (("eurosat", 10, eurosat), ("imagenet", 1000, imagenet)):
        config = default_config.benchmark_config(benchmark)
        config.method = name
        resolved = settings.with_recipe(config, 16 * num_classes, num_classes)
        assert resolved.epochs == epochs
