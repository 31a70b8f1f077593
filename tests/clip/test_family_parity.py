"""Compares every family with its own library at run time: float32, random weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from fgvpl_jax import load_clip
from fgvpl_jax.recognition import normalize
from tests import backbone_oracles
from tests.clip.checkpoints import edit_json
from tests.comparison import BOUND, relative_error
from tests.golden import write_backbones
from tests.golden.inputs import BACKBONES_FILE, DIRECTORY
from tests.tiny_backbones import (
    KINDS,
    OPEN_CLIP_KINDS,
    TRANSFORMERS_KINDS,
    transformers_config,
    write_open_clip,
    write_small_files,
    write_tiny_backbone,
)
from tests.tiny_clip import vocabulary

torch = backbone_oracles.torch
pytestmark = pytest.mark.torch

TEXTS = ["a photo of a dog.", "x", "two words, and more!"]
BASE_TEXT = {"width": 512, "heads": 8, "layers": 12}
REAL = {
    "ViT-B-32": {
        "embed_dim": 512,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": BASE_TEXT,
    },
    "ViT-L-14": {
        "embed_dim": 768,
        "vision_cfg": {"image_size": 224, "layers": 24, "width": 1024, "patch_size": 14},
        "text_cfg": {"width": 768, "heads": 12, "layers": 12},
    },
    "ViT-H-14": {
        "embed_dim": 1024,
        "vision_cfg": {
            "image_size": 224,
            "layers": 32,
            "width": 1280,
            "head_width": 80,
            "patch_size": 14,
        },
        "text_cfg": {"width": 1024, "heads": 16, "layers": 24},
    },
    "RN50": {
        "embed_dim": 1024,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64},
        "text_cfg": BASE_TEXT,
    },
    "RN101": {
        "embed_dim": 512,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 224, "layers": [3, 4, 23, 3], "width": 64},
        "text_cfg": BASE_TEXT,
    },
    "RN50x4": {
        "embed_dim": 640,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 288, "layers": [4, 6, 10, 6], "width": 80},
        "text_cfg": {"width": 640, "heads": 10, "layers": 12},
    },
    "RN50x16": {
        "embed_dim": 768,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 384, "layers": [6, 8, 18, 8], "width": 96},
        "text_cfg": {"width": 768, "heads": 12, "layers": 12},
    },
    "RN50x64": {
        "embed_dim": 1024,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 448, "layers": [3, 15, 36, 10], "width": 128},
        "text_cfg": {"width": 1024, "heads": 16, "layers": 12},
    },
    "PE-Core-B-16": {
        "embed_dim": 1024,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224,
            "timm_model_name": "vit_pe_core_base_patch16_224",
            "timm_pool": "map",
            "timm_proj": None,
        },
        "text_cfg": {"context_length": 32, "width": 1024, "heads": 16, "layers": 24},
    },
}


def write_native(directory, config, save=None):
    """Writes a random model in OpenCLIP's own form, by its own classes; returns the model."""
    directory.mkdir(exist_ok=True)
    write_open_clip(directory, config)
    model = backbone_oracles.random_open_clip(config["model_cfg"])
    if save is None:
        tensors = {name: value.numpy() for name, value in model.state_dict().items()}
        save_file(tensors, directory / "open_clip_model.safetensors")
    else:
        save(model.state_dict(), directory / "open_clip_pytorch_model.bin")
    return model


def errors_of(model, directory, batch=3):
    clip = load_clip(directory)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(batch, clip.image_size, clip.image_size, 3)).astype(np.float32)
    ids = clip.tokenize(TEXTS)
    image, text = backbone_oracles.features(model, pixels, ids)
    ours = clip.encode_image(pixels), clip.encode_text(ids)
    expected = normalize(jnp.asarray(image)) @ normalize(jnp.asarray(text)).T
    np.testing.assert_array_equal(
        (normalize(ours[0]) @ normalize(ours[1]).T).argmax(axis=1), expected.argmax(axis=1)
    )
    return relative_error(ours[0], image), relative_error(ours[1], text)


@pytest.mark.parametrize("kind", OPEN_CLIP_KINDS)
def test_features_of_open_clips_models(kind, tmp_path):
    model = write_native(tmp_path, OPEN_CLIP_KINDS[kind])
    errors = errors_of(model, tmp_path)
    print(f"{kind}: relative error of image features {errors[0]:.1e}, of text {errors[1]:.1e}")
    assert max(errors) <= BOUND


def write_of_transformers(directory, kind, **changes):
    """Writes a random SigLIP or MetaCLIP 2 by transformers' own class; returns the model."""
    write_small_files(directory, kind)
    config = transformers_config(kind)
    for part, values in changes.items():
        config[part] |= values
    model = backbone_oracles.random_transformers(config)
    model.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("kind", TRANSFORMERS_KINDS)
def test_features_of_transformers_models(kind, tmp_path):
    model = write_of_transformers(tmp_path, kind)
    errors = errors_of(model, tmp_path)
    print(f"{kind}: relative error of image features {errors[0]:.1e}, of text {errors[1]:.1e}")
    assert max(errors) <= BOUND


def test_a_bin_of_open_clip(tmp_path):
    model = write_native(tmp_path, OPEN_CLIP_KINDS["open_clip"], torch.save)
    assert max(errors_of(model, tmp_path)) <= BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_photos_are_prepared_bit_by_bit_as_by_the_familys_library(kind, tmp_path):
    write_tiny_backbone(tmp_path, kind)
    clip, (_, preprocess) = load_clip(tmp_path), backbone_oracles.load(tmp_path)
    rng = np.random.default_rng(0)
    for size in ((32, 32), (40, 33), (33, 101), (500, 32), (31, 20)):
        photo = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
        expected = preprocess(photo)
        back = np.rint((expected * clip.image_std + clip.image_mean) * 255)
        np.testing.assert_array_equal(clip.resize_and_crop(photo), back)
        np.testing.assert_allclose(clip.preprocess(photo), expected, atol=2e-6)


def test_tokens_equal_those_of_open_clips_tokenizer(tmp_path):
    """Writes CLIP's vocabulary, which OpenCLIP's package holds, as transformers' files."""
    simple = backbone_oracles.open_clip.SimpleTokenizer()
    config = OPEN_CLIP_KINDS["open_clip"]
    config = config | {"model_cfg": config["model_cfg"] | {"text_cfg": {"layers": 1}}}
    write_native(tmp_path, config)
    assert set(vocabulary()) < set(simple.encoder) | {"<|startoftext|>", "<|endoftext|>"}
    special = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    ids = {special.get(token, token): number for token, number in simple.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    texts = [*TEXTS, "A centered satellite photo of Annual Crop Land.", "Ferris wheel, 737-200"]
    ours, theirs = load_clip(tmp_path).tokenize(texts), simple(texts).numpy()
    ends = theirs.argmax(axis=1)
    for row, other, end in zip(ours, theirs, ends, strict=True):
        np.testing.assert_array_equal(row[: end + 1], other[: end + 1])


def test_the_script_writes_the_committed_file(tmp_path):
    write_backbones.write(tmp_path / BACKBONES_FILE)
    with (
        np.load(tmp_path / BACKBONES_FILE) as new,
        np.load(DIRECTORY / BACKBONES_FILE) as committed,
    ):
        assert set(new) == set(committed)
        for name in new:
            if new[name].dtype.kind == "f":
                assert relative_error(new[name], committed[name]) <= 1e-7, name
            else:
                np.testing.assert_array_equal(new[name], committed[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_features_at_real_shapes(name, tmp_path):
    config = REAL[name] | {"text_cfg": REAL[name]["text_cfg"] | {"vocab_size": 514}}
    model = write_native(tmp_path, {"model_cfg": config, "preprocess_cfg": {}})
    errors = errors_of(
        model, tmp_path, batch=1 if name in ("RN50x64", "ViT-L-14", "ViT-H-14") else 3
    )
    print(f"{name}: relative error of image features {errors[0]:.1e}, of text {errors[1]:.1e}")
    assert max(errors) <= BOUND


BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
}
SHAPE_400M = {
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
}
HUGE = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "intermediate_size": 5120,
    "num_attention_heads": 16,
}
META_TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "side", "patch", "vision", "text"),
    [
        pytest.param("siglip", 224, 16, BASE, BASE, id="SigLIP B/16"),
        pytest.param("siglip", 256, 16, LARGE, LARGE, id="SigLIP L/16"),
        pytest.param("siglip", 224, 14, SHAPE_400M, SHAPE_400M, id="SigLIP so400m/14"),
        pytest.param("metaclip_2", 224, 16, BASE, META_TEXT, id="MetaCLIP 2 B/16"),
        pytest.param("metaclip_2", 224, 14, HUGE, LARGE, id="MetaCLIP 2 H/14"),
    ],
)
def test_features_of_transformers_models_at_real_shapes(
    kind, side, patch, vision, text, tmp_path, request
):
    """Checks the published shapes but for the table of tokens, which is as small as the tokenizer.

    SigLIP 2 base has the shape of SigLIP B/16.
    """
    vision = vision | {"image_size": side, "patch_size": patch}
    if kind == "siglip":
        text = text | {"projection_size": vision["hidden_size"]}
    model = write_of_transformers(tmp_path, kind, vision_config=vision, text_config=text)
    square = {"height": side, "width": side}
    size = {"size": square} if kind == "siglip" else {"size": {"shortest_edge": side}}
    edit_json(tmp_path / "preprocessor_config.json", lambda c: c.update(size, crop_size=square))
    errors = errors_of(model, tmp_path, batch=1 if vision["hidden_size"] > 768 else 3)
    name = request.node.callspec.id
    print(f"{name}: relative error of image features {errors[0]:.1e}, of text {errors[1]:.1e}")
    assert max(errors) <= BOUND
