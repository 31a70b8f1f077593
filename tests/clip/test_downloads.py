"""A file that a failed download left is named, with its path and what to do."""

import gzip
import pickle

import numpy as np
import pytest

from fgvpl_jax import load_clip
from fgvpl_jax.errors import UserError
from tests.clip.checkpoints import WEIGHTS

POINTER = (
    f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 28000\n".encode()
)
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
FAILURES = {
    "pointer": (POINTER, "a git-lfs pointer, .* `git lfs pull` in "),
    "page": (PAGE, "a web page .*Sign in"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "AccessDenied"),
    "empty": (b"", "empty: download it again"),
    "zeros": (bytes(5000), "filled with zeros"),
    "gzip": (gzip.compress(b"weights" * 100), "a gzip archive: unpack it"),
}
WEIGHT_FAILURES = {
    "json": (b'{"error": "Repository not found"}', "a JSON text .*Repository not found"),
    "text": (b"Entry not found", r"a text \(Entry not found\)"),
}


@pytest.mark.parametrize("name", [WEIGHTS, "pytorch_model.bin", "flax_model.msgpack"])
@pytest.mark.parametrize("failure", [*FAILURES, *WEIGHT_FAILURES])
def test_a_failed_download_of_weights_is_named(checkpoint, name, failure):
    content, message = (FAILURES | WEIGHT_FAILURES)[failure]
    (checkpoint / WEIGHTS).unlink()
    (checkpoint / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is .*{message}"):
        load_clip(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_download_of_a_small_file_is_named(checkpoint, name, failure):
    content, message = FAILURES[failure]
    (checkpoint / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} .*{message}"):
        load_clip(checkpoint)


def test_a_pickle_with_the_name_of_safetensors_is_named(checkpoint):
    (checkpoint / WEIGHTS).write_bytes(pickle.dumps({"w": np.ones(3)}))
    with pytest.raises(UserError, match=r"a Python pickle, .* name it pytorch_model\.bin"):
        load_clip(checkpoint)


@pytest.mark.parametrize("share", [0.999, 0.5, 0.001])
def test_a_truncated_file_says_how_much_is_missing(checkpoint, share):
    content = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"is not complete, with [\d,]+ of (at least )?[\d,]+ b"):
        load_clip(checkpoint)


def test_an_unfinished_download_is_named(checkpoint):
    (checkpoint / WEIGHTS).rename(checkpoint / f"{WEIGHTS}.incomplete")
    with pytest.raises(UserError, match=r"not downloaded to the end: model.safetensors.incomplete"):
        load_clip(checkpoint)
    (checkpoint / WEIGHTS).symlink_to("/no/such/blob")
    with pytest.raises(UserError, match=r"to the end: model.safetensors, model.safetensors.inc"):
        load_clip(checkpoint)


def test_a_file_of_full_size_that_ends_with_zeros_is_named(checkpoint):
    content = (checkpoint / WEIGHTS).read_bytes()
    kept = len(content) // 2
    (checkpoint / WEIGHTS).write_bytes(content[:kept] + bytes(len(content) - kept))
    with pytest.raises(UserError, match="matrices are filled with zeros, as by an unfinished"):
        load_clip(checkpoint)
