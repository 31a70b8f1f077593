"""Classes that are added, removed and renamed without training."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax

import fgvpl_jax as fg
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference import class_checks
from fgvpl_jax.inference.class_changes import ClassChanges, read_changes
from fgvpl_jax.inference.export import export_classifier
from fgvpl_jax.runs.workdir import Workdir


@pytest.fixture
def classifier(workdir):
    return fg.load_classifier(workdir)


@pytest.fixture
def photos(photos_dir):
    return sorted((photos_dir / "test").rglob("*.png"))[::4]


@pytest.fixture
def new_photos(photos_dir):
    return sorted((photos_dir / "val" / "green square").glob("*.png"))


def scores(classifier, photos):
    """Returns {class: logit} and {class: probability} of each photo."""
    found = classifier.predict(photos, top_k=99)
    return [
        (
            dict(zip(one.class_names, one.logits, strict=True)),
            dict(zip(one.class_names, one.probabilities, strict=True)),
        )
        for one in found
    ]


def test_a_removed_class_is_never_predicted_and_the_rest_keep_their_scores(classifier, photos):
    before = scores(classifier, photos)
    classifier.remove_class("green square")
    assert classifier.class_names == ("blue square", "red square")
    temperature = classifier.results.temperature
    for (logits, probabilities), (old, _) in zip(scores(classifier, photos), before, strict=True):
        assert logits.keys() == {"blue square", "red square"}
        for name, logit in logits.items():
            assert logit == pytest.approx(old[name], abs=1e-5)
        expected = softmax([old[name] / temperature for name in logits])
        np.testing.assert_allclose(list(probabilities.values()), expected, atol=1e-5)
    for prediction in classifier.predict(photos):
        assert {similar.class_name for similar in prediction.similar} <= {*classifier.class_names}
    assert classifier.evidence(photos[0]).class_name in classifier.class_names
    with pytest.raises(UserError, match="fewer than 2 classes would be left"):
        classifier.remove_class("red square")
    with pytest.raises(UserError, match="there is no class 'green square': choose one of blue"):
        classifier.remove_class("green square")


def test_another_name_changes_no_score(classifier, photos):
    before = scores(classifier, photos)
    classifier.rename_class("green square", "lawn")
    for (logits, _), (old, _) in zip(scores(classifier, photos), before, strict=True):
        assert logits == {name.replace("green square", "lawn"): x for name, x in old.items()}
    for wrong in ("Red_Square", " ", "x" * 61):
        with pytest.raises(UserError):
            classifier.rename_class("lawn", wrong)
    classifier.rename_class("lawn", "Lawn")  # its own name is not taken
    assert classifier.class_names == ("blue square", "Lawn", "red square")


def test_an_added_class_is_known_until_it_is_removed(classifier, photos, new_photos):
    before = scores(classifier, photos)
    classifier.add_class("lawn", new_photos)
    classifier.add_class("meadow", new_photos[:1])
    (prediction,) = classifier.predict(new_photos[0], top_k=9)
    assert {*prediction.class_names} == {*classifier.trained_names, "lawn", "meadow"}
    assert {"lawn", "meadow"} & {similar.class_name for similar in prediction.similar}
    alone = fg.load_classifier(classifier.workdir)
    alone.add_class("meadow", new_photos[:1])
    classifier.remove_class("lawn")
    for (found, _), (expected, _) in zip(
        scores(classifier, photos), scores(alone, photos), strict=True
    ):
        assert found == pytest.approx(expected, abs=1e-5)
    classifier.remove_class("meadow")
    assert scores(classifier, photos) == before


def test_a_class_without_usable_photos_changes_nothing(classifier, new_photos, tmp_path):
    damaged = tmp_path / "a.png"
    damaged.write_bytes(b"no image")
    for wrong in ([], new_photos * 30, [damaged]):
        with pytest.raises(UserError):
            classifier.add_class("lawn", wrong)
    with pytest.raises(UserError, match="a class 'red square' already"):
        classifier.add_class("RED_square", new_photos)
    assert classifier.class_names == classifier.trained_names


def test_changes_are_saved_in_a_new_folder(classifier, photos, new_photos, tmp_path):
    classifier.add_class("lawn", new_photos)
    classifier.remove_class("red square")
    classifier.rename_class("blue square", "sea")
    classifier.save(tmp_path / "new")
    again = fg.load_classifier(tmp_path / "new")
    assert again.class_names == ("sea", "green square", "lawn")
    assert scores(again, photos) == scores(classifier, photos)
    similar = again.predict(new_photos[0])[0].similar[0]
    assert similar.class_name in ("lawn", "green square")
    assert fg.load_classifier(classifier.workdir).class_names == classifier.trained_names
    with pytest.raises(UserError, match="exists already: name a new folder"):
        classifier.save(tmp_path / "new")
    with pytest.raises(UserError, match="the classes of this classifier have changed"):
        export_classifier(again, tmp_path / "x.fgvpl")
    assert not (tmp_path / "x.fgvpl").exists()


def test_a_damaged_file_of_changes_is_reported(classifier, tmp_path):
    classifier.remove_class("red square")
    classifier.save(tmp_path / "new")
    file = Workdir(tmp_path / "new").classes_file
    assert read_changes(file) == ClassChanges(("blue square", "green square", None))
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(UserError, match="is damaged: save the classifier again"):
        fg.load_classifier(tmp_path / "new")


def test_an_interrupted_save_leaves_no_finished_run(classifier, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Workdir, "write_arrays", stop)
    with pytest.raises(KeyboardInterrupt):
        classifier.save(tmp_path / "new")
    with pytest.raises(UserError, match="is not finished"):
        fg.load_classifier(tmp_path / "new")


def test_the_accuracy_of_trained_classes_is_that_before_and_after(classifier, photos_dir):
    test_photos = [p for p in sorted((photos_dir / "test").rglob("*.png")) if "green" not in str(p)]
    classifier.remove_class("green square")
    found = classifier.trained_class_accuracy()
    right = [
        one.class_names[0].replace(" ", "_") in one.name.replace(" ", "_")
        for one in classifier.predict(test_photos)
    ]
    assert found.num_photos == len(test_photos) and not found.are_training_photos
    assert found.after == pytest.approx(np.mean(right))
    assert found.before <= found.after


def test_the_accuracy_of_trained_classes_needs_their_photos(
    classifier, new_photos, monkeypatch, tmp_path
):
    found = class_checks.load_dataset(Workdir(classifier.workdir).stored_config())
    changed = replace(found, class_names=("ant", *found.class_names))
    monkeypatch.setattr(class_checks, "load_dataset", lambda _: changed)
    with pytest.raises(UserError, match="the data have the classes ant, blue square"):
        classifier.trained_class_accuracy()
    monkeypatch.undo()
    for name in ("lawn", "meadow"):
        classifier.add_class(name, new_photos[:1])
    for name in classifier.trained_names:
        classifier.remove_class(name)
    with pytest.raises(UserError, match="no photo of a trained class can be read"):
        classifier.trained_class_accuracy()
