"""Recognises files that a failed download left instead of a checkpoint's file, by their content."""

import json
from pathlib import Path

from fgvpl_jax.errors import UserError

AGAIN = "download it again"
POINTER = "version https://git-lfs.github.com/spec/"
# First bytes of files that are no checkpoint's file, and what they are.
ARCHIVES = {
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"\xfd7zXZ": "an xz archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\x28\xb5\x2f\xfd": "a zstd archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
}
# PyTorch's files begin with these, so that only files of other formats may not.
PYTORCH = {
    b"PK\x03\x04": "a zip archive, perhaps a file of PyTorch: unpack it, or name it "
    "pytorch_model.bin",
    b"\x80": "a Python pickle, as of PyTorch: name it pytorch_model.bin",
}
# Suffixes by which download programs name what they have not finished.
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
LONGEST_QUOTE = 80
LONGEST_HEADER = 100_000_000  # the limit of safetensors itself


def check_small_file(file: Path) -> None:
    """Refuses a JSON or text file whose content is not that of a checkpoint.

    Raises:
        UserError: If it is empty, a git-lfs pointer, a web page or an archive; says what to do.
    """
    found = _kind_of_any(file, _head(file))
    if found is not None:
        raise UserError(f"{file} is {found}")


def check_weight_file(file: Path) -> None:
    """Refuses a file of weights that is of another kind, or not complete, as far as is quick.

    Raises:
        UserError: If it is; says what it is and what to do.
    """
    head = _head(file)
    is_safetensors = file.suffix == ".safetensors"
    if is_safetensors and _header_length(head) is not None:
        found = _missing_part(file, head)
    else:
        found = _kind_of_any(file, head) or _text(head)
        if found is None and is_safetensors:
            found = next((kind for start, kind in PYTORCH.items() if head.startswith(start)), None)
    if found is not None:
        raise UserError(f"{file} is {found}")


def unfinished_downloads(directory: Path) -> str:
    """Returns a remark on unfinished downloads and broken links in a folder; empty without any."""
    names = sorted(
        file.name
        for file in directory.iterdir()
        if file.suffix in UNFINISHED or (file.is_symlink() and not file.exists())
    )
    return f" (not downloaded to the end: {', '.join(names[:3])})" if names else ""


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(1024)


def _kind_of_any(file: Path, head: bytes) -> str | None:
    if not head:
        return f"empty: {AGAIN}"
    if not head.strip(b"\0"):
        return f"filled with zeros, as a download that was not finished: {AGAIN}"
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if text.startswith(POINTER):
        return (
            "a git-lfs pointer, which stands for the real file: run `git lfs install` and "
            f"`git lfs pull` in {file.parent}, or {AGAIN}"
        )
    if text.startswith("/annex/objects/"):
        return f"a git-annex pointer, which stands for the real file: run `git annex get {file}`"
    if text.lower().startswith(("<!doctype", "<html", "<?xml", "<error")):
        return (
            f"a web page ({_quote(text)}), such as a server's error or a login: {AGAIN}, with the "
            "address of the file itself"
        )
    return next((kind for start, kind in ARCHIVES.items() if head.startswith(start)), None)


def _text(head: bytes) -> str | None:
    """Describes a head that is text, which no file of weights begins with."""
    try:
        text = head.decode("ascii").strip()
    except UnicodeDecodeError:
        return None
    if not all(character.isprintable() or character.isspace() for character in text):
        return None
    kind = "a JSON text" if text.startswith(("{", "[")) else "a text"
    return f"{kind} ({_quote(text)}), perhaps a server's error: {AGAIN}"


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_QUOTE else f"{line[:LONGEST_QUOTE]}…"


def _header_length(head: bytes) -> int | None:
    """Returns the length of the header of safetensors; None if the file has no such header."""
    length = int.from_bytes(head[:8], "little")
    is_header = len(head) > 8 and head[8:9] == b"{" and length <= LONGEST_HEADER
    return length if is_header else None


def _missing_part(file: Path, head: bytes) -> str | None:
    """Compares the size of a safetensors file with the size that its header says."""
    size, start = file.stat().st_size, 8 + (_header_length(head) or 0)
    expected = start
    if size > start:
        with file.open("rb") as stream:
            header = stream.read(start)[8:]
        try:
            tensors = json.loads(header)
            ends = [t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"]
            expected = start + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None  # safetensors says what is wrong with its header
    if size >= expected:
        return None
    share = f"{size:,} of {'at least ' if expected == start else ''}{expected:,} bytes"
    return f"not complete, with {share}: finish its download, or {AGAIN}"
