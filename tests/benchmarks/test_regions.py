"""The benchmark of regions: its pictures, boxes and table."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import regions
from fgvpl_jax.data.shapes import BENCHMARK_PAIRS
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.workdir import Workdir


def test_objects_are_apart():
    for seed in range(5):
        picture = regions.draw_picture((0, 3, 7), np.random.default_rng(seed))
        assert picture.labels == (0, 3, 7)
        assert len(set(picture.boxes)) == 3
        assert all(left >= 0 and left + width <= 64 for left, _, width, _ in picture.boxes)
    again = regions.draw_picture((0, 3, 7), np.random.default_rng(4))
    np.testing.assert_array_equal(np.asarray(again.image), np.asarray(picture.image))


def test_boxes_and_their_iou():
    mask = np.zeros((8, 8), bool)
    mask[2:4, 1:6] = True
    assert regions.box_of_mask(mask) == (1, 2, 5, 2)
    assert regions.box_iou((0, 0, 2, 2), (1, 0, 2, 2)) == pytest.approx(1 / 3)
    assert regions.box_iou((0, 0, 2, 2), (2, 2, 1, 1)) == 0


@pytest.mark.slow
def test_the_branch_is_the_prediction_under_any_mask(tiny_config, demo_clip_dir, tmp_path):
    tiny_config.clip, tiny_config.benchmark = str(demo_clip_dir), "shapes"
    tiny_config.data.source, tiny_config.epochs, tiny_config.shots = "shapes", 1, 1
    tiny_config.attention_map = "border_contrast"
    train_and_evaluate(tiny_config, Workdir(tmp_path / "W"))
    classifier = regions.load_classifier(tmp_path / "W")
    branch = regions.MaskedBranch(classifier)
    picture = regions.draw_picture((1, 4), np.random.default_rng(0))
    found = classifier.regions(picture.image)
    whole = replace(found[0], mask=np.ones_like(found[0].mask))
    assert not found[0].mask.all()
    parts = branch(picture.image, [found[0], whole])
    (prediction,) = classifier.predict(picture.image, top_k=len(BENCHMARK_PAIRS))
    order = [classifier.class_names.index(name) for name in prediction.class_names]
    for part, values in prediction.contributions.items():
        np.testing.assert_allclose(parts[part][0, order], values, rtol=1e-3, atol=1e-4)
    # The encoder masks nothing where no object stands out, here by a threshold that none reaches.
    classifier.model.encoder.least_contrast[...] = np.inf
    weights = classifier.inference.weights
    crop = jnp.asarray(classifier.crop(picture.image, "picture"))
    features = classifier.model.features(crop[None])
    assert features.object_mask.all()
    unmasked = classifier.model.contributions(features, weights.cache, **weights.choices)
    for part, values in unmasked.items():
        np.testing.assert_allclose(parts[part][1], values[0], rtol=1e-3, atol=1e-4)
        assert np.allclose(parts[part][1], parts[part][0], rtol=1e-2) != part.startswith("object_")
    result = regions.main(str(tmp_path / "W"), 2)
    assert result["pictures"] == 2
    ways = {"regions", "objects found", "square", "mask, object", "mask, all", "picture"}
    assert set(result) == {"pictures", *(f"{n} objects: {way}" for n in (2, 3) for way in ways)}
