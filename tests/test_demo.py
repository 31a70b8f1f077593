"""Checks the zero-shot accuracy of the demo's CLIP, and that the code draws the stored scenes."""

from pathlib import Path

import numpy as np
from PIL import Image

from configs import shapes
from fgvpl_jax import load_clip
from fgvpl_jax.data import load_shapes
from fgvpl_jax.data.shapes import draw_scene
from fgvpl_jax.recognition import class_text_features, normalize

DEMO = Path(__file__).parents[1] / "demo"


def test_the_zero_shot_accuracy_of_the_demo_can_be_improved():
    config, dataset = shapes.get_config(), load_shapes()
    clip = load_clip(config.clip)
    scenes = dataset.validation
    pixels = np.stack([clip.preprocess(scenes.image(i)) for i in range(len(scenes))])
    text = class_text_features(clip, dataset.class_names, config.data.templates)
    guesses = (normalize(clip.encode_image(pixels)) @ text.T).argmax(axis=1)
    assert 0.3 < (guesses == scenes.labels).mean() < 0.8


def test_the_code_draws_the_stored_scenes():
    files = sorted((DEMO / "scenes").glob("*.png"))
    assert len(files) == 6
    for i, file in enumerate(files):
        _, colour, shape = file.stem.split("_")
        scene = draw_scene(colour, shape, np.random.default_rng((2024, i)))
        np.testing.assert_array_equal(Image.open(file), scene.image)
