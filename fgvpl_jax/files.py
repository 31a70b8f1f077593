"""Reading and writing files: JSON and arrays, each written whole or not at all."""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fgvpl_jax.errors import UserError


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """Opens what takes the file's place at the end of the block, its bytes on the disk by then.

    If the block is left by an error, or the disk is full, the file is as before.

    Args:
        file: New or not; its folder is there.
    """
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)  # there only after a failure


def parse_json(text: str) -> Any:
    """As `json.loads`, whose only error this is.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file of the workdir.

    Raises:
        UserError: If it is no longer a JSON object.
    """
    try:
        return dict(parse_json(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it or start a new run") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object whole or not at all; its folder must exist."""
    # A file name may hold bytes that are not text: Python's escape of them is JSON's too.
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with written_whole(file) as stream:
        stream.write(text.encode("utf-8", errors="backslashreplace"))


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads an .npz whole; its format holds a checksum of every array.

    Raises:
        UserError: If it is not there or not as it was written.
    """
    try:
        with np.load(file, allow_pickle=False) as saved:
            # `np.savez` compresses nothing; what is compressed may unpack to any size.
            if any(member.compress_type != zipfile.ZIP_STORED for member in saved.zip.infolist()):
                raise ValueError("it is compressed")
            arrays = dict(saved)
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds what is no array")
            return arrays
    except FileNotFoundError as error:
        raise UserError(
            f"{file} is missing: train again with the same config and workdir"
        ) from error
    except Exception as error:  # numpy, zipfile and zlib have a dozen kinds for damage
        raise UserError(
            f"{file} is damaged ({error}): train again with the same config and workdir"
        ) from error


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed .npz whole or not at all."""
    with written_whole(file) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # its stub takes a flag for one
