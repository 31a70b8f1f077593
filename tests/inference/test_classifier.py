"""Use of a trained run: predictions, their explanations, and refused input."""

import json
import shutil
import tempfile

import jax
import numpy as np
import pytest
from PIL import Image

import fgvpl_jax as fg
from fgvpl_jax.data import UnreadableImage
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json
from fgvpl_jax.inference import photos as photos_module
from fgvpl_jax.inference.predict import (
    PhotoResult,
    as_json,
    as_text,
    find_photos,
    predict_files,
)
from fgvpl_jax.runs.results import ImageCounts

EUROSAT = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"]
EUROSAT += ["Pasture", "PermanentCrop", "Residential", "River", "SeaLake"]


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


@pytest.mark.parametrize("kind", ["turned.jpg", "transparent.png", "deep.png"])
def test_an_opened_image_is_predicted_like_its_file(classifier, photo, tmp_path, kind):
    """Orientation, transparency and 16 bits are read the same from a file and an opened image."""
    image, file = Image.open(photo), tmp_path / kind
    if kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(file, exif=exif)
    elif kind == "transparent.png":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(file)
    else:
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(file)
    with Image.open(file) as opened:
        by_path, by_image = classifier.predict([file, opened])
        assert opened.size == Image.open(file).size  # the caller's image is left as it was
    assert by_image.class_names == by_path.class_names
    np.testing.assert_array_equal(by_image.probabilities, by_path.probabilities)
    np.testing.assert_array_equal(by_image.location.attention_map, by_path.location.attention_map)


def test_settings_of_jax_with_other_types_are_refused(workdir, photos_dir):
    with (
        jax.enable_x64(True),
        pytest.raises(UserError, match=r"jax_enable_x64 is True .* unset the variable JAX_ENABLE"),
    ):
        fg.load_classifier(workdir)
    with (
        jax.numpy_rank_promotion("raise"),
        pytest.raises(UserError, match="jax_numpy_rank_promotion is 'raise'"),
    ):
        fg.fit(photos_dir)


def test_damage_found_while_decoding_is_reported(classifier, photo, tmp_path):
    Image.open(photo).resize((300, 300)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    with (
        Image.open(tmp_path / "cut.jpg") as opened,
        pytest.raises(UnreadableImage, match=r"image 1: .*truncated"),
    ):
        classifier.predict([np.zeros((9, 9, 3), np.uint8), opened])


def test_a_folder_stands_for_its_photos(classifier, photos_dir):
    folder = photos_dir / "test" / "red_square"
    names = [prediction.name for prediction in classifier.predict(folder, top_k=1)]
    assert names == [str(folder / f"{i:03}.png") for i in range(5)]


def test_a_prediction_is_complete(classifier, photo):
    (prediction,) = classifier.predict(photo)
    assert prediction.name == str(photo)
    assert set(prediction.class_names) == {"red square", "green square", "blue square"}
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)
    assert list(prediction.probabilities) == sorted(prediction.probabilities, reverse=True)
    assert prediction.location.attention_map.shape == (4, 4)
    assert prediction.location.object_mask.shape == (4, 4)
    assert prediction.location.object_mask.any()
    assert len(prediction.similar) == 3
    assert [classifier.support.keys[s.place] for s in prediction.similar] == [
        s.key for s in prediction.similar
    ]
    assert classifier.support.image(prediction.similar[0].place).size == (40, 48)
    assert len(classifier.predict(photo, top_k=1)[0].class_names) == 1


def test_contributions_add_up_to_the_logit_and_logits_to_the_probability(classifier, photo):
    (prediction,) = classifier.predict(photo, top_k=3)
    assert set(prediction.contributions) == {
        "image_text",
        "image_cache",
        "object_text",
        "object_cache",
    }
    sums = np.sum(list(prediction.contributions.values()), axis=0)
    np.testing.assert_allclose(sums, prediction.logits, rtol=1e-5)
    weights = np.exp(np.array(prediction.logits) / classifier.results.temperature)
    np.testing.assert_allclose(prediction.probabilities, weights / weights.sum(), rtol=1e-4)
    line = json.loads(as_json(next(predict_files(classifier, [photo], 1, None))))
    assert line["classes"][0]["logit"] == pytest.approx(prediction.logits[0], abs=1e-5)
    assert sum(line["classes"][0]["contributions"].values()) == pytest.approx(sums[0], abs=1e-4)


def test_predictions_have_the_measured_accuracy(classifier, workdir, photos_dir):
    """Predicting the test folder photo by photo has the accuracy in results.json."""
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


def test_mistakes_are_reported(classifier, workdir, tmp_path):
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
    with pytest.raises(UserError, match="not finished: train it"):
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
    with pytest.raises(UserError, match="trained with backbone"):
        fg.load_classifier(workdir, clip=tmp_path / "clip")


def test_the_backbone_may_have_moved(classifier, workdir, tiny_clip_dir, photo, tmp_path):
    moved = tmp_path / "W"
    shutil.copytree(workdir, moved)
    config = json.loads((moved / "config.json").read_text())
    config["config"]["clip"] = "/gone"
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no directory '/gone'"):
        fg.load_classifier(moved)
    found = fg.load_classifier(moved, clip=tiny_clip_dir).predict(photo)
    assert found[0].probabilities == classifier.predict(photo)[0].probabilities


def test_files_and_folders_give_text_json_and_pictures(
    classifier, photos_dir, tmp_path, monkeypatch
):
    folder = tmp_path / "new photos"
    shutil.copytree(photos_dir / "test" / "red_square", folder / "a")
    (folder / "a" / "0015.jpg").write_bytes(b"")
    (folder / "a" / "004.png").rename(folder / "a" / f"{'é' * 120}.png")
    photos = find_photos([str(folder), str(folder / "a" / "001.png")])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(photos_module, "BATCH_SIZE", 4)  # the unreadable photo is inside a batch
    found = list(predict_files(classifier, photos, 2, "~/pictures"))
    assert [one.photo for one in found] == photos
    assert [isinstance(one.result, UnreadableImage) for one in found] == [0, 0, 1, 0, 0, 0, 0]
    for photo, result, overlay, *_ in found:
        line = json.loads(as_json(PhotoResult(photo, result, overlay)))
        assert line["image"] == str(photo)
        if isinstance(result, UnreadableImage):
            assert "0015.jpg: the file is empty" in line["error"]
            continue
        assert result.name == str(photo)
        assert [c["name"] for c in line["classes"]] == list(result.class_names)
        assert result.class_names[0] in as_text(result)
        (alone,) = classifier.predict(photo, top_k=2)
        np.testing.assert_allclose(result.probabilities, alone.probabilities, rtol=1e-5)
        assert line["overlay"] == str(overlay)
        assert overlay.parent == tmp_path / "pictures"
        with Image.open(overlay) as picture:
            assert picture.width > 900
    (plain,) = predict_files(classifier, photos[:1], 2, None)
    line = json.loads(as_json(plain))
    assert "overlay" not in line
    assert "evidence" not in line
    assert line["object_found"] == (line["object_share"] < 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda p: [], "no photo"), (lambda p: ["/none"], "/none"), (lambda p: [str(p)], "no image")],
)
def test_nothing_to_predict_is_reported(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        find_photos(make(tmp_path))


def test_fit_trains_measures_and_predicts(tiny_clip_dir, photos_dir, tmp_path):
    classifier = fg.fit(
        photos_dir,
        clip=tiny_clip_dir,
        data={"templates": ["a {}."]},
        method="fg_vpl",
        # As in the config of other tests, whose programs are used again.
        **{"epochs": 4, "shots": 3, "batch_size": 4, "eval_batch_size": 8},
        workdir=tmp_path / "W",
    )
    assert read_json(tmp_path / "W" / "config.json")["config"]["data"]["templates"] == ["a {}."]
    assert classifier.results.counts.train == 9
    assert classifier.class_names == ("blue square", "green square", "red square")
    assert len(classifier.predict(photos_dir / "test" / "red_square" / "000.png")) == 1


def test_fit_says_what_more_photos_would_bring(tiny_clip_dir, photos_dir, tmp_path, capsys):
    fg.fit(photos_dir, clip=tiny_clip_dir, method="gda", shots=6, workdir=tmp_path / "W")
    assert "with twice as many" in capsys.readouterr().out


def test_a_folder_that_fit_makes_is_private(tiny_clip_dir, photos_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = fg.fit(photos_dir, clip=tiny_clip_dir, method="gda", shots=1).workdir
    assert made.parent == tmp_path
    assert made.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def eurosat(tmp_path):
    """EuroSAT in CoOp's layout, so small that its protocol leaves five images for training."""
    rng = np.random.default_rng(0)
    for name in EUROSAT:
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        for i in range(10):
            photo = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
            photo.save(folder / f"{name}_{i}.jpg")
    return tmp_path


def test_fit_takes_a_benchmark_by_its_name(eurosat, tiny_clip_dir, tmp_path):
    data = {"root": str(eurosat)}
    with pytest.raises(UserError, match="fewer than 16 training images in 10 of 10 classes"):
        fg.fit("eurosat", clip=tiny_clip_dir, data=data)
    fitted = fg.fit(
        "eurosat", clip=tiny_clip_dir, data=data, shots=2, method="gda", workdir=tmp_path / "W"
    )
    assert fitted.class_names[0] == "Annual Crop Land"
    assert fitted.results.counts == ImageCounts(train=20, validation=20, test=30)
    config = read_json(tmp_path / "W" / "config.json")["config"]
    assert config["data"]["templates"] == ["a centered satellite photo of {}."]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shotz": 3}, r"unknown setting \['shotz'\]"),
        ({"data": {"rot": 3, "templates": ()}}, r"unknown setting \['data\.rot'\]"),
        ({"data": "photos"}, r"unknown setting \['data'\]"),
        ({"minutes": "five"}, "the setting minutes is 'five': give a value of type float"),
        ({"shots": 2.5}, "the setting shots is 2.5: give a value of type int"),
        ({"data": {"templates": "a {}"}}, "data.templates is 'a {}': give a value of type tuple"),
        ({"shots": "many"}, "many"),
        ({"seed": None}, "seed is None"),
        ({"clip": 3}, "the setting clip is 3: give a value of type str"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_a_mistake_in_settings_is_named_and_leaves_no_folder(
    settings, message, photos_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=message):
        fg.fit(photos_dir, **settings)
    assert not list(tmp_path.iterdir())
