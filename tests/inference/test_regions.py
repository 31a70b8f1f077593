"""Regions of a photo: the areas of its map, their boxes and classes, and the COCO file."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from PIL import Image
from skimage.filters import threshold_otsu
from skimage.measure import label

import fgvpl_jax as fg
from fgvpl_jax.commands import command_line
from fgvpl_jax.data import decode_image
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.inference.predict import as_json, as_text, overlay_of, predict_files
from fgvpl_jax.inference.predictions import Belonging, ObjectLocation
from fgvpl_jax.inference.regions import (
    MOST_REGIONS,
    Region,
    areas,
    coco_content,
    content_of_regions,
    row_stretches,
    square_around,
)

mask_of = jax.jit(fg.object_mask, static_argnames=("grid", "connectivity"))


@pytest.fixture(scope="module")
def classifier(workdir):
    return fg.load_classifier(workdir)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns a photo of two squares on black, wider than the crop of the model."""
    pixels = np.zeros((48, 96, 3), np.uint8)
    pixels[4:20, 26:42], pixels[28:44, 54:70] = (200, 40, 40), (50, 60, 210)
    file = tmp_path_factory.mktemp("pair") / "pair.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("grid", [(7, 7), (14, 14), (5, 9)])
def test_areas_are_those_of_scikit_image_and_the_first_is_the_object_mask(grid, connectivity):
    maps = np.random.default_rng(0).normal(size=(50, *grid)).astype(np.float32)
    masks = np.asarray(mask_of(jnp.asarray(maps.reshape(50, -1)), grid, connectivity))
    for values, mask in zip(maps, masks.reshape(maps.shape), strict=True):
        found = areas(ObjectLocation(values, mask), connectivity)
        labels = label(values > threshold_otsu(values), connectivity=connectivity)
        sizes = np.bincount(labels.ravel())[1:]
        order = np.argsort(-sizes, kind="stable")[:MOST_REGIONS] + 1
        np.testing.assert_array_equal(found, [labels == number for number in order])
        np.testing.assert_array_equal(found[0], mask)


def test_everything_is_one_area_where_no_object_stands_out():
    values, mask = np.eye(4, dtype=np.float32), np.ones((4, 4), bool)  # below the least contrast
    np.testing.assert_array_equal(areas(ObjectLocation(values, mask), 2), [mask])


def test_row_stretches_are_the_patches_of_each_row():
    mask = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], bool)
    assert row_stretches(mask) == [(0, 0, 2), (0, 3, 4), (2, 1, 4)]


def test_a_square_stays_within_the_photo():
    assert square_around((40.0, 30.0, 10.0, 20.0), (100, 80)) == (25, 20, 65, 60)
    assert square_around((0.0, 70.0, 10.0, 10.0), (100, 80)) == (0, 60, 20, 80)
    assert square_around((0.0, 0.0, 90.0, 80.0), (100, 80)) == (5, 0, 85, 80)


def test_a_patch_of_a_tiny_photo_has_a_square_of_a_pixel(classifier):
    assert square_around((0.75, 0.0, 0.125, 0.125), (1, 1)) == (0, 0, 1, 1)
    assert square_around((1.8, 0.2, 0.2, 0.2), (2, 2)) == (1, 0, 2, 1)
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 0, 0], masks[1, 3, 3] = True, True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgvpl_jax.inference.regions.areas", lambda *_: list(masks))
        patch.setattr("fgvpl_jax.inference.regions.CONTEXT", 0.9)  # 0.45 pixels
        regions = classifier.regions(Image.new("RGB", (2, 2)))
    assert [region.box for region in regions] == [(0, 0, 0.5, 0.5), (1.5, 1.5, 0.5, 0.5)]


def region_of(mask, classifier, photo):
    """Returns a region that `classifier.regions` finds if this is the object mask."""
    location = ObjectLocation(mask.astype(np.float32), mask)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgvpl_jax.inference.regions.areas", lambda *_: [location.object_mask])
        (region,) = classifier.regions(photo)
    return region


@pytest.mark.parametrize("size", [(64, 64), (90, 61), (61, 90), (16, 31), (200, 123)])
def test_a_box_surrounds_the_pixels_that_its_patches_see(classifier, size):
    """White pixels of the photo under one box change no other patch of the crop, and all of it."""
    gh, gw = classifier.clip.vision.grid
    patch_size = classifier.clip.vision.config.patch_size
    mask = np.zeros((gh, gw), bool)
    mask[1:3, 2:] = True
    left, top, width, height = region_of(mask, classifier, Image.new("RGB", size)).box
    white = Image.new("L", (size[0] * 8, size[1] * 8))  # eighths of pixels
    ends = (left, top, left + width, top + height)
    white.paste(255, tuple(round(8 * end) for end in ends))
    photo = white.resize(size, Image.Resampling.BOX).convert("RGB")
    crop = classifier.crop(photo, "")[..., 0] / 255
    share = crop.reshape(gh, patch_size, gw, patch_size).mean(axis=(1, 3))
    assert share[mask].min() > 0.75
    assert share[~mask].max() < 0.25


def test_a_squashed_photo_is_seen_whole_and_an_unknown_preparation_is_refused(classifier):
    class Squash(type(classifier.clip.image_processor)):
        def __init__(self, geometry):
            self.geometry, self.side = geometry, 32

    geometry = type(classifier.clip.image_processor.geometry)
    assert Squash(geometry.SQUASH).seen_box(30, 20) == (0, 0, 30, 20)
    assert Squash(None).seen_box(30, 20) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier.clip.image_processor, "geometry", None)
        with pytest.raises(UserError, match="no box can be given in pixels of the photo"):
            classifier.regions(Image.new("RGB", (30, 20)))


def test_several_regions_are_predicted_as_squares_of_the_photo(classifier, pair):
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2, :2], masks[1, 3, 3] = True, True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fgvpl_jax.inference.regions.areas", lambda *_: list(masks))
        regions = classifier.regions(pair, top_k=2)
    photo = decode_image(pair)
    for mask, region in zip(masks, regions, strict=True):
        np.testing.assert_array_equal(region.mask, mask)
        square = photo.crop(square_around(region.box, photo.size))
        (expected,) = classifier.predict(square, top_k=2)
        assert region.class_names == expected.class_names
        np.testing.assert_allclose(region.probabilities, expected.probabilities, rtol=1e-4)
        assert region.belonging.score == pytest.approx(expected.belonging.score, abs=1e-4)
        assert region.belonging.threshold == expected.belonging.threshold
    assert [region.box for region in regions] == [(24, 0, 24, 24), (60, 36, 12, 12)]
    assert [region.area for region in regions] == [576, 144]


def test_one_region_has_the_prediction_of_the_photo(classifier, pair):
    region = region_of(np.ones((4, 4), bool), classifier, pair)
    (expected,) = classifier.predict(pair)
    assert region.class_names == expected.class_names
    np.testing.assert_allclose(region.probabilities, expected.probabilities, rtol=1e-5)
    assert region.box == (24, 0, 48, 48)


def test_the_first_region_is_the_object_mask_and_regions_are_apart(classifier, photos):
    for photo in photos[:4]:
        regions = classifier.regions(photo, top_k=1)
        (prediction,) = classifier.predict(photo)
        np.testing.assert_array_equal(regions[0].mask, prediction.location.object_mask)
        assert np.sum([region.mask for region in regions], axis=0).max() == 1
        assert len(regions) <= MOST_REGIONS


def test_mistakes_are_named(classifier, photos):
    with pytest.raises(UserError, match="regions are for one photo, not for 5: give one"):
        classifier.regions(photos[0].parent)
    with pytest.raises(UserError, match="top_k is 0: give 1 or more"):
        classifier.regions(photos[0], top_k=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "finds_objects", False)
        with pytest.raises(UserError, match="fg_vpl looks for no object, so it has no regions"):
            classifier.regions(photos[0])
        with pytest.raises(UserError, match="so it has no regions"):
            list(predict_files(classifier, photos[:1], 1, None, with_regions=True))


def test_text_json_and_picture_have_the_regions(classifier, pair, tmp_path):
    (result,) = predict_files(classifier, [pair], 2, str(tmp_path), with_regions=True)
    line = json.loads(as_json(result))
    assert result.size == (96, 48)
    assert [found["box"] for found in line["regions"]] == [
        [round(place, 2) for place in region.box] for region in result.regions
    ]
    assert line["regions"][0]["classes"][0]["name"] == result.regions[0].class_names[0]
    assert as_text(result.result, result.regions).count("  region ") == len(result.regions)
    wide = overlay_of(classifier, Image.open(pair), result.result, None, result.regions)
    assert wide.size == Image.open(result.overlay).size
    assert wide.width > overlay_of(classifier, Image.open(pair), result.result).width


def test_the_coco_file_is_complete(tmp_path):
    mask = np.array([[1, 1], [0, 1]], bool)
    region = Region(mask, ((10.0, 0.0, 20.0, 5.0), (20.0, 5.0, 10.0, 5.0)), ("b", "a"), (0.7, 0.3))
    unknown = replace(region, belonging=Belonging(score=-2.0, threshold=-1.0))
    photos = [(tmp_path / "x.png", (40, 20), (region, unknown)), (tmp_path / "y.png", (9, 9), ())]
    content = json.loads(json.dumps(coco_content(photos, ("a", "b"))))
    assert content["categories"] == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert content["images"][0]["file_name"] == str(tmp_path / "x.png")
    assert (content["images"][0]["width"], content["images"][0]["height"]) == (40, 20)
    first, second = content["annotations"]
    assert (first["id"], second["id"], second["image_id"]) == (1, 2, 1)
    assert first["bbox"] == [10, 0, 20, 10]
    assert first["area"] == 150
    assert first["segmentation"][0] == [10, 0, 30, 0, 30, 5, 10, 5]
    assert (first["category_id"], first["score"], first["iscrowd"]) == (2, 0.7, 0)
    assert "none_of_these" not in first
    assert second["none_of_these"] is True


@pytest.mark.parametrize("score", [-2.0, 0.0])
def test_a_region_may_be_none_of_these(score, classifier, pair):
    (prediction,) = classifier.predict(pair)
    rectangles = ((10.0, 0.0, 20.0, 5.0),)
    known = Belonging(score, threshold=-1.0)
    region = Region(np.eye(4, dtype=bool), rectangles, ("b", "a"), (0.7, 0.3), known)
    assert region.label == ("none of these?" if score < -1 else "b")
    (content,) = content_of_regions([region])
    assert content["none_of_these"] == (score < -1)
    assert (content["score"], content["threshold"]) == (score, -1)
    text = as_text(prediction, [region]).splitlines()[-1]
    assert text.endswith("none of these?" if score < -1 else " b")


def predict_command(capsys, *arguments):
    """Runs `--mode=predict --regions` in this process; returns its exit code and errors."""
    with flagsaver.flagsaver():
        flags = ["run.py", "--mode=predict", "--regions", *map(str, arguments)]
        code = command_line.main(command_line.parse_flags(flags))
    return code, capsys.readouterr().err


def test_the_command_writes_the_regions_of_the_photos_that_it_can_read(
    classifier, pair, tmp_path, capsys
):
    damaged, file = tmp_path / "damaged.png", tmp_path / "new" / "regions.json"
    damaged.write_bytes(pair.read_bytes()[:80])
    flags = (f"--workdir={classifier.workdir}", f"--coco={file}")
    code, errors = predict_command(capsys, *flags, damaged, pair)
    assert code == command_line.MISTAKE
    assert "1 of 2 photos could not be read" in errors
    content = json.loads(file.read_text())
    regions = classifier.regions(pair)
    expected = coco_content([(pair, (96, 48), regions)], classifier.class_names)
    assert content.keys() == expected.keys()
    assert content["images"] == expected["images"]
    assert content["categories"] == expected["categories"]
    for found, one in zip(content["annotations"], expected["annotations"], strict=True):
        assert found == one | {"score": pytest.approx(one["score"], abs=1e-5)}
    before = file.read_bytes()
    code, errors = predict_command(capsys, *flags, pair)
    assert code == command_line.MISTAKE
    assert "regions.json exists already" in errors
    assert file.read_bytes() == before


def test_an_interrupted_command_writes_the_regions_so_far(
    classifier, photos, tmp_path, capsys, monkeypatch
):
    file, find = tmp_path / "regions.json", Classifier.regions

    def interrupted(self, image, top_k):
        if file.with_suffix(".seen").exists():
            raise KeyboardInterrupt
        file.with_suffix(".seen").touch()
        return find(self, image, top_k)

    monkeypatch.setattr(Classifier, "regions", interrupted)
    code, errors = predict_command(
        capsys, f"--workdir={classifier.workdir}", f"--coco={file}", *photos[:3]
    )
    assert code == command_line.INTERRUPTED
    assert errors.endswith("interrupted\n")
    content = json.loads(file.read_text())
    assert [image["file_name"] for image in content["images"]] == [str(photos[0])]
    assert content["annotations"]
