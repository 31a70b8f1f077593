"""Reads a checkpoint's tensors from any of its formats, under their PyTorch names."""

import hashlib
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np

from fgvpl_jax.clip.downloads import (
    check_small_file,
    check_weight_file,
    unfinished_downloads,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

Tensors = dict[str, np.ndarray]

SAFETENSORS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
MSGPACK = "flax_model.msgpack"
PYTORCH = "pytorch_model.bin"
SUFFIX = ".safetensors"
# The file that each format of transformers begins with, in order of preference.
TRANSFORMERS_FORMATS = (SAFETENSORS, SHARD_INDEX, MSGPACK, PYTORCH)


def weight_files(directory: Path, formats: tuple[str, ...] = TRANSFORMERS_FORMATS) -> list[Path]:
    """Returns the files that hold the weights, in the first format present.

    Args:
        directory: Folder of the checkpoint.
        formats: Name of the first file of each format, in order of preference.
    Raises:
        UserError: If no format is present or a shard is missing.
    """
    name = next((name for name in formats if (directory / name).is_file()), None)
    if name == SHARD_INDEX:
        shards = [directory / name for name in sorted(set(shard_of_each(directory).values()))]
        # `os.path`, because pathlib raises an error for a name that is too long.
        missing = [shard.name for shard in shards if not os.path.isfile(shard)]
        if missing:
            raise UserError(
                f"{directory} lacks the weight shards {missing}{unfinished_downloads(directory)}: "
                "download them again"
            )
        return shards
    if name is None:
        raise UserError(
            f"{directory} holds no weights{unfinished_downloads(directory)}: it must have "
            f"{', '.join(formats[:-1])} or {formats[-1]}"
        )
    return [directory / name]


def shard_of_each(directory: Path) -> dict[str, str]:
    """Returns each tensor's shard file by tensor name, from the shard index."""
    file = directory / SHARD_INDEX
    check_small_file(file)
    try:
        weight_map = dict(parse_json(file.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a shard index: download it again") from error
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(SUFFIX):
            raise UserError(
                f"{file} names the shard {name!r}, which is no {SUFFIX} file in the same folder: "
                "download it again"
            )
    return weight_map


def read_tensors(files: list[Path]) -> Tensors:
    """Returns all tensors as float32, by their PyTorch names and in PyTorch's layout.

    Args:
        files: Weight files from `weight_files`.
    Raises:
        UserError: If a file is damaged or repeats a tensor, or a tensor is not floating point, not
            finite, or a matrix of zeros alone. Known buffers are skipped.
    """
    tensors: Tensors = {}
    for file in files:
        check_weight_file(file)
        read = READERS[file.suffix]
        try:
            new = read(file)
        except UserError:
            raise
        except Exception as error:  # each reader raises different errors for a damaged file
            reason = " ".join(str(error).split())
            raise UserError(f"{file} is damaged ({reason}): download it again") from error
        new = {name: value for name, value in new.items() if not KNOWN_BUFFERS.fullmatch(name)}
        twice = tensors.keys() & new.keys()
        if twice:
            raise UserError(f"{file} repeats tensors of another shard: {sorted(twice)[:3]}")
        odd = [f"{name} ({value.dtype})" for name, value in new.items() if not _is_float(value)]
        if odd:
            raise UserError(f"{file}: {len(odd)} tensors are not floating point: {odd[:3]}")
        tensors |= {name: value.astype(np.float32) for name, value in new.items()}
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"{files[0].parent}: {len(bad)} tensors hold NaN or infinity: {bad[:3]}")
    empty = [name for name, value in tensors.items() if value.ndim > 1 and not value.any()]
    if empty:
        raise UserError(
            f"{files[0].parent}: {len(empty)} matrices are filled with zeros, as by an unfinished "
            f"download: {empty[:3]}: download the weights again"
        )
    return tensors


def content_hash(files: list[Path]) -> str:
    """Returns the SHA-256 of the files' contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _is_float(value: np.ndarray) -> bool:
    return np.issubdtype(value.dtype, np.floating) or value.dtype == ml_dtypes.bfloat16


def _read_safetensors(file: Path) -> Tensors:
    from safetensors.numpy import load_file

    return load_file(file)


def _read_pytorch(file: Path) -> Tensors:
    if find_spec("torch") is None:
        raise UserError(
            f"{file} is a PyTorch pickle: pip install torch to read it, or use the same "
            "checkpoint's .safetensors or .msgpack file"
        )
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True)
    # NumPy cannot represent PyTorch's bfloat16.
    return {n: (v.float() if v.is_floating_point() else v).numpy() for n, v in state.items()}


def _read_msgpack(file: Path) -> Tensors:
    from flax.serialization import msgpack_restore

    tensors: Tensors = {}

    def walk(tree: dict, path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
            else:
                name, tensor = _from_flax((*path, key), np.asarray(value))
                tensors[name] = tensor

    walk(msgpack_restore(file.read_bytes()), ())
    return tensors


def _from_flax(path: tuple[str, ...], value: np.ndarray) -> tuple[str, np.ndarray]:
    """Converts Flax's leaf names and kernels [in, out] or [h, w, in, out] to PyTorch's."""
    *modules, leaf = path
    if leaf == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join((*modules, leaf)), value


READERS: dict[str, Callable[[Path], Tensors]] = {
    SUFFIX: _read_safetensors,
    ".msgpack": _read_msgpack,
    ".bin": _read_pytorch,
}

# Integers that files contain in addition to the weights: positions, and the number of batches that
# a BatchNorm has seen.
KNOWN_BUFFERS = re.compile(
    r"(vision_model|text_model)\.embeddings\.position_ids|visual\..*\.num_batches_tracked"
)
