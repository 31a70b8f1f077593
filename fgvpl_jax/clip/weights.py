"""Reads a checkpoint's tensors from any of its formats, under Hugging Face's PyTorch names."""

import hashlib
import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np

from fgvpl_jax.errors import UserError

Tensors = dict[str, np.ndarray]

SAFETENSORS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
MSGPACK = "flax_model.msgpack"
PYTORCH = "pytorch_model.bin"


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights, of the first format present.

    Raises:
        UserError: If no format is present or a shard is missing.
    """
    if (directory / SAFETENSORS).is_file():
        return [directory / SAFETENSORS]
    if (directory / SHARD_INDEX).is_file():
        shards = [directory / name for name in sorted(set(shard_of_each(directory).values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise UserError(f"{directory} lacks the weight shards {missing}: download them again")
        return shards
    for name in (MSGPACK, PYTORCH):
        if (directory / name).is_file():
            return [directory / name]
    raise UserError(
        f"{directory} holds no weights: none of {SAFETENSORS}, {SHARD_INDEX}, {MSGPACK}, {PYTORCH}"
    )


def shard_of_each(directory: Path) -> dict[str, str]:
    """Tensor name to shard file name, from the shard index."""
    file = directory / SHARD_INDEX
    try:
        weight_map = json.loads(file.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a shard index: download it again") from error
    for name in weight_map.values():
        if Path(name).name != name:
            raise UserError(f"{file} names the shard {name!r}, which is not in its own folder")
    return weight_map


def read_tensors(files: list[Path]) -> Tensors:
    """All tensors as float32, by their PyTorch names and in PyTorch's layout.

    Args:
        files: From `weight_files`.
    Raises:
        UserError: If a file is damaged, holds a tensor twice or one that is not finite.
    """
    tensors: Tensors = {}
    for file in files:
        read = READERS[file.suffix]
        try:
            new = read(file)
        except UserError:
            raise
        except Exception as error:  # each reader has its own errors for a damaged file
            reason = " ".join(str(error).split())
            raise UserError(f"{file} is damaged ({reason}): download it again") from error
        twice = tensors.keys() & new.keys()
        if twice:
            raise UserError(f"{file} repeats tensors of another shard: {sorted(twice)[:3]}")
        tensors |= new
    bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"{files[0].parent}: {len(bad)} tensors hold NaN or infinity: {bad[:3]}")
    return tensors


def content_hash(files: list[Path]) -> str:
    """SHA-256 over the files' contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _to_float32(name: str, value: np.ndarray) -> np.ndarray:
    if np.issubdtype(value.dtype, np.floating) or value.dtype == ml_dtypes.bfloat16:
        return value.astype(np.float32)
    if np.issubdtype(value.dtype, np.integer):  # the buffers; anything else is refused by name
        return value
    raise UserError(f"tensor {name} has type {value.dtype}, which is no weight")


def _read_safetensors(file: Path) -> Tensors:
    from safetensors.numpy import load_file

    return {name: _to_float32(name, value) for name, value in load_file(file).items()}


def _read_pytorch(file: Path) -> Tensors:
    if find_spec("torch") is None:
        raise UserError(
            f"{file} is a PyTorch pickle: pip install torch to read it, or use the same "
            f"checkpoint's {SAFETENSORS} or {MSGPACK}"
        )
    import torch

    state = torch.load(file, map_location="cpu", weights_only=True)
    return {
        name: _to_float32(name, (v.float() if v.is_floating_point() else v).numpy())
        for name, v in state.items()
    }


def _read_msgpack(file: Path) -> Tensors:
    from flax.serialization import msgpack_restore

    tensors: Tensors = {}

    def walk(tree: dict, path: tuple[str, ...]) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*path, key))
            else:
                name, tensor = _from_flax((*path, key), np.asarray(value))
                tensors[name] = _to_float32(name, tensor)

    walk(msgpack_restore(file.read_bytes()), ())
    return tensors


def _from_flax(path: tuple[str, ...], value: np.ndarray) -> tuple[str, np.ndarray]:
    """Flax's leaf names and kernels [in, out] or [h, w, in, out] to PyTorch's."""
    *modules, leaf = path
    if leaf == "kernel":
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join((*modules, leaf)), value


READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": _read_safetensors,
    ".msgpack": _read_msgpack,
    ".bin": _read_pytorch,
}

# Index buffers that older files carry beside the weights.
KNOWN_BUFFERS = re.compile(r"(vision_model|text_model)\.embeddings\.position_ids")
