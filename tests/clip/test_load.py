"""Every file format gives the same model; everything wrong with a checkpoint is named."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.serialization import msgpack_serialize
from PIL import Image
from safetensors.numpy import load_file, save_file

from fgvpl_jax import load_clip
from fgvpl_jax.clip import TextTower, VisionTower
from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen
from tests.tiny_clip import random_tensors, tiny_config, write_tiny_clip

WEIGHTS = "model.safetensors"


@pytest.fixture
def checkpoint(tiny_clip_dir, tmp_path):
    directory = tmp_path / "clip"
    shutil.copytree(tiny_clip_dir, directory)
    return directory


def parameters(clip):
    return jax.tree.leaves((nnx.state(clip.vision), nnx.state(clip.text)))


def same(a, b):
    pairs = zip(parameters(a), parameters(b), strict=True)
    return a.logit_scale == b.logit_scale and all(np.array_equal(x, y) for x, y in pairs)


def replace_weights(directory):
    """The tensors; the file is gone, another format is to follow."""
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    return tensors


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_everything_is_frozen_and_float32(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    for tower in (clip.vision, clip.text):
        _, frozen, rest = nnx.split(tower, Frozen, ...)
        assert not jax.tree.leaves(rest)
        assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {np.dtype("float32")}
    assert clip.logit_scale == pytest.approx(np.exp(2.3), rel=1e-6)
    assert clip.identity.revision is None
    assert len(clip.identity.sha256) == 64


def test_shards(checkpoint, tiny_clip_dir):
    tensors = replace_weights(checkpoint)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[:20], names[20:])):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, checkpoint / file)
        weight_map |= dict.fromkeys(part, file)
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))
    (checkpoint / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        load_clip(str(checkpoint))
    edit_json(index, lambda c: c["weight_map"].update(x="../other.safetensors"))
    with pytest.raises(UserError, match=r"\.\./other"):
        load_clip(str(checkpoint))


def to_flax_layout(tensors):
    """As Hugging Face's Flax CLIP saved itself: kernels transposed, other leaf names."""
    tree = {}
    for name, value in tensors.items():
        *modules, leaf = name.split(".")
        if leaf == "weight":
            if "norm" in modules[-1] or "layrnorm" in modules[-1]:
                leaf = "scale"
            elif modules[-1] in ("token_embedding", "position_embedding"):
                leaf = "embedding"
            else:
                leaf = "kernel"
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        node = tree
        for module in modules:
            node = node.setdefault(module, {})
        node[leaf] = np.ascontiguousarray(value)
    return tree


def test_msgpack(checkpoint, tiny_clip_dir):
    tensors = replace_weights(checkpoint)
    (checkpoint / "flax_model.msgpack").write_bytes(msgpack_serialize(to_flax_layout(tensors)))
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


@pytest.mark.torch
def test_pytorch_bin(checkpoint, tiny_clip_dir):
    torch = pytest.importorskip("torch")
    tensors = replace_weights(checkpoint)
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save(state, checkpoint / "pytorch_model.bin")
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


@pytest.mark.torch
def test_a_pickle_that_would_run_code_is_refused(checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    replace_weights(checkpoint)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"x": Evil()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        load_clip(str(checkpoint))
    assert not (tmp_path / "ran").exists()


def test_pytorch_bin_without_torch_says_what_to_do(checkpoint, monkeypatch):
    replace_weights(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"x")
    monkeypatch.setattr(
        "fgvpl_jax.clip.weights.find_spec", lambda name: None if name == "torch" else find_spec
    )
    with pytest.raises(UserError, match="pip install torch"):
        load_clip(str(checkpoint))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(checkpoint, tiny_clip_dir, dtype):
    tensors = replace_weights(checkpoint)
    save_file({n: v.astype(dtype) for n, v in tensors.items()}, checkpoint / WEIGHTS)
    ours, full = load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir))
    for a, b in zip(parameters(ours), parameters(full), strict=True):
        assert a.dtype == np.float32
        np.testing.assert_array_equal(a, np.asarray(b).astype(dtype).astype(np.float32))


def test_position_ids_are_known_and_ignored(checkpoint, tiny_clip_dir):
    tensors = load_file(checkpoint / WEIGHTS)
    for tower, length in (("vision_model", 17), ("text_model", 77)):
        tensors[f"{tower}.embeddings.position_ids"] = np.arange(length)[None]
    save_file(tensors, checkpoint / WEIGHTS)
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


def test_a_flat_config_of_openais_age(checkpoint, tiny_clip_dir):
    """`*_config_dict` instead of `*_config`, and what equals the default left out."""

    def age(content):
        for tower in ("vision", "text"):
            sizes = content.pop(f"{tower}_config")
            del sizes["hidden_act"], sizes["layer_norm_eps"]
            content[f"{tower}_config_dict"] = sizes

    edit_json(checkpoint / "config.json", age)
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


def drop(tensors):
    del tensors["vision_model.encoder.layers.1.mlp.fc1.bias"]


def add(tensors):
    tensors["vision_model.head.weight"] = np.zeros(3, np.float32)


def misshape(tensors):
    tensors["text_projection.weight"] = np.zeros((16, 25), np.float32)


def poison(tensors):
    tensors["visual_projection.weight"][0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"lacks tensors \(1\): vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias"),
        (add, r"no place for \(1\): vision_model\.head\.weight"),
        (misshape, r"text_projection\.weight \(16, 25\), wanted \(24, 16\)"),
        (poison, r"NaN or infinity: \['visual_projection\.weight'\]"),
    ],
)
def test_wrong_tensors_are_named(checkpoint, change, message):
    tensors = load_file(checkpoint / WEIGHTS)
    change(tensors)
    save_file(tensors, checkpoint / WEIGHTS)
    with pytest.raises(UserError, match=message):
        load_clip(str(checkpoint))


def truncate(directory):
    file = directory / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])


def truncated_msgpack(directory):
    data = msgpack_serialize(to_flax_layout(replace_weights(directory)))
    (directory / "flax_model.msgpack").write_bytes(data[:-50])


def other_vocabulary(directory):
    edit_json(directory / "config.json", lambda c: c["text_config"].update(vocab_size=600))


def other_end(directory):
    edit_json(directory / "config.json", lambda c: c["text_config"].update(eos_token_id=5))


def other_crop(directory):
    def change(content):
        content["crop_size"] = {"height": 40, "width": 40}
        content["size"] = {"shortest_edge": 40}

    edit_json(directory / "preprocessor_config.json", change)


def set_config(**values):
    return lambda directory: edit_json(directory / "config.json", lambda c: c.update(values))


def activation(directory):
    edit_json(directory / "config.json", lambda c: c["vision_config"].update(hidden_act="relu6"))


def remove(*names):
    return lambda directory: [(directory / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors is damaged"),
        (truncated_msgpack, r"flax_model\.msgpack is damaged"),
        (remove(WEIGHTS), "holds no weights"),
        (remove("config.json"), r"no config\.json"),
        (remove("vocab.json"), "no tokenizer"),
        (remove("preprocessor_config.json"), r"no preprocessor_config\.json"),
        (lambda d: (d / "config.json").write_text("{"), "not JSON"),
        (set_config(model_type="siglip"), "model_type 'siglip'"),
        (other_vocabulary, r"514 tokens.*600"),
        (other_end, r"ends texts with token 513.*5"),
        (other_crop, r"40 x 40.*image_size 32"),
        (activation, "hidden_act 'relu6'"),
    ],
)
def test_damaged_checkpoints_are_explained(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(UserError, match=message):
        load_clip(str(checkpoint))


@pytest.mark.parametrize("name", ["./none", "/none", "~/none/none", "a/b/c"])
def test_a_missing_directory_is_said_at_once(name):
    with pytest.raises(UserError, match="there is no directory"):
        load_clip(name)


def test_without_network_a_hub_id_fails_quickly(tmp_path):
    """Offline mode, and a name that cannot be resolved; each in a fresh process."""
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        started = time.monotonic()
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from fgvpl_jax import load_clip; load_clip('openai/clip-vit-base-patch16')",
            ],
            env=os.environ | {"HF_HOME": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
        assert "UserError: there is no directory openai/clip-vit-base-patch16" in done.stderr
        assert "check the name and the network" in done.stderr
        assert time.monotonic() - started < 60


def test_a_hub_copy_is_used_offline_with_its_revision(tiny_clip_dir, tmp_path, monkeypatch):
    """The hub's cache layout, as `snapshot_download` leaves it."""
    import huggingface_hub.constants as constants

    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny-clip"
    shutil.copytree(tiny_clip_dir, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    clip = load_clip("someone/tiny-clip")
    assert (clip.identity.name, clip.identity.revision) == ("someone/tiny-clip", revision)
    assert same(clip, load_clip(str(tiny_clip_dir)))


def test_one_format_is_fetched(tiny_clip_dir, tmp_path, monkeypatch):
    """Safetensors are asked for first; msgpack only where there are none."""
    asked = []

    def snapshot_download(hub_id, allow_patterns):
        asked.append(allow_patterns)
        place = tmp_path / "rev"
        if not place.exists():
            shutil.copytree(tiny_clip_dir, place)
            (place / WEIGHTS).unlink()
        if "flax_model.msgpack" in allow_patterns:
            tree = to_flax_layout(load_file(tiny_clip_dir / WEIGHTS))
            (place / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert same(load_clip("someone/flax-only"), load_clip(str(tiny_clip_dir)))
    assert ["model.safetensors" in a for a in asked] == [True, False]
    assert not any("pytorch_model.bin" in a for a in asked)


def test_the_hash_is_of_the_contents(checkpoint, tiny_clip_dir):
    first = load_clip(str(tiny_clip_dir)).identity.sha256
    assert load_clip(str(checkpoint)).identity.sha256 == first
    save_file(random_tensors(tiny_config(), seed=1), checkpoint / WEIGHTS)
    assert load_clip(str(checkpoint)).identity.sha256 != first


def test_texts_are_padded_and_never_cut(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    ids = clip.tokenize(["a", "bcd"])
    assert ids.shape == (2, 77)
    assert ids.dtype == np.int32
    assert ids[0, 0] == 512
    assert (ids[0, 2:] == 513).all()
    with pytest.raises(UserError, match=r"'a photo of a x+'.*tokens.*reads 77"):
        clip.tokenize(["fine", "a photo of a " + "x" * 80])


def test_what_follows_the_end_of_a_text_is_not_read(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    ids = clip.tokenize(["dog"])
    other = ids.copy()
    other[0, 10:] = 7
    np.testing.assert_allclose(clip.encode_text(ids), clip.encode_text(other), rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (200, 90), (90, 200), (20, 17), (500, 33), (33, 32)])
def test_preprocessing_is_pillows_resize_and_a_centre_crop(tiny_clip_dir, size):
    clip = load_clip(str(tiny_clip_dir))
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    scale = 32 / min(size)
    width, height = (32 if s == min(size) else int(s * scale) for s in size)
    resized = photo.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    ours = clip.resize_and_crop(photo)
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, expected)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    np.testing.assert_allclose(clip.preprocess(photo), (expected / 255 - mean) / std, atol=1e-5)


def test_images_of_another_size_are_refused(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    with pytest.raises(UserError, match=r"40 x 32.*32 x 32"):
        clip.encode_image(np.zeros((1, 40, 32, 3), np.float32))


def test_nothing_here_needs_torch(tiny_clip_dir):
    program = (
        "import sys; sys.modules['torch'] = None; sys.modules['torchvision'] = None\n"
        "from fgvpl_jax import load_clip; from PIL import Image\n"
        f"clip = load_clip({str(tiny_clip_dir)!r})\n"
        "clip.preprocess(Image.new('RGB', (50, 40))); clip.tokenize(['a'])"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, capture_output=True)


@pytest.mark.parametrize(
    ("vision", "text", "counts"),
    [
        # Parameters of transformers' CLIPVisionModelWithProjection and its text twin.
        ((768, 12, 12, 3072, 32, 512), (512, 12, 8, 2048), (87_849_216, 63_428_096)),
        ((768, 12, 12, 3072, 16, 512), (512, 12, 8, 2048), (86_192_640, 63_428_096)),
        ((1024, 24, 16, 4096, 14, 768), (768, 12, 12, 3072), (303_966_208, 123_650_304)),
    ],
    ids=["B/32", "B/16", "L/14"],
)
def test_parameter_counts_of_openais_models(vision, text, counts):
    width, layers, heads, mlp, patch, embed = vision
    vision_config = VisionConfig(width, layers, heads, mlp, patch_size=patch, embed_dim=embed)
    text_config = TextConfig(*text, embed_dim=embed)
    towers = (
        nnx.eval_shape(lambda: VisionTower(vision_config, rngs=nnx.Rngs(0))),
        nnx.eval_shape(lambda: TextTower(text_config, rngs=nnx.Rngs(0))),
    )
    assert tuple(sum(x.size for x in jax.tree.leaves(nnx.state(t))) for t in towers) == counts


def test_a_written_tiny_clip_has_the_overrides(tmp_path):
    write_tiny_clip(tmp_path, vision_config={"num_hidden_layers": 5})
    assert len(load_clip(str(tmp_path)).vision.layers) == 5
