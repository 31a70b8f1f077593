"""Compares both towers with transformers' CLIPModel at run time: float32, random weights."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax import load_clip
from tests.comparison import BOUND, relative_error
from tests.tiny_clip import KINDS, tiny_config, write_small_files

torch = pytest.importorskip("torch", reason="compares live with PyTorch: make parity")
pytestmark = pytest.mark.torch


def size(width, layers, mlp, heads, **more):
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        **more,
    }


BASE_TEXT = size(512, 12, 2048, 8)
REAL = {
    "B/32": (size(768, 12, 3072, 12, image_size=224, patch_size=32), BASE_TEXT, 512),
    "B/16": (size(768, 12, 3072, 12, image_size=224, patch_size=16), BASE_TEXT, 512),
    "L/14": (
        size(1024, 24, 4096, 16, image_size=224, patch_size=14),
        size(768, 12, 3072, 12),
        768,
    ),
    "L/14@336": (
        size(1024, 24, 4096, 16, image_size=336, patch_size=14),
        size(768, 12, 3072, 12),
        768,
    ),
}


def torch_model(directory, config, seed=0):
    """Saves a random CLIPModel as a checkpoint, with random biases and norms too."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    model = CLIPModel._from_config(CLIPConfig.from_dict(config), attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.05)
            elif "norm" in name:
                parameter.uniform_(0.8, 1.2)
    model.eval()
    write_small_files(directory, config)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    return model


def theirs(model, pixels, ids):
    with torch.no_grad():
        image = model.get_image_features(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)))
        text = model.get_text_features(input_ids=torch.tensor(ids.astype(np.int64)))
    return (getattr(f, "pooler_output", f).numpy() for f in (image, text))


def compare(model, clip, batch=3):
    rng = np.random.default_rng(0)
    side = clip.image_size
    pixels = rng.normal(size=(batch, side, side, 3)).astype(np.float32)
    ids = clip.tokenize(["a photo of a dog.", "x", "two words, and more!"])
    image, text = theirs(model, pixels, ids)
    errors = (
        relative_error(clip.encode_image(pixels), image),
        relative_error(clip.encode_text(ids), text),
    )
    assert clip.logit_scale == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    return errors


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_every_kind(kind, tmp_path):
    config = tiny_config(**KINDS[kind])
    model = torch_model(tmp_path, config)
    errors = compare(model, load_clip(str(tmp_path)))
    assert max(errors) <= BOUND


def test_a_text_with_several_ends_and_one_without(tmp_path):
    """Checks both conventions of pooling on ids that no tokenizer writes."""
    for eos in (2, 513):
        directory = tmp_path / str(eos)
        config = tiny_config(text_config={"eos_token_id": eos})
        directory.mkdir()
        model, ids = torch_model(directory, config), np.full((3, 77), 5, np.int32)
        ids[0, [4, 9]] = 513
        ids[1, 7] = 300
        ids[2, [3, 8]] = 2, 400
        clip = load_clip(str(directory))
        _, text = theirs(model, np.zeros((1, 32, 32, 3), np.float32), ids)
        assert relative_error(clip.encode_text(ids), text) <= BOUND


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_features_at_real_shapes(name, tmp_path):
    vision, text, embed = REAL[name]
    config = tiny_config(vision_config=vision, text_config=text) | {"projection_dim": embed}
    model = torch_model(tmp_path, config)
    errors = compare(model, load_clip(str(tmp_path)))
    print(f"{name}: relative error of image features {errors[0]:.1e}, of text {errors[1]:.1e}")
    assert max(errors) <= BOUND


def test_attention_weights_and_tokens_layer_by_layer(tmp_path):
    config = tiny_config()
    model = torch_model(tmp_path, config)
    clip = load_clip(str(tmp_path))
    pixels = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        out = model.vision_model(
            torch.tensor(pixels.transpose(0, 3, 1, 2)),
            output_attentions=True,
            output_hidden_states=True,
        )
    tokens = clip.vision.embed(jnp.asarray(pixels))
    for i, layer in enumerate(clip.vision.layers):
        np.testing.assert_allclose(tokens, out.hidden_states[i], rtol=1e-4, atol=1e-5)
        tokens, weights = layer(tokens)
        np.testing.assert_allclose(weights, out.attentions[i], rtol=1e-4, atol=1e-6)


def test_the_photo_clip_and_its_zero_shot_predictions():
    directory = os.environ.get("FGVPL_PHOTO_CLIP")
    if directory is None:
        pytest.skip("set FGVPL_PHOTO_CLIP to a trained CLIP's directory")
    from transformers import CLIPModel

    from fgvpl_jax.recognition import class_text_features, normalize

    model, clip = CLIPModel.from_pretrained(directory).eval(), load_clip(directory)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(32, clip.image_size, clip.image_size, 3)).astype(np.float32)
    names = ["forest", "river", "dog", "table lamp", "bridge"]
    ids = clip.tokenize([f"a photo of a {name}." for name in names])
    image, text = theirs(model, pixels, ids)
    errors = [
        relative_error(clip.encode_image(pixels), image),
        relative_error(clip.encode_text(ids), text),
    ]
    print(f"photo-clip: relative error of image and text features {errors}")
    assert max(errors) <= BOUND
    weights = class_text_features(clip, names, ("a photo of a {}.",))
    ours = normalize(clip.encode_image(pixels)) @ weights.T
    with torch.no_grad():
        out = model(
            pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)),
            input_ids=torch.tensor(ids.astype(np.int64)),
        )
    np.testing.assert_array_equal(ours.argmax(axis=1), out.logits_per_image.argmax(dim=1))
    np.testing.assert_allclose(
        float(clip.logit_scale) * ours, out.logits_per_image, rtol=1e-4, atol=1e-4
    )
