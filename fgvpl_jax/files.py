"""Reads and writes JSON and array files; each is written whole or not at all."""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fgvpl_jax.errors import UserError


def expand_user(path: str | Path) -> Path:
    """Returns a path with the home folder instead of a leading `~` or `~name`.

    Raises:
        UserError: If there is no such user, or this user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise UserError(
            f"{path} cannot be found, because {user} has no home folder here: write the whole path"
        ) from error


def user_cache_folder(name: str) -> Path:
    """Returns a folder of this package's cache, by the XDG base directory specification.

    Raises:
        UserError: If this user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expand_user(base) / "fgvpl_jax" / name


@contextmanager
def written_whole(file: Path) -> Iterator[BinaryIO]:
    """Opens a stream whose content replaces the file at the end of the block, synced to disk.

    If the block ends with an error, or the disk is full, the file stays as it was.

    Args:
        file: File to write; its folder must exist.
    """
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)  # exists only after a failure


def parse_json(text: str) -> Any:
    """Parses JSON like `json.loads`, but raises no other error than `ValueError`.

    Raises:
        ValueError: If the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON file of the workdir.

    Raises:
        UserError: If the file does not hold a JSON object.
    """
    try:
        return dict(parse_json(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it or start a new run") from error


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object, whole or not at all; its folder must exist."""
    # A file name may hold bytes that are not text; Python's escape of such a byte is valid JSON.
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with written_whole(file) as stream:
        stream.write(text.encode("utf-8", errors="backslashreplace"))


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file; the format holds a checksum of every array.

    Raises:
        UserError: If the file is missing or differs from what was written.
    """
    try:
        with np.load(file, allow_pickle=False) as saved:
            # `np.savez` compresses nothing; compressed arrays could unpack to any size.
            if any(member.compress_type != zipfile.ZIP_STORED for member in saved.zip.infolist()):
                raise ValueError("it is compressed")
            arrays = dict(saved)
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds a member that is no array")
            return arrays
    except FileNotFoundError as error:
        raise UserError(
            f"{file} is missing: run the same training command, which writes it again"
        ) from error
    except Exception as error:  # numpy, zipfile and zlib raise a dozen types for damage
        raise UserError(
            f"{file} is damaged ({error}): run the same training command, which writes it again"
        ) from error


def write_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Writes an uncompressed .npz file, whole or not at all."""
    with written_whole(file) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # its stub takes the arrays for a flag
