"""Evidence for a class: windows, their average, and the effect of hiding what it points at."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import fgvpl_jax as fg
from fgvpl_jax.data import load_shapes, shapes
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.evidence import filled, hiding_windows, mean_colour
from fgvpl_jax.inference.predict import PREDICTED, as_json, predict_files
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.workdir import Workdir


@pytest.mark.parametrize(
    "grid", [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (14, 14), (24, 24), (5, 9)]
)
def test_windows_hide_every_patch_about_equally_often(grid):
    windows = hiding_windows(grid)
    assert len(windows) <= 100
    assert windows.any(axis=(1, 2)).all()
    times_hidden = windows.sum(axis=0)
    assert times_hidden.min() >= 1
    assert times_hidden.max() <= 2.3 * times_hidden.min()
    assert len(np.unique(windows.reshape(len(windows), -1), axis=0)) == len(windows)


def test_windows_of_a_small_grid():
    hidden = hiding_windows((1, 4)).astype(int)[:, 0]  # windows of one row and two columns
    assert hidden.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1]]


def test_pixels_beyond_whole_patches_move_no_patch():
    crop, patches = np.zeros((11, 11, 3), np.uint8), np.array([[False, True], [False, False]])
    hidden = filled(crop, patches, 4, np.array([1, 2, 3], np.uint8))
    expected = crop.copy()
    expected[:4, 4:8] = (1, 2, 3)
    np.testing.assert_array_equal(hidden, expected)
    assert not crop.any()


@pytest.fixture(scope="module")
def classifier(demo_clip_dir, tmp_path_factory):
    config = get_config()
    config.update({"benchmark": "shapes", "clip": str(demo_clip_dir), "method": "tip_adapter"})
    config.shots = 4
    config.data.update({"source": "shapes", "templates": ("a drawing of a {}.",)})
    config.data.image_cache_gb = 0.0
    workdir = tmp_path_factory.mktemp("evidence") / "W"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SPLIT_SIZES, "test", 6)  # the run's accuracy is not looked at
        train_and_evaluate(config, Workdir(workdir))
    return fg.load_classifier(workdir)


def probabilities(classifier, crops, label):
    features, _ = classifier.inference.encode(np.stack(crops))
    return np.asarray(classifier.inference.recognise(features).probabilities)[:, label]


def hide(classifier, crop, patches):
    side = len(crop) // len(patches)
    pixels = np.kron(patches, np.ones((side, side), bool))[..., None]
    return np.where(pixels, mean_colour(classifier.clip.image_encoder), crop)


def test_is_the_loss_averaged_over_the_windows_that_hide_a_patch(classifier):
    photo = load_shapes().test.image(0)
    crop, name = classifier.crop(photo, ""), classifier.class_names[3]
    found = classifier.evidence(photo, name)
    assert found.class_name == name
    windows = hiding_windows(classifier.clip.vision.grid)
    crops = [hide(classifier, crop, window) for window in windows]
    log_p = np.log(probabilities(classifier, [*crops, crop], 3).astype(np.float64))
    lost = log_p[-1] - log_p[:-1]
    for row, column in ((0, 0), (3, 4), (7, 7)):
        hiding = windows[:, row, column]
        expected = np.mean(lost[hiding] / windows[hiding].sum(axis=(1, 2)))
        np.testing.assert_allclose(found.map[row, column], expected, rtol=1e-3, atol=1e-5)


def test_hiding_the_evidence_lowers_the_probability_more_than_hiding_random_patches(classifier):
    test, rng = load_shapes().test, np.random.default_rng(0)
    hidden, random = [], []
    for index in range(0, 600, 50):
        photo = test.image(index)
        crop = classifier.crop(photo, "")
        (prediction,) = classifier.predict(photo, top_k=1)
        label = classifier.class_names.index(prediction.class_names[0])
        evidence = classifier.evidence(photo)
        assert evidence.class_name == prediction.class_names[0]
        ranks = (-evidence.map).ravel().argsort().argsort().reshape(evidence.map.shape)
        most = ranks < 0.2 * ranks.size
        crops = [hide(classifier, crop, most)]
        crops += [hide(classifier, crop, rng.permuted(most.ravel()).reshape(most.shape))] * 3
        after = probabilities(classifier, crops, label)
        hidden.append(after[0])
        random.append(after[1:].mean())
    assert np.mean(hidden) < np.mean(random) - 0.1


def test_json_has_the_evidence_for_the_class_that_was_wanted(classifier, tmp_path):
    photo = tmp_path / "photo.png"
    load_shapes().test.image(5).save(photo)
    for wanted in (PREDICTED, classifier.class_names[2]):
        (result,) = predict_files(classifier, [photo], 1, None, wanted)
        line = json.loads(as_json(result))
        name = line["classes"][0]["name"] if wanted == PREDICTED else wanted
        assert line["evidence"]["class"] == name
        assert np.shape(line["evidence"]["map"]) == classifier.clip.vision.grid


def test_an_unknown_class_is_named(classifier, tmp_path):
    for index in (0, 1):
        load_shapes().test.image(index).save(tmp_path / f"{index}.png")
    with pytest.raises(UserError, match="no class 'zebra': choose one of"):
        classifier.evidence(load_shapes().test.image(0), "zebra")
    with pytest.raises(UserError, match="evidence is for one photo, not for 2: give one"):
        classifier.evidence(tmp_path)
    with pytest.raises(UserError, match="evidence is 'zebra': give 'predicted', or one of"):
        list(predict_files(classifier, [], 1, None, "zebra"))


def test_the_mean_colour_is_normalised_to_zero(classifier):
    encoder = classifier.clip.image_encoder
    pixel = jnp.asarray(mean_colour(encoder))[None, None, None]
    assert np.abs(np.asarray(encoder.normalize_pixels(pixel))).max() < 0.01
