"""The localisation benchmark measures maps of known values on photos of known boxes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import localisation
from benchmarks.annotations import Annotations, truth_in_crop
from benchmarks.localisation import KINDS, Located, measure, summarise
from fgvpl_jax.clip import load_clip
from fgvpl_jax.errors import UserError

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


def test_the_kinds_equal_full_products():
    logits = np.random.default_rng(0).normal(size=(5, 2, 3, 17, 17))
    attentions = list(np.asarray(jax.nn.softmax(2 * jnp.asarray(logits, jnp.float32))))
    mixed = [0.5 * weights + 0.5 * np.eye(17, dtype=np.float32) for weights in attentions]
    expected = {
        "product": full_products(attentions),
        "residual": full_products(mixed),
        "last": full_products(attentions[-1:]),
        "last_3_residual": full_products(mixed[-3:]),
    }
    given = [jnp.asarray(weights) for weights in attentions]
    assert list(expected) == list(KINDS)
    for kind, values in expected.items():
        np.testing.assert_allclose(KINDS[kind](given), values, rtol=1e-5)


def test_a_whole_measurement_is_reported_and_repeatable(clip, tiny_clip_dir, place, monkeypatch):
    monkeypatch.setattr(localisation, "BATCH", 2)
    for number in range(3):
        write_photo(place, f"{number}.png", (48, 32))
        write_voc(place, str(number), (48, 32), (10 + number, 4, 30, 20))
    write_photo(place, "without.png", (48, 32))
    sheet = place / "sheet.png"
    given = (str(tiny_clip_dir), place / "photos", place / "annotations")
    result = localisation.main(*given, sheet, "residual")
    assert result == localisation.main(*given, None, "product")
    assert result["photos"] == result["photos_with_an_auc"] == 3
    assert result["rescaled_annotations"] == 0
    assert result["left_out"] == {"without.png": "no annotation"}
    for kind in KINDS:
        for mean, low, high in result[kind].values():
            assert 0 <= low <= mean <= high <= 1
    assert all(f"| {kind} | " in localisation.table(result) for kind in KINDS)
    assert min(Image.open(sheet).size) > 100


def test_maps_are_those_of_the_package(clip, place):
    """The product's map equals the encoder's without a prompt."""
    from flax import nnx

    from fgvpl_jax.visual_prompt import FGImageEncoder

    write_photo(place, "a.png", (48, 32))
    write_voc(place, "a", (48, 32), (10, 4, 30, 20))
    (example,) = examples_of(clip, place).used
    located = localisation.locate(clip, [example.crop])["product"]
    encoder = FGImageEncoder(clip.vision, num_prompts=0, rngs=nnx.Rngs(0))
    features = encoder(clip.image_encoder.normalize_pixels(jnp.asarray(example.crop[None])))
    np.testing.assert_allclose(located.maps, features.attention_map, rtol=1e-4)
    np.testing.assert_array_equal(located.masks, features.object_mask)


def test_a_photo_of_any_geometry_is_mapped(clip, place, monkeypatch):
    """Another crop, such as one of a processor that does not keep proportions, moves the truth."""
    monkeypatch.setattr(
        clip, "resize_and_crop", lambda photo: np.asarray(photo.resize(SIDE).convert("RGB"))
    )
    write_photo(place, "a.png", (64, 32))
    write_voc(place, "a", (64, 32), (16, 8, 32, 16))
    file = place / "photos" / "a.png"
    annotation = Annotations(place / "annotations").of(Path("a.png"))
    truth = truth_in_crop(clip, Image.open(file), file, annotation)
    np.testing.assert_array_equal(truth.crop, square(8, 8, 16, 16))
