"""Every family of checkpoints: features equal to its own library's, and errors that name damage.

The golden values come from `tests/golden/write_backbones.py`.
"""

import json
import re
import shutil

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from fgvpl_jax import load_clip
from fgvpl_jax.clip import class_token_tower, identity_of
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.convert import LOGIT_SCALE, build_towers, published_tensors
from fgvpl_jax.clip.families import family_of, pe_core
from fgvpl_jax.errors import UserError
from tests.clip.checkpoints import edit_json, parameters
from tests.comparison import BOUND, relative_error
from tests.compiled import run
from tests.golden.inputs import (
    BACKBONES_FILE,
    DIRECTORY,
    PHOTO_SAMPLE,
    SEED,
    TEXTS,
    backbone_inputs,
    checksum,
)
from tests.tiny_backbones import (
    KINDS,
    random_tensors,
    small_perception_encoder,
    weights_name,
    write_small_files,
    write_tiny_backbone,
)
from tests.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def written(kind, tmp_path_factory):
    """Returns a checkpoint that no test changes."""
    directory = tmp_path_factory.mktemp(kind)
    with small_perception_encoder():
        write_tiny_backbone(directory, kind, SEED)
    return directory


@pytest.fixture
def backbone(written, tmp_path):
    """Yields a copy of the checkpoint, which a test may damage."""
    with small_perception_encoder():
        yield shutil.copytree(written, tmp_path / "backbone")


def test_features_equal_the_golden_values(kind, tmp_path):
    backbone = tmp_path / "backbone"
    write_tiny_backbone(backbone, kind, SEED)
    clip = load_clip(backbone)
    pixels, photo = backbone_inputs(clip.image_size)
    with np.load(DIRECTORY / BACKBONES_FILE) as arrays:
        expected = {name: arrays[f"{kind}/{name}"] for name in GOLDEN}
    drawn = checksum([*random_tensors(backbone, SEED).values(), pixels])
    assert str(expected["checksum"]) == drawn, "run python -m tests.golden.write_backbones"
    np.testing.assert_array_equal(clip.tokenize(TEXTS), expected["token_ids"])
    errors = {
        "image_features": relative_error(clip.encode_image(pixels), expected["image_features"]),
        "text_features": relative_error(
            clip.encode_text(expected["token_ids"]), expected["text_features"]
        ),
    }
    print(kind, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= BOUND
    assert clip.logit_scale == pytest.approx(float(expected["logit_scale"]), rel=1e-6)
    np.testing.assert_allclose(clip.preprocess(photo)[PHOTO_SAMPLE], expected["photo"], atol=2e-6)


GOLDEN = ("checksum", "token_ids", "image_features", "text_features", "logit_scale", "photo")


def test_towers_are_written_as_they_were_read(backbone):
    family, config = family_of(backbone)
    architecture = family.read(backbone, config)
    tensors = load_file(backbone / weights_name(backbone))
    vision, text, _ = build_towers(architecture, tensors)
    written = published_tensors(
        (vision, architecture.vision_names), (text, architecture.text_names)
    )
    assert written.keys() == tensors.keys() - {LOGIT_SCALE, *architecture.unused}
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files_become_float32(backbone, dtype):
    file = backbone / weights_name(backbone)
    full = parameters(load_clip(backbone))
    save_file({name: value.astype(dtype) for name, value in load_file(file).items()}, file)
    for ours, expected in zip(parameters(load_clip(backbone)), full, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, np.asarray(expected).astype(dtype).astype(np.float32))


def test_wrong_tensors_are_named(backbone):
    file = backbone / weights_name(backbone)
    tensors = load_file(file)
    names = sorted(tensors)[:: max(1, len(tensors) // 4)][:5]
    others = {key: value for key, value in tensors.items() if key not in names}
    listed = re.escape(", ".join(names))
    save_file(others, file)
    with pytest.raises(UserError, match=rf"lacks tensors \({len(names)}\): {listed}"):
        load_clip(backbone)
    save_file(others | {name: np.ones((3, 5), np.float32) for name in names}, file)
    listed = ".*".join(rf"{re.escape(name)} \(3, 5\), expected" for name in names)
    with pytest.raises(UserError, match=listed):
        load_clip(backbone)
    save_file(tensors | {"visual.other": np.ones(3, np.float32)}, file)
    with pytest.raises(UserError, match=r"no place for \(1\): visual\.other"):
        load_clip(backbone)


def test_a_truncated_file_is_refused_in_one_line(backbone):
    file = backbone / weights_name(backbone)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{file.name} is not complete") as error:
        load_clip(backbone)
    assert "\n" not in str(error.value)


def test_the_hashes_are_of_the_contents(backbone, kind, tmp_path):
    identity = identity_of(backbone)
    write_tiny_backbone(tmp_path / "other", kind, SEED + 1)
    other = identity_of(tmp_path / "other")
    assert load_clip(backbone).identity == identity
    assert other.sha256 != identity.sha256
    assert other.small_files_sha256 == identity.small_files_sha256


def test_the_config_decides_the_activation(tmp_path):
    write_tiny_backbone(tmp_path, "open_clip", SEED)
    pixels, _ = backbone_inputs(32)
    before = load_clip(tmp_path).encode_image(pixels)
    change = {"quick_gelu": True}
    edit_json(tmp_path / "open_clip_config.json", lambda c: c["model_cfg"].update(change))
    assert relative_error(load_clip(tmp_path).encode_image(pixels), before) > 1e-3


def set_part(part, **values):
    def change(content):
        model = content["model_cfg"]
        {"model": model, "preparation": content["preprocess_cfg"]}.get(
            part, model.get(f"{part}_cfg")
        ).update(values)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_part("vision", timm_model_name="eva02"), "vision_cfg sets timm_model_name to 'eva02'"),
        (set_part("vision", no_ln_pre=True), "vision_cfg sets no_ln_pre to True"),
        (set_part("vision", image_size=[32, 16]), r"\[32, 16\] is not the size of a square"),
        (set_part("vision", norm_kwargs={"bias": False}), r"norm_kwargs has \['bias'\]"),
        (set_part("vision", width=33), "a width of 33 cannot be split into 2"),
        (set_part("text", hf_model_name="roberta"), "text_cfg sets hf_model_name to 'roberta'"),
        (set_part("text", tokenizer_kwargs={"clean": "x"}), "text_cfg sets tokenizer_kwargs"),
        (set_part("text", vocab_size=600), "514 tokens.* 600"),
        (set_part("model", multimodal_cfg={}), "model_cfg sets multimodal_cfg to {}"),
        (set_part("model", embed_dim="wide"), "embed_dim"),
        (set_part("model", text_cfg=3), "it has no text_cfg"),
        (set_part("preparation", resize_mode="longest"), "resize_mode 'longest'"),
        (set_part("preparation", std=[1, 0, 1]), r"std \[1\. 0\. 1\.\]"),
        (set_part("preparation", mean="grey"), "does not describe a CLIP: ValueError"),
        (lambda content: content.clear(), "it has no model_cfg"),
    ],
)
def test_configs_that_would_be_computed_wrongly_are_refused(tmp_path, change, message):
    write_tiny_backbone(tmp_path, "open_clip", SEED)
    edit_json(tmp_path / "open_clip_config.json", change)
    with pytest.raises(UserError, match=message):
        load_clip(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_size": 224}, "image_size is 224, but vit_pe_core_tiny_patch16_384 has 384"),
        ({"timm_proj": "linear"}, "timm_pool and timm_proj must be 'map' and null"),
        ({"qk_norm": True}, "vision_cfg sets qk_norm to True"),
    ],
)
def test_other_towers_of_perception_encoder_are_refused(tmp_path, values, message):
    write_small_files(tmp_path, "pe_core")
    edit_json(tmp_path / "open_clip_config.json", set_part("vision", **values))
    with pytest.raises(UserError, match=message):
        load_clip(tmp_path)


def test_a_folder_with_two_forms_is_read_in_the_one_that_has_weights(tmp_path):
    """Checks timm's and LAION's repositories, which hold more than one form of a model."""
    write_tiny_backbone(tmp_path, "open_clip", SEED)
    weights = load_clip(tmp_path).identity.sha256
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16"}))
    (tmp_path / "model.safetensors").write_bytes(b"timm's image tower")
    assert load_clip(tmp_path).identity.sha256 == weights
    (tmp_path / "model.safetensors").unlink()
    write_tiny_clip(tmp_path)
    assert load_clip(tmp_path).identity.sha256 != weights
    (tmp_path / "model.safetensors").unlink()
    assert load_clip(tmp_path).identity.sha256 == weights


def test_what_needs_a_class_token_refuses_other_towers_by_name(tmp_path):
    write_tiny_clip(tmp_path / "clip")
    vision = load_clip(tmp_path / "clip").vision
    assert class_token_tower(vision, "this benchmark") is vision
    write_tiny_backbone(tmp_path / "siglip", "siglip")
    vision = load_clip(tmp_path / "siglip").vision
    with pytest.raises(UserError, match=r"this benchmark needs .* is a SigLIP ViT"):
        class_token_tower(vision, "this benchmark")


def test_rotary_positions_are_not_rounded_to_the_type_of_the_tokens():
    sizes = VisionConfig(width=64, num_layers=1, num_heads=1, mlp_width=64, image_size=384)
    attention = pe_core.RotaryAttention(sizes, rngs=nnx.Rngs(0))
    ones = np.ones((1, 1, 1 + 24 * 24, 64), np.float32)
    full, half = (
        np.asarray(run(type(attention)._rotated, attention, ones.astype(dtype)), np.float32)
        for dtype in (np.float32, ml_dtypes.bfloat16)
    )
    np.testing.assert_allclose(half, full, atol=0.02)
