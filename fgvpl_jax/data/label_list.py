"""Your own photos with several labels each, from a list: CSV or JSON lines with path and labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from fgvpl_jax.data.listed_files import find_listed
from fgvpl_jax.data.manifest import (
    check_text,
    column_names,
    list_file,
    refuse_no_name,
    refuse_surplus,
    rows_of,
    shown,
)
from fgvpl_jax.data.split_names import split_role
from fgvpl_jax.data.splits import Split, class_name, make_split, one_spelling
from fgvpl_jax.errors import UserError

SEPARATOR = "|"  # between the labels of a photo


@dataclass(frozen=True)
class LabelledPhotos:
    """Photos with several labels each, or none.

    Attributes:
        photos: The files; their own labels are 0 and mean nothing.
        truth: Whether each photo has each label.
    """

    photos: Split
    truth: Bool[np.ndarray, "N k"]


@dataclass(frozen=True)
class LabelListDataset:
    """The photos of a list, sorted by their paths: a run does not depend on the order of the lines.

    Attributes:
        class_names: The labels, ready for a text template.
        train: Photos for training, and those for validation, which join them.
        test: Photos that are read once, at the end; None if the list has none.
        split_protocol: Description of the splits for users and `results.json`.
    """

    class_names: tuple[str, ...]
    train: LabelledPhotos
    test: LabelledPhotos | None
    split_protocol: str


def load_label_list(manifest: str) -> LabelListDataset:
    """Loads the photos that a list with the column `labels` names.

    Args:
        manifest: A .csv or .jsonl file like that of `load_manifest`. `labels` holds the labels of a
            photo, separated by `|`, or nothing; in JSON it may also be a list of texts. The photos
            of a validation split join those for training, because out-of-fold predictions choose
            what validation photos would.
    Raises:
        UserError: If the file has no column `labels`, or `label` too, the file or a photo is
            missing, a line is incomplete, a path leaves the folder or occurs twice, no photo for
            training has a label, or the test split has a label that the others lack.
    """
    file = list_file(manifest)
    columns = column_names(file)
    if {"label", "labels"} <= columns:
        raise UserError(f"{manifest} has the columns label and labels: remove one of them")
    if columns and "labels" not in columns:
        raise UserError(
            f"{manifest} has no column labels: one names the labels of each photo, separated by "
            f"{SEPARATOR}; for one label a photo, use fit"
        )
    spellings: dict[str, str] = {}
    named: list[tuple[str, str]] = []
    found: list[tuple[set[str], str]] = []
    for number, row in rows_of(file, "labels"):
        where = f"{file}, line {number}"
        path, labels, role = _fields(row, where)
        named.append((where, path))
        found.append(
            ({one_spelling(class_name(label), spellings, where) for label in labels}, role)
        )
    keys = find_listed(file, named)
    seen: set[str] = set()
    for key, (where, path) in zip(keys, named, strict=True):
        if key in seen:
            raise UserError(
                f"{where}: {path!r} occurs twice: write all its labels into one line, such as "
                f"red fox{SEPARATOR}owl"
            )
        seen.add(key)
    known = {name for labels, role in found if role != "test" for name in labels}
    if not known:
        raise UserError(f"{file} has no photo with a label for training: add some")
    unknown = {name for labels, _ in found for name in labels} - known
    if unknown:
        raise UserError(f"{file}: test has classes that train lacks: {sorted(unknown)[:5]}")
    names = tuple(sorted(known))

    def photos(roles: set[str]) -> LabelledPhotos:
        members = sorted(
            (key, labels) for key, (labels, role) in zip(keys, found, strict=True) if role in roles
        )
        truth = np.array([[name in labels for name in names] for _, labels in members], np.bool_)
        split = make_split(file.parent, [(key, 0) for key, _ in members])
        return LabelledPhotos(split, truth.reshape(len(members), len(names)))

    roles = {role for _, role in found}
    joined = "; its validation photos join those for training" * ("validation" in roles)
    return LabelListDataset(
        names,
        photos({"train", "validation"}),
        photos({"test"}) if "test" in roles else None,
        f"the list's own{joined}",
    )


def _fields(row: dict[Any, Any], where: str) -> tuple[str, list[str], str]:
    """Returns path, labels and role ("train", "validation" or "test") of a row.

    Raises:
        UserError: If a field is missing or is not a text, or there are more fields than columns.
    """
    refuse_surplus(row, where)
    path, labels, split = (row.get(name) for name in ("path", "labels", "split"))
    several = labels if isinstance(labels, list) else [labels]
    for name, value in (("path", path), ("split", split), *(("label", one) for one in several)):
        check_text(name, value, where)
    role = split_role(split) if split and split.strip() else "train"
    if not path or not path.strip() or role is None or labels is None:
        raise UserError(
            f"{where} needs a path, labels (which may be empty) and, optionally, a split (train, "
            f"val or test), but has {shown(row)}"
        )
    if not isinstance(labels, list):
        several = labels.split(SEPARATOR)
    kept = [label for label in several if label and label.strip()]
    for label in kept:
        refuse_no_name(label, where)
    return path, kept, role
