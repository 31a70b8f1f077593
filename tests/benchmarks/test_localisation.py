"""The localisation benchmark measures maps of known values on photos of known boxes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from skimage.measure import label
from sklearn.metrics import roc_auc_score

from benchmarks import localisation
from benchmarks.annotations import Annotations, off_centre_window, paint, truth_in_crop
from benchmarks.localisation import Located, measure, summarise
from benchmarks.localisation_maps import (
    THRESHOLDS,
    LastLayer,
    gradient_weighted,
    heads,
    masks_above,
    normalised_cut,
    probe,
)
from fgvpl_jax.clip import load_clip
from fgvpl_jax.clip.layers import ACTIVATIONS
from fgvpl_jax.errors import UserError
from fgvpl_jax.visual_prompt import ATTENTION_MAPS, FGImageEncoder

SIDE, GRID = (32, 32), (4, 4)  # of the tiny CLIP
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(tiny_clip_dir)


@pytest.fixture
def place(tmp_path):
    """Makes empty folders of photos and annotations, and returns their parent."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "annotations").mkdir()
    return tmp_path


def write_photo(place: Path, name: str, size: tuple[int, int], orientation: int = 1) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(place / "photos" / name, exif=exif)


def write_voc(place: Path, stem: str, size: tuple[int, int], *boxes: tuple) -> None:
    """Writes boxes given as left, top, right and bottom edges, the first pixel being 0 to 1."""
    objects = "".join(
        f"<object><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{right}</xmax>"
        f"<ymax>{bottom}</ymax></bndbox></object>"
        for left, top, right, bottom in boxes
    )
    size_text = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    file = place / "annotations" / f"{stem}.xml"
    file.write_text(f"<annotation>{size_text}{objects}</annotation>")


def examples_of(clip, place: Path, annotations: str = "annotations"):
    return localisation.read_examples(clip, place / "photos", place / annotations)


def only_truth(clip, place: Path, annotations: str = "annotations") -> np.ndarray:
    (example,) = examples_of(clip, place, annotations).used
    return example.truth


def square(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    truth = np.zeros(SIDE, bool)
    truth[top:bottom, left:right] = True
    return truth


def test_a_box_in_a_landscape_photo_is_mapped_through_the_crop(clip, place):
    write_photo(place, "a.jpg", (128, 64))  # the crop is columns 32 to 96, at half the size
    write_voc(place, "a", (128, 64), (48, 16, 80, 48))
    np.testing.assert_array_equal(only_truth(clip, place), square(8, 8, 24, 24))


def test_the_part_of_a_box_outside_the_crop_is_cut_off(clip, place):
    write_photo(place, "a.jpg", (64, 128))
    write_voc(place, "a", (64, 128), (0, 0, 32, 64))
    np.testing.assert_array_equal(only_truth(clip, place), square(0, 0, 16, 16))


def test_boxes_are_joined(clip, place):
    write_photo(place, "a.jpg", (32, 32))
    write_voc(place, "a", (32, 32), (0, 0, 8, 8), (4, 4, 16, 16))
    expected = square(0, 0, 8, 8) | square(4, 4, 16, 16)
    np.testing.assert_array_equal(only_truth(clip, place), expected)


def test_a_box_of_another_size_is_scaled_and_counted(clip, place):
    write_photo(place, "a.jpg", (32, 32))
    write_voc(place, "a", (320, 160), (80, 40, 160, 80))
    (example,) = examples_of(clip, place).used
    assert example.rescaled
    np.testing.assert_array_equal(example.truth, square(8, 8, 16, 16))


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((32, 64), (8, 16, 16, 32)),  # drawn on the upright photo
        ((64, 32), (16, 16, 32, 24)),  # drawn on the photo as it is stored
    ],
)
def test_a_box_follows_the_exif_orientation(clip, place, size, box):
    """Orientation 6 is shown after a quarter turn clockwise: stored (x, y) is at (31 - y, x)."""
    write_photo(place, "a.jpg", (64, 32), orientation=6)
    write_voc(place, "a", size, box)
    (example,) = examples_of(clip, place).used
    assert not example.rescaled
    np.testing.assert_array_equal(example.truth, square(8, 0, 16, 16))


def test_coco_voc_and_masks_of_the_same_object_agree(clip, place):
    write_photo(place, "a.jpg", (96, 64))
    left, top, right, bottom = box = (30, 11, 71, 50)
    write_voc(place, "a", (96, 64), box)
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 96, "height": 64}],
        "annotations": [{"image_id": 7, "bbox": [left, top, right - left, bottom - top]}],
    }
    (place / "coco.json").write_text(json.dumps(coco))
    mask = np.zeros((64, 96), np.uint8)
    mask[top:bottom, left:right] = 255
    (place / "masks").mkdir()
    Image.fromarray(mask).save(place / "masks" / "a.png")
    voc = only_truth(clip, place)
    assert 0 < voc.sum() < voc.size
    np.testing.assert_array_equal(only_truth(clip, place, "coco.json"), voc)
    np.testing.assert_array_equal(only_truth(clip, place, "masks"), voc)


def test_the_border_of_a_palette_mask_is_no_object(clip, place):
    write_photo(place, "a.jpg", (32, 32))
    indices = np.where(square(8, 8, 16, 16), 3, 0).astype(np.uint8)
    indices[8:16, 16:20] = 255
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.save(place / "annotations" / "a.png")
    np.testing.assert_array_equal(only_truth(clip, place), square(8, 8, 16, 16))


def test_a_photo_that_is_a_png_is_not_its_own_mask(clip, place):
    write_photo(place, "a.png", (32, 32))
    write_photo(place, "b.png", (32, 32))
    write_voc(place, "a", (32, 32), (8, 8, 16, 16))
    (place / "annotations" / "a.xml").rename(place / "photos" / "a.xml")
    found = examples_of(clip, place, "photos")
    assert [example.name for example in found.used] == ["a.png"]
    assert found.left_out == {"b.png": "no annotation"}


def test_photos_that_cannot_be_used_are_left_out_and_named(clip, place):
    for stem in ("whole", "truncated", "outside", "without", "empty", "damaged", "infinite"):
        write_photo(place, f"{stem}.jpg", (64, 32))
        write_voc(place, stem, (64, 32), (20, 8, 40, 24))
    truncated = place / "photos" / "truncated.jpg"
    truncated.write_bytes(truncated.read_bytes()[:800])
    write_voc(place, "outside", (64, 32), (0, 0, 16, 32), (48, 0, 64, 32))
    (place / "annotations" / "without.xml").unlink()
    write_voc(place, "empty", (64, 32))
    (place / "annotations" / "damaged.xml").write_text("<annotation>")
    write_voc(place, "infinite", (64, 32), (20, 8, float("inf"), 24))
    found = examples_of(clip, place)
    assert [example.name for example in found.used] == ["whole.jpg"]
    expected = {
        "damaged.jpg": "damaged annotation damaged.xml",
        "empty.jpg": "no annotation: the file has no box",
        "infinite.jpg": "damaged annotation infinite.xml",
        "outside.jpg": "no object in the centred square",
        "truncated.jpg": "truncated.jpg: ",
        "without.jpg": "no annotation",
    }
    assert list(found.left_out) == list(expected)
    for name, reason in expected.items():
        assert found.left_out[name].startswith(reason)


def test_no_usable_photo_is_an_error(clip, place):
    write_photo(place, "a.jpg", (32, 32))
    with pytest.raises(UserError, match="holds no annotations"):
        examples_of(clip, place)
    write_voc(place, "b", (32, 32), (0, 0, 8, 8))
    with pytest.raises(UserError, match=r"no photo .* can be measured.*a\.jpg"):
        examples_of(clip, place)
    (place / "coco.json").write_text('{"images": 3}')
    with pytest.raises(UserError, match="is not a COCO JSON file"):
        Annotations(place / "coco.json")


def test_a_map_of_the_object_scores_one():
    truth = square(8, 8, 24, 24)
    mask = np.zeros(GRID, bool)
    mask[1:3, 1:3] = True
    located = Located(mask.reshape(1, -1).astype(np.float32), mask.reshape(1, -1))
    scores = {name: float(values[0]) for name, values in measure(located, [truth], GRID).items()}
    assert scores["iou"] == scores["inside"] == scores["auc"] == scores["peak"] == 1
    assert scores["box_iou"] == scores["box_inside"] == 1  # the object is a centred box
    assert scores["everything_iou"] == scores["area"] == 1 / 4
    assert scores["random_iou"] < 0.5


def test_a_map_that_misses_half_of_the_object_is_measured_by_hand():
    """The object is the left half; the mask is the top row of patches."""
    truth = square(0, 0, 16, 32)
    mask = np.zeros(GRID, bool)
    mask[0] = True
    values = np.zeros(GRID, np.float32)
    values[0] = 1
    values[0, 3] = 2  # the peak is outside
    located = Located(values.reshape(1, -1), mask.reshape(1, -1))
    scores = {name: float(values[0]) for name, values in measure(located, [truth], GRID).items()}
    assert scores["iou"] == pytest.approx(128 / (512 + 256 - 128))
    assert scores["inside"] == pytest.approx(0.5)
    assert scores["box_iou"] == pytest.approx(128 / (512 + 256 - 128))
    assert scores["peak"] == 0
    # Of the object, 1/4 has value 1 and 3/4 has 0; of the rest, 1/8 has 2, 1/8 has 1, 3/4 has 0.
    assert scores["auc"] == pytest.approx(1 / 4 * (3 / 4 + 1 / 16) + 3 / 4 * 3 / 8)


def test_the_auc_of_an_object_that_fills_the_square_is_undefined():
    located = Located(np.ones((2, 16), np.float32), np.ones((2, 16), bool))
    measures = measure(located, [np.ones(SIDE, bool), square(0, 0, 16, 32)], GRID)
    assert np.isnan(measures["auc"][0])
    assert summarise(measures)["auc"] == (0.5, 0.5, 0.5)
    assert summarise({"auc": measures["auc"][:1]}) == {"auc": None}


def full_products(attentions: list[np.ndarray]) -> np.ndarray:
    """Returns the class row of the whole product, without its class column, summed over heads."""
    rolled = attentions[0]
    for weights in attentions[1:]:
        rolled = weights @ rolled
    return rolled[:, :, 0, 1:].sum(axis=1)


def test_the_normalised_cut_separates_two_groups_of_keys():
    rng = np.random.default_rng(0)
    inside = np.zeros(GRID, bool)
    inside[1:3, 1:3] = True
    directions = np.where(inside.ravel()[:, None], [1.0, 0.2], [0.2, 1.0])
    keys = np.concatenate([np.zeros((1, 2)), directions]) + rng.normal(scale=0.02, size=(17, 2))
    cut = np.asarray(normalised_cut(jnp.asarray(keys[None, None], jnp.float32), GRID))[0]
    assert cut[inside.ravel()].min() > cut[~inside.ravel()].max()


def test_gradient_weights_are_those_of_central_differences(clip):
    """The gradient of the cosine by each weight of the class row, one weight at a time."""
    rng = np.random.default_rng(0)
    encoder, layer = clip.image_encoder, list(clip.vision.layers)[-1]
    side = clip.image_size
    pixels = rng.normal(size=(1, side, side, 3)).astype(np.float32)

    @jax.jit
    def program(pixels):
        tokens = clip.vision.embed(pixels)
        for one in list(clip.vision.layers)[:-1]:
            tokens, _ = one(tokens)
        output, weights = layer(tokens)
        feature = clip.vision.project(output[:, 0]) + 1
        feature = feature / jnp.linalg.norm(feature)
        values = heads(layer.attention.value(layer.norm1(tokens)), weights.shape[1])
        seen = LastLayer(tokens, values, values, [weights])
        return tokens[:, 0], weights, feature, values, gradient_weighted(encoder, seen, feature)[0]

    token, weights, feature, values, ours = map(np.asarray, program(pixels))

    @jax.jit
    def image_of(mixed):
        moved = token + layer.attention.out(mixed)
        hidden = ACTIVATIONS[layer.activation](layer.fc1(layer.norm2(moved)))
        return clip.vision.project(moved + layer.fc2(hidden))

    def cosine(row):
        mixed = np.einsum("bht,bhtc->bhc", row, values).reshape(1, -1)
        image = np.asarray(image_of(mixed.astype(np.float32)), np.float64)
        return (image @ np.asarray(feature, np.float64).T / np.linalg.norm(image)).item()

    row, step, expected = np.asarray(weights[:, :, 0], np.float64), 1e-2, np.zeros(ours.shape)
    for head, patch in np.ndindex(row.shape[1], row.shape[2] - 1):
        moved = np.zeros_like(row)
        moved[0, head, patch + 1] = step
        slope = (cosine(row + moved) - cosine(row - moved)) / (2 * step)
        expected[patch] += row[0, head, patch + 1] * max(slope, 0)
    np.testing.assert_allclose(ours, expected, atol=0.02 * expected.max())


def test_the_probe_is_trained_on_other_photos():
    """The probe is wrong everywhere if the truth of one half contradicts the other half's."""
    rng = np.random.default_rng(0)
    covered = rng.integers(0, 2, (8, 16)).astype(float)
    tokens = rng.normal(scale=0.1, size=(8, 16, 3))
    tokens[..., 0] += covered
    held_out = [slice(0, 4), slice(4, 8)]
    odds = probe(tokens, covered)
    assert all(roc_auc_score(covered[f].ravel(), odds[f].ravel()) > 0.95 for f in held_out)
    covered[4:] = 1 - covered[4:]
    odds = probe(tokens, covered)
    assert all(roc_auc_score(covered[f].ravel(), odds[f].ravel()) < 0.05 for f in held_out)


def test_thresholds_are_scikit_images():
    maps = np.random.default_rng(0).random((3, 16))
    for name, threshold in THRESHOLDS.items():
        masks = masks_above(maps, name, GRID)
        for values, mask in zip(maps, masks, strict=True):
            areas = label(values.reshape(GRID) > threshold(values), connectivity=2)
            largest = np.bincount(areas[areas > 0]).max()
            assert mask.sum() == largest
            assert values[mask].min() > threshold(values)


def test_an_off_centre_window_shows_a_third_of_object():
    painted = Image.new("L", (100, 60))
    painted.paste(255, (40, 20, 70, 50))
    rng = np.random.default_rng(0)
    left, top, right, bottom = off_centre_window(painted, rng)
    assert 0 <= left < right <= 100
    assert 0 <= top < bottom <= 60
    assert right - left == bottom - top
    assert np.asarray(painted.crop((left, top, right, bottom))).mean() / 255 == pytest.approx(
        0.3, abs=0.05
    )
    assert off_centre_window(Image.new("L", (50, 50), 255), rng) is None


def test_a_whole_measurement_is_reported_and_repeatable(clip, tiny_clip_dir, place, monkeypatch):
    monkeypatch.setattr(localisation, "BATCH", 2)
    for number in range(4):  # two batches of one program
        write_photo(place, f"{number}.png", (48, 32))
        write_voc(place, str(number), (48, 32), (10 + number, 4, 30, 20))
    write_photo(place, "without.png", (48, 32))
    sheet = place / "sheet.png"
    given = (str(tiny_clip_dir), place / "photos", place / "annotations")
    result = localisation.main(*given, sheet, "residual")
    assert result == localisation.main(*given, None, "residual")
    assert result["photos"] == result["photos_with_an_auc"] == 4
    assert result["rescaled_annotations"] == 0
    assert result["left_out"] == {"without.png": "no annotation"}
    for rows in (result["kinds"], result["thresholds"]):
        table = localisation.table(rows, "map")
        for kind, row in rows.items():
            assert f"| {kind} | " in table
            for mean, low, high in row.values():
                assert 0 <= low <= mean <= high <= 1
    assert {*ATTENTION_MAPS, "probe", "layer_L"} < set(result["kinds"])
    more = localisation.main(*given, None, "gradient_weighted", "cat", off_centre=True)
    assert set(more["kinds"]) - set(result["kinds"]) == {"patch_to_class", "gradient_weighted"}
    with pytest.raises(UserError, match="kind is 'sum': choose one of"):
        localisation.main(*given, None, "sum")
    assert min(Image.open(sheet).size) > 100


def test_maps_are_those_of_the_package(clip, place):
    """Every map that is a value of `config.attention_map` is the encoder's without a prompt."""
    write_photo(place, "a.png", (48, 32))
    write_voc(place, "a", (48, 32), (10, 4, 30, 20))
    (example,) = examples_of(clip, place).used
    located = localisation.locate(clip.image_encoder, [example])

    @jax.jit
    def features_by_map(crops):
        pixels = clip.image_encoder.normalize_pixels(crops)
        return {
            name: FGImageEncoder(clip.vision, 0, attention_map=name, rngs=nnx.Rngs(0))(pixels)
            for name in ATTENTION_MAPS
        }

    for name, features in features_by_map(example.crop[None]).items():
        np.testing.assert_allclose(located[name].maps, features.attention_map, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(located[name].masks, features.object_mask)


def test_a_photo_of_any_geometry_is_mapped(clip, place, monkeypatch):
    """Another crop, such as one of a processor that does not keep proportions, moves the truth."""
    monkeypatch.setattr(
        clip, "resize_and_crop", lambda photo: np.asarray(photo.resize(SIDE).convert("RGB"))
    )
    write_photo(place, "a.png", (64, 32))
    write_voc(place, "a", (64, 32), (16, 8, 32, 16))
    file = place / "photos" / "a.png"
    annotation = Annotations(place / "annotations").of(Path("a.png"))
    truth = truth_in_crop(clip, paint(Image.open(file), file, annotation).picture)
    np.testing.assert_array_equal(truth, square(8, 8, 16, 16))
