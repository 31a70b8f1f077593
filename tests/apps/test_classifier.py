"""A trained run in use: predictions, their reasons, and what is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import fgvpl_jax as fg
from fgvpl_jax.apps import experiment
from fgvpl_jax.apps.predict import as_json, as_text, find_photos, predict_files
from fgvpl_jax.apps.workdir import Workdir
from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.errors import UserError


@pytest.fixture(scope="module")
def workdir(tiny_clip_dir, photos_dir, tmp_path_factory):
    from tests.conftest import tiny_config

    config = tiny_config.__wrapped__(tiny_clip_dir, photos_dir)
    path = tmp_path_factory.mktemp("classifier") / "W"
    experiment.train_and_evaluate(config, Workdir(path))
    return path


@pytest.fixture(scope="module")
def classifier(workdir):
    return fg.load_classifier(workdir)


@pytest.fixture
def photo(photos_dir):
    return photos_dir / "test" / "red_square" / "000.png"


def test_a_path_an_image_and_an_array_are_the_same_photo(classifier, photo):
    image = Image.open(photo)
    (by_path,) = classifier.predict(str(photo))
    for other in classifier.predict([photo, image, np.asarray(image)]):
        assert other.class_names == by_path.class_names
        np.testing.assert_allclose(other.probabilities, by_path.probabilities, rtol=1e-5)


def test_a_prediction_is_complete(classifier, photo):
    (prediction,) = classifier.predict(photo)
    assert prediction.name == str(photo)
    assert set(prediction.class_names) == {"red square", "green square", "blue square"}
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert prediction.attention_map.shape == prediction.object_mask.shape == (4, 4)
    assert prediction.object_mask.any()
    assert len(prediction.similar) == 3
    assert [classifier.support.keys[s.place] for s in prediction.similar] == [
        s.key for s in prediction.similar
    ]
    assert classifier.support.image(prediction.similar[0].place).size == (40, 48)
    assert len(classifier.predict(photo, top_k=1)[0].class_names) == 1


def test_predictions_are_those_that_were_measured(classifier, workdir, photos_dir):
    """Accuracy over the test folder, photo by photo, is the one in results.json."""
    right = total = 0
    for photo in sorted((photos_dir / "test").rglob("*.png")):
        best = classifier.predict(photo)[0].class_names[0]
        right, total = right + (best == photo.parent.name.replace("_", " ")), total + 1
    results = json.loads((workdir / "results.json").read_text())
    assert right / total == pytest.approx(results["test_accuracy"])


def test_a_training_photo_is_most_similar_to_itself(classifier, photos_dir):
    drawn = classifier.predict(sorted((photos_dir / "train" / "red_square").glob("*.png")))
    selves = [p for p in drawn if str(photos_dir / p.similar[0].key) == p.name]
    assert len(selves) == 3  # of six photos three were drawn
    assert all(p.similar[0].similarity == pytest.approx(1, abs=1e-4) for p in selves)


def test_mistakes_are_named(classifier, workdir, tmp_path):
    with pytest.raises(UserError, match="top_k is 0"):
        classifier.predict(np.zeros((4, 4, 3), np.uint8), top_k=0)
    with pytest.raises(UserError, match=r"float64 \[4, 4, 3\]"):
        classifier.predict(np.zeros((4, 4, 3)))
    with pytest.raises(UserError, match=r"none\.png"):
        classifier.predict("none.png")
    with pytest.raises(UserError, match="holds no run"):
        fg.load_classifier(tmp_path)
    unfinished = tmp_path / "W"
    shutil.copytree(workdir, unfinished)
    (unfinished / "results.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        fg.load_classifier(unfinished)


def test_another_backbone_is_refused(workdir, tmp_path):
    from tests.tiny_clip import write_tiny_clip

    other = tmp_path / "W"
    shutil.copytree(workdir, other)
    write_tiny_clip(tmp_path / "clip", seed=5)
    config = json.loads((other / "config.json").read_text())
    config["config"]["clip"] = str(tmp_path / "clip")
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="trained with backbone"):
        fg.load_classifier(other)


def test_files_and_folders_give_text_json_and_pictures(classifier, photos_dir, tmp_path):
    folder = tmp_path / "new photos"
    shutil.copytree(photos_dir / "test" / "red_square", folder / "a")
    (folder / "broken.jpg").write_bytes(b"")
    photos = find_photos([str(folder), str(folder / "a" / "001.png")])
    assert len(photos) == 7
    results = list(predict_files(classifier, photos, 2, str(tmp_path / "pictures")))
    assert sum(isinstance(r, UnreadableImage) for r in results) == 1
    good = [r for r in results if not isinstance(r, UnreadableImage)]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == len(good) == 6
    with Image.open(next((tmp_path / "pictures").glob("*.png"))) as picture:
        assert picture.width > 900
    line = json.loads(as_json(good[0]))
    assert [c["name"] for c in line["classes"]] == list(good[0].class_names)
    assert line["image"] == str(photos[0])
    assert good[0].class_names[0] in as_text(good[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda p: [], "no photo"), (lambda p: ["/none"], "/none"), (lambda p: [str(p)], "no image")],
)
def test_nothing_to_predict_is_said(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        find_photos(make(tmp_path))


def test_fit_trains_measures_and_predicts(tiny_clip_dir, photos_dir, tmp_path):
    classifier = fg.fit(
        photos_dir, clip=str(tiny_clip_dir), epochs=2, shots=2, workdir=tmp_path / "W"
    )
    assert classifier.results["counts"]["train"] == 6
    assert classifier.class_names == ("blue square", "green square", "red square")
    assert len(classifier.predict(photos_dir / "test" / "red_square" / "000.png")) == 1
    with pytest.raises(UserError, match=r"unknown setting \['shotz'\]"):
        fg.fit(photos_dir, shotz=3)
