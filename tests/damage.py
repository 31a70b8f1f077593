"""Damages the bytes of files at random places."""

from pathlib import Path

import numpy as np


def flip_bit(content: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(content)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    return bytes(changed)


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def non_empty_files(folder: Path) -> list[Path]:
    """Returns the sorted files in a folder and its subfolders that hold at least one byte."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
