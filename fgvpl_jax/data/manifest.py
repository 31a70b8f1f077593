"""Your own photos from a list: CSV or JSON lines with path, label and, optionally, split."""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from fgvpl_jax.data.listed_files import find_listed
from fgvpl_jax.data.split_names import split_role
from fgvpl_jax.data.splits import Dataset, class_name, make_split, one_spelling
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json

MANIFEST_SUFFIXES = (".csv", ".jsonl")
COLUMNS = ("path", "label", "split")
SEPARATORS = (",", ";", "\t")
# Spellings in which pandas, R and spreadsheets write that a label is missing.
MISSING = {"NaN", "nan", "NaT", "None", "null", "NULL", "<NA>", "#N/A", "undefined"}
MISSING |= {"NA", "N/A", "n/a", "#NA", "#REF!", "#VALUE!", "#NAME?", "-nan", "-NaN"}
MOST_SHOWN = 80  # characters of a value in a message
SEVERAL_LABELS = "docs/own_data.md#several-labels-a-photo"


def load_manifest(manifest: str) -> Dataset:
    """Loads the photos that a list names.

    Args:
        manifest: A .csv file whose first line names the columns, or a .jsonl file with one object
            per line. The columns are `path` (relative to the file's folder), `label` and,
            optionally, `split` (such as "train", "val" or "test"; a photo without one is for
            training).
    Raises:
        UserError: If the file or a photo is missing, a line is incomplete or has a field too many,
            a path leaves the folder or is in two splits, or a split has a class that the training
            split lacks.
    """
    file = list_file(manifest)
    if has_several_labels(file):
        raise UserError(
            f"{file} has the column labels, several labels a photo: only training, evaluation, "
            "prediction and the counts of --mode=data take it (in Python, fit_multi_label); name "
            "the column label if each photo has one"
        )
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "test": []}
    named: list[tuple[str, str, str, str]] = []
    spellings: dict[str, str] = {}
    for number, row in rows_of(file, "label"):
        where = f"{file}, line {number}"
        path, label, role = _fields(row, where)
        # In a hand-written list, "red_fox" and "red fox" may be the same class.
        named.append((where, path, one_spelling(class_name(label), spellings, where), role))
    keys = find_listed(file, [(where, path) for where, path, _, _ in named])
    seen: dict[str, str] = {}
    for key, (where, path, name, role) in zip(keys, named, strict=True):
        if key in seen:
            raise UserError(
                f"{where}: {path!r} occurs twice, in {seen[key]} and in {role}: remove one "
                f"line, or see {SEVERAL_LABELS}"
            )
        seen[key] = role
        rows[role].append((key, name))
    names = sorted({name for _, name in rows["train"]})
    if len(names) < 2:
        raise UserError(
            f"{file} has {len(names)} class(es) for training: use at least two different labels"
        )
    for role, members in rows.items():
        unknown = sorted({name for _, name in members} - set(names))
        if unknown:
            raise UserError(f"{file}: {role} has classes that train lacks: {unknown[:5]}")
    label_of = {name: label for label, name in enumerate(names)}
    train, validation, test = (
        make_split(file.parent, [(key, label_of[name]) for key, name in members])
        if members
        else None
        for members in rows.values()
    )
    assert train is not None
    return Dataset(tuple(names), train, validation, test, "the list's own")


def list_file(manifest: str) -> Path:
    """Returns the path of a list of photos.

    Raises:
        UserError: If its name has another ending.
    """
    file = Path(manifest).expanduser()
    if file.suffix.lower() not in MANIFEST_SUFFIXES:
        raise UserError(f"{manifest} is not a list of photos: its name must end in .csv or .jsonl")
    return file


def has_several_labels(file: Path) -> bool:
    """Returns whether a list has the column `labels` instead of `label`.

    False for a file that is no list or cannot be read, which reading it explains.
    """
    names = column_names(file)
    return "labels" in names and "label" not in names


def column_names(file: Path) -> set[str]:
    """Returns the columns that the first line of a list names, with any of the separators.

    For JSON lines, it is the fields of the first one. Empty for a file that cannot be read.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            first = next((line for line in stream if line.strip()), "")
        if file.suffix.lower() == ".csv":
            return {
                name
                for separator in SEPARATORS
                for name in _columns(next(csv.reader([first], delimiter=separator), ()))
            }
        row = parse_json(first)
        return set(row) if isinstance(row, dict) else set()
    except (OSError, ValueError, csv.Error):
        return set()


def _fields(row: dict[Any, Any], where: str) -> tuple[str, str, str]:
    """Returns path, label and role ("train", "validation" or "test") of a row.

    Raises:
        UserError: If a field is missing or is not a text, or there are more fields than columns.
    """
    refuse_surplus(row, where)
    path, label, split = (row.get(name) for name in COLUMNS)
    if type(label) is int:
        label = str(label)
    for name, value in (("path", path), ("label", label), ("split", split)):
        check_text(name, value, where)
    role = split_role(split) if split and split.strip() else "train"
    if not path or not label or not path.strip() or not label.strip() or role is None:
        raise UserError(
            f"{where} needs a path, a label and, optionally, a split (train, val or test), but "
            f"has {shown(row)}"
        )
    refuse_no_name(label, where)
    return path, label, role


def refuse_surplus(row: dict[Any, Any], where: str) -> None:
    """Refuses a row with more fields than columns."""
    surplus = [field for field in row.get(None) or () if field and field.strip()]
    if surplus:
        raise UserError(
            f"{where} has more fields than the first line has columns, the last of which is "
            f"{shown(surplus[-1])}: put a value that contains the separator in quotation marks, "
            'such as "spaniel, long-haired"'
        )


def check_text(name: str, value: object, where: str) -> None:
    """Refuses a field that is neither missing nor a text of one line."""
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: the {name} is {shown(value)}: it must be a text")
    if value is not None and any(mark in value for mark in "\r\n"):
        raise UserError(
            f"{where}: the {name} {shown(value)} contains a line break: a quotation mark may "
            "be missing"
        )


def refuse_no_name(label: str, where: str) -> None:
    """Refuses a label that a program wrote for a missing one, or that is a list or object."""
    text = label.strip()
    if text in MISSING or (text[0] + text[-1]) in ("[]", "{}"):
        raise UserError(
            f"{where}: the label is {shown(label)}, which is no class name: write the name of the "
            "class, or remove the line"
        )


def shown(value: object) -> str:
    """Returns a value as it is written in Python, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def rows_of(file: Path, label_column: str) -> Iterator[tuple[int, dict[Any, Any]]]:
    """Yields rows with their line numbers, counted from 1; skips blank lines.

    Args:
        file: The list.
        label_column: Column that a .csv file must have in addition to `path`.
    Raises:
        UserError: If the file cannot be read, or its first line does not name the columns.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix.lower() == ".csv":
                header = stream.readline()
                separator = _separator(header, file, label_column)
                stream.seek(0)
                reader = csv.DictReader(stream, skipinitialspace=True, delimiter=separator)
                reader.fieldnames = _columns(reader.fieldnames or ())
                for row in reader:
                    yield reader.line_num, row
            else:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        row = parse_json(line)
                        yield number, row if isinstance(row, dict) else {"line": row}
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} cannot be read as a list of photos, because it is not UTF-8 ({error.reason} "
            f"at byte {error.start}): save it as UTF-8"
        ) from error
    except UserError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{file} cannot be read as a list of photos: {error}") from error


def _columns(header: Iterable[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _separator(header: str, file: Path, label_column: str) -> str:
    """Returns the separator with which a first line names the columns.

    Raises:
        UserError: If the line does not name the columns, or names one twice.
    """
    for separator in SEPARATORS:
        columns = _columns(next(csv.reader([header], delimiter=separator), ()))
        if {"path", label_column} <= set(columns):
            twice = [name for name in ("path", label_column, "split") if columns.count(name) > 1]
            if twice:
                raise UserError(f"{file} has two columns {twice[0]!r}: remove one")
            return separator
    raise UserError(
        f"{file} begins with the line {shown(header.strip())}: its first line must name the "
        f"columns path, {label_column} and, optionally, split, separated by commas"
    )
