"""Checks the demo's CLIP, its scenes, and the script that trains it and CLIPs of other families."""

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import shapes
from demo import train_clip
from fgvpl_jax import load_clip
from fgvpl_jax.clip.families import family_of
from fgvpl_jax.clip.families.open_clip_resnet import BatchNorm
from fgvpl_jax.data import load_shapes
from fgvpl_jax.data.shapes import draw_scene
from fgvpl_jax.errors import UserError
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


@pytest.mark.parametrize(
    ("tower", "form"),
    [("vit", "CLIPModel"), ("siglip", "SiglipModel"), ("resnet", "OpenCLIP's ResNets")],
)
def test_the_script_writes_files_of_the_family_with_a_grid_of_8_by_8(tower, form, tmp_path):
    train_clip.write_small_files(tmp_path, tower)
    family, config = family_of(tmp_path)
    assert form in family.name
    architecture = family.read(tmp_path, config)
    assert architecture.vision.grid == (8, 8)
    np.testing.assert_array_equal(architecture.image_processor.mean, train_clip.MEAN)
    np.testing.assert_array_equal(architecture.image_processor.std, train_clip.STD)
    words, other = architecture.tokenizer(["a yellow hexagon", "a crimson hexagon"])
    assert len(set(words.tolist())) < len(set(other.tolist()))
    if tower == "vit":
        for file in tmp_path.iterdir():
            assert file.read_bytes() == (DEMO / "clip" / file.name).read_bytes(), file.name


@pytest.mark.parametrize(("tower", "other"), [("resnet", "vit"), ("vit", "siglip")])
def test_a_folder_with_a_checkpoint_of_another_form_is_refused(tower, other, tmp_path):
    train_clip.write_small_files(tmp_path, other)
    train_clip.write_small_files(tmp_path, other)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"config\.json belongs to .* another form .*--out"):
        train_clip.write_small_files(tmp_path, tower)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_script_needs_a_folder():
    script = [sys.executable, str(DEMO / "train_clip.py")]
    done = subprocess.run(script, capture_output=True, text=True, cwd=DEMO.parent, check=False)
    assert done.returncode != 0
    assert "flag --out=None: Flag --out must have a value" in done.stderr


def test_batch_statistics_normalise_the_batch_and_are_kept():
    norm = BatchNorm(3)
    trained = train_clip.BatchStatistics(norm)
    x = np.random.default_rng(0).normal(2, 3, (4, 5, 6, 3)).astype(np.float32)
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    expected = (x - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(trained(jnp.asarray(x)), expected, atol=1e-5)
    for _ in range(100):
        trained(jnp.asarray(x))
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, atol=1e-3)
