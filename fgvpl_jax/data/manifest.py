"""Your own photos from a list: CSV or JSON lines with path, label and, optionally, split."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fgvpl_jax.data.folder import SPLIT_FOLDERS
from fgvpl_jax.data.splits import (
    Dataset,
    check_present,
    class_name,
    key_below,
    make_split,
    one_spelling,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

MANIFEST_SUFFIXES = (".csv", ".jsonl")


def load_manifest(manifest: str) -> Dataset:
    """Loads the photos that a list names.

    Args:
        manifest: A .csv file whose first line names the columns, or a .jsonl file with one object
            per line. The columns are `path` (relative to the file's folder), `label` and,
            optionally, `split` ("train", "val" or "test"; a photo without one is for training).
    Raises:
        UserError: If the file or a photo is missing, a line is incomplete, a path leaves the
            folder or is in two splits, or a split has a class that the training split lacks.
    """
    file = Path(manifest).expanduser()
    if file.suffix.lower() not in MANIFEST_SUFFIXES:
        raise UserError(f"{manifest} is not a list of photos: its name must end in .csv or .jsonl")
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    seen: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for number, row in _rows(file):
        where = f"{file}, line {number}"
        path, label, split = (row.get(name) for name in ("path", "label", "split"))
        role = SPLIT_FOLDERS.get(str(split or "train").lower())
        if not path or label in (None, "") or role is None:
            raise UserError(
                f"{where} needs a path, a label and, optionally, a split (train, val or test), but "
                f"has {row}"
            )
        key = key_below(str(path), where)
        if key in seen:
            raise UserError(f"{where}: {path!r} occurs twice, in {seen[key]} and in {role}")
        seen[key] = role
        # In a hand-written list, "red_fox" and "red fox" may be the same class.
        rows[role].append((key, one_spelling(class_name(str(label)), spellings, where)))
    names = sorted({name for _, name in rows["train"]})
    if len(names) < 2:
        raise UserError(
            f"{file} has {len(names)} class(es) for training: use at least two different labels"
        )
    for role, members in rows.items():
        unknown = sorted({name for _, name in members} - set(names))
        if unknown:
            raise UserError(f"{file}: {role} has classes that train lacks: {unknown[:5]}")
    check_present(file.parent, seen, file)
    label_of = {name: label for label, name in enumerate(names)}
    train, validation, test = (
        make_split(file.parent, [(key, label_of[name]) for key, name in members])
        if members
        else None
        for members in rows.values()
    )
    assert train is not None
    return Dataset(tuple(names), train, validation, test, "the list's own")


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows with their line numbers, counted from 1; skips blank lines."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix.lower() == ".csv":
                reader = csv.DictReader(stream, skipinitialspace=True)
                reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
                for row in reader:
                    yield reader.line_num, row
            else:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        row = parse_json(line)
                        yield number, row if isinstance(row, dict) else {"line": row}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a list of photos: {error}") from error
