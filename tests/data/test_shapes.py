"""The drawn benchmark: keys determine scenes, splits share no scene, masks are correct."""

import numpy as np
import pytest

from fgvpl_jax.data import load_shapes
from fgvpl_jax.data.shapes import (
    BENCHMARK_PAIRS,
    COLOURS,
    SHAPES,
    SIDE,
    UNREAD_WORDS,
    draw_scene,
    pretraining_pairs,
    shape_outline,
)


def test_the_splits_have_every_class_evenly():
    dataset = load_shapes()
    assert dataset.class_names[0] == "crimson circle"
    assert dataset.class_names[2] == "yellow square"
    assert not set(UNREAD_WORDS.values()) & {*COLOURS, *SHAPES}
    for split, per_class in ((dataset.train, 40), (dataset.validation, 10), (dataset.test, 60)):
        np.testing.assert_array_equal(np.bincount(split.labels), [per_class] * 10)


def test_a_key_determines_its_scene_whatever_is_selected():
    train = load_shapes().train
    picked = train.select([57, 3])
    for place, index in enumerate((57, 3)):
        again = picked.scene(place)
        np.testing.assert_array_equal(again.image, train.image(index))
        np.testing.assert_array_equal(again.mask, train.scene(index).mask)


def test_no_two_scenes_are_alike():
    dataset = load_shapes()
    scenes = [
        np.asarray(split.image(i)).tobytes()
        for split in (dataset.train, dataset.validation, dataset.test)
        for i in range(0, len(split), 7)
    ]
    assert len(set(scenes)) == len(scenes)


def test_the_tiny_clip_never_saw_a_pair_of_the_benchmark():
    seen = set(pretraining_pairs())
    assert len(seen) == len(COLOURS) * len(SHAPES) - len(BENCHMARK_PAIRS)
    assert not seen & set(BENCHMARK_PAIRS)
    for words, place in ((COLOURS, 0), (SHAPES, 1)):
        assert {pair[place] for pair in seen} == set(words)


def test_objects_are_everywhere():
    """Centres are uniform: their mean is the middle, their spread that of a uniform variable."""
    centres = []
    for i in range(200):
        mask = draw_scene("red", "circle", np.random.default_rng((1, i))).mask
        centres.append(np.mean(np.nonzero(mask), axis=1))
    centres = np.array(centres)
    # With radii of 0.16-0.26, centres have a range of about 0.58 of the side.
    np.testing.assert_allclose(centres.mean(axis=0), SIDE / 2, atol=4 * 0.58 * SIDE / 12**0.5 / 14)
    assert (centres.std(axis=0) > 0.13 * SIDE).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_as_large_as_said(shape):
    outline = np.array(shape_outline(shape, np.array([10.0, 20.0]), 3.0, 0.7))
    distance = np.hypot(*(outline - [10.0, 20.0]).T)
    assert 2.9 < distance.max() < 3.2  # the tips of arrow and crescent are slightly outside


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_covers_the_colour(shape):
    """Pixels in the mask have the object's colour, the others show background or clutter."""
    scene = draw_scene("cyan", shape, np.random.default_rng(5))
    pixels = np.asarray(scene.image, np.float64)
    distance = np.abs(pixels - COLOURS["cyan"]).max(axis=-1)
    inside, outside = np.median(distance[scene.mask]), np.median(distance[~scene.mask])
    assert inside < 45 < outside
    assert 0.01 < scene.mask.mean() < 0.25
