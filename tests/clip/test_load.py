"""Loading: every file format results in the same model, and errors name the damage."""

import json
import os
from importlib.util import find_spec

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from fgvpl_jax import load_clip
from fgvpl_jax.clip import TextTower, VisionTower
from fgvpl_jax.clip.config import TextConfig, VisionConfig
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen
from tests.clip.checkpoints import (
    WEIGHTS,
    edit_json,
    parameters,
    same,
    take_weights,
    to_flax_layout,
)
from tests.tiny_clip import random_tensors, tiny_config, write_tiny_clip


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
    tensors = take_weights(checkpoint)
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
    edit_json(index, lambda c: c["weight_map"].update(x="x" * 300 + ".safetensors"))
    # No file system allows a name of this length.
    with pytest.raises(UserError, match="lacks the weight shards"):
        load_clip(str(checkpoint))
    edit_json(index, lambda c: c["weight_map"].update(x="../other.safetensors"))
    with pytest.raises(UserError, match=r"\.\./other"):
        load_clip(str(checkpoint))


@pytest.mark.parametrize("chunk", [None, 400])
def test_msgpack(checkpoint, tiny_clip_dir, chunk, monkeypatch):
    """Checks the chunks that Flax splits large arrays into: here above 400 bytes, not 1 GB."""
    if chunk:
        monkeypatch.setattr("flax.serialization.MAX_CHUNK_SIZE", chunk)
    tree = to_flax_layout(take_weights(checkpoint))
    (checkpoint / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


@pytest.mark.torch
def test_pytorch_bin(checkpoint, tiny_clip_dir):
    torch = pytest.importorskip("torch")
    tensors = take_weights(checkpoint)
    state = {name: torch.tensor(value) for name, value in tensors.items()}
    torch.save(state, checkpoint / "pytorch_model.bin")
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


@pytest.mark.torch
def test_a_pickle_that_would_run_code_is_refused(checkpoint, tmp_path):
    torch = pytest.importorskip("torch")
    take_weights(checkpoint)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"x": Evil()}, checkpoint / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin"):
        load_clip(str(checkpoint))
    assert not (tmp_path / "ran").exists()


def test_pytorch_bin_without_torch_says_what_to_do(checkpoint, monkeypatch):
    take_weights(checkpoint)
    (checkpoint / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    monkeypatch.setattr(
        "fgvpl_jax.clip.weights.find_spec", lambda name: None if name == "torch" else find_spec
    )
    with pytest.raises(UserError, match="pip install torch"):
        load_clip(str(checkpoint))


def save_safetensors(directory, tensors):
    save_file(tensors, directory / WEIGHTS)


def save_msgpack(directory, tensors):
    (directory / "flax_model.msgpack").write_bytes(msgpack_serialize(to_flax_layout(tensors)))


def save_bin(directory, tensors):
    torch = pytest.importorskip("torch")
    kind = torch.float16 if tensors["logit_scale"].dtype == np.float16 else torch.bfloat16
    state = {n: torch.tensor(v.astype(np.float32)).to(kind) for n, v in tensors.items()}
    torch.save(state, directory / "pytorch_model.bin")


@pytest.mark.parametrize(
    "save", [save_safetensors, save_msgpack, pytest.param(save_bin, marks=pytest.mark.torch)]
)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_files(checkpoint, tiny_clip_dir, dtype, save):
    tensors = take_weights(checkpoint)
    save(checkpoint, {n: v.astype(dtype) for n, v in tensors.items()})
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


def test_a_config_of_an_early_checkpoint(checkpoint, tiny_clip_dir):
    """Checks keys `*_config_dict` instead of `*_config`, without values that equal the default."""

    def age(content):
        for tower in ("vision", "text"):
            sizes = content.pop(f"{tower}_config")
            del sizes["hidden_act"], sizes["layer_norm_eps"]
            content[f"{tower}_config_dict"] = sizes

    edit_json(checkpoint / "config.json", age)
    assert same(load_clip(str(checkpoint)), load_clip(str(tiny_clip_dir)))


def test_a_square_may_be_written_as_two_sides(checkpoint, tiny_clip_dir):
    change = {"image_size": [32, 32], "patch_size": [8, 8]}
    edit_json(checkpoint / "config.json", lambda c: c["vision_config"].update(change))
    assert same(load_clip(checkpoint), load_clip(tiny_clip_dir))


def drop(tensors):
    del tensors["vision_model.encoder.layers.1.mlp.fc1.bias"]


def add(tensors):
    tensors["vision_model.head.weight"] = np.zeros(3, np.float32)


def misshape(tensors):
    tensors["text_projection.weight"] = np.ones((16, 25), np.float32)


def widen(tensors):
    tensors["text_projection.weight"] = np.zeros((16, 24), np.int64)


def other_layout(tensors):
    """Gives a tensor the right size in a wrong layout, which a transposition would make fit."""
    name = "vision_model.embeddings.patch_embedding.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].transpose(0, 2, 3, 1))


def poison(tensors):
    tensors["visual_projection.weight"][0, 0] = np.nan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"lacks tensors \(1\): vision_model\.encoder\.layers\.1\.mlp\.fc1\.bias"),
        (add, r"no place for \(1\): vision_model\.head\.weight"),
        (misshape, r"text_projection\.weight \(16, 25\), expected \(16, 24\)"),
        (other_layout, r"patch_embedding\.weight \(32, 8, 8, 3\), expected \(32, 3, 8, 8\)"),
        (widen, r"1 tensors are not floating point: \['text_projection\.weight \(int64\)'\]"),
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
    data = msgpack_serialize(to_flax_layout(take_weights(directory)))
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


def of_vision(**values):
    return lambda d: edit_json(d / "config.json", lambda c: c["vision_config"].update(values))


def write(name, text):
    return lambda directory: (directory / name).write_text(text)


def bad_std(directory):
    edit_json(directory / "preprocessor_config.json", lambda c: c.update(image_std=[1, 0, 1]))


def huge_resize(directory):
    change = {"size": {"shortest_edge": 2049}}
    edit_json(directory / "preprocessor_config.json", lambda c: c.update(change))


def bad_index(directory):
    take_weights(directory)
    write("model.safetensors.index.json", '{"weight_map": {"x": 3}}')(directory)


def remove(*names):
    return lambda directory: [(directory / name).unlink() for name in names]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors is not complete"),
        (truncated_msgpack, r"flax_model\.msgpack is damaged"),
        (remove(WEIGHTS), "holds no weights"),
        (remove("config.json"), r"no config\.json"),
        (remove("vocab.json"), "no tokenizer"),
        (remove("preprocessor_config.json"), r"no preprocessor_config\.json"),
        (write("config.json", "{"), "not JSON"),
        (set_config(model_type="blip"), "model_type 'blip'"),
        (other_vocabulary, r"514 tokens.*600"),
        (other_end, r"ends texts with token 513.*5"),
        (other_crop, r"40 x 40.*image_size 32"),
        (activation, "hidden_act 'relu6'"),
        (of_vision(hidden_size="wide"), r"config\.json does not describe a CLIP.*hidden_size"),
        (
            of_vision(image_size=[32, 64]),
            r"config\.json does not describe a CLIP.*image_size.*\[32, 64\]",
        ),
        (of_vision(patch_size=64), "patches of 64 do not fit images of 32"),
        (of_vision(num_channels=4), "4 image channels"),
        (of_vision(num_hidden_layers=513), "num_layers is 513: it must be at most 512"),
        (of_vision(image_size=2049), "image_size is 2049: it must be at most 2048"),
        (huge_resize, r"size has shortest_edge 2049, not 1 to 2048"),
        (of_vision(layer_norm_eps=0.0), "layer_norm_eps is 0.0"),
        (set_config(text_config=[1]), r"config\.json does not describe a CLIP"),
        (write("vocab.json", "{"), "tokenizer files in .* are damaged"),
        (write("tokenizer.json", "{"), "tokenizer files in .* are damaged"),
        (write("preprocessor_config.json", "[]"), r"preprocessor_config\.json cannot be used"),
        (bad_std, r"std \[1\. 0\. 1\.\]"),
        (bad_index, "names the shard 3"),
    ],
)
def test_damaged_checkpoints_are_explained(checkpoint, damage, message):
    damage(checkpoint)
    with pytest.raises(UserError, match=message):
        load_clip(str(checkpoint))


def test_the_hash_is_of_the_contents(checkpoint, tiny_clip_dir):
    first = load_clip(str(tiny_clip_dir)).identity.sha256
    assert load_clip(str(checkpoint)).identity.sha256 == first
    save_file(random_tensors(tiny_config(), seed=1), checkpoint / WEIGHTS)
    assert load_clip(str(checkpoint)).identity.sha256 != first


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "preprocessor_config.json"])
def test_small_files_have_a_separate_hash(checkpoint, tiny_clip_dir, name):
    first = load_clip(str(tiny_clip_dir)).identity
    assert load_clip(str(checkpoint)).identity.small_files_sha256 == first.small_files_sha256
    (checkpoint / name).write_text((checkpoint / name).read_text() + " ")
    other = load_clip(str(checkpoint)).identity
    assert other.sha256 == first.sha256
    assert other.small_files_sha256 != first.small_files_sha256


@pytest.mark.parametrize(
    ("vision", "text", "counts"),
    [
        # Parameters of transformers' CLIPVisionModelWithProjection and CLIPTextModelWithProjection.
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
