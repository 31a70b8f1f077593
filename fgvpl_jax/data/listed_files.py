"""Finds the photos that a user's list names; says how the folder spells a missing one."""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from fgvpl_jax.data.entries import refuse_misread_name
from fgvpl_jax.data.splits import key_below
from fgvpl_jax.errors import UserError

MOST_NAMED = 3

Form = Callable[[str], str]


def find_listed(file: Path, paths: Sequence[tuple[str, str]]) -> list[str]:
    """Returns the key of the photo that each path of a list means; opens no image.

    A path means the file of this name. If there is no such file, backslashes are read as slashes,
    and spaces around a name and the Unicode form of its letters do not matter, as long as a single
    file fits.

    Args:
        file: The list; paths are relative to its folder.
        paths: For each photo, the line that names it, for messages, and its path.
    Raises:
        UserError: If a path leaves the folder, or a photo is missing.
    """
    listing = Listing(file.parent)
    keys, missing = [], []
    for where, raw in paths:
        key = key_below(raw, where)
        if not listing.has_file(key):
            key = listing.resolve(key_below(raw.replace("\\", "/"), where), plain)
            if not listing.has_file(key):
                missing.append((where, raw, key))
        keys.append(key)
    if missing:
        for where, raw, _ in missing:
            refuse_misread_name(raw, where)
        shown = "; ".join(
            f"{raw!r} ({listing.difference(key)})" for _, raw, key in missing[:MOST_NAMED]
        )
        raise UserError(
            f"{len(missing)} of the {len(paths)} images that {file} names are not in "
            f"{file.parent}, such as {shown}: correct the list, whose paths start from its own "
            "folder"
        )
    return keys


def plain(name: str) -> str:
    """Returns a name without spaces around it, with composed letters."""
    return unicodedata.normalize("NFC", name).strip()


def plain_in_any_case(name: str) -> str:
    """Returns a name without spaces around it, with composed small letters."""
    return plain(name).casefold()


def without_ending(name: str) -> str:
    """Returns a name with composed small letters up to its last dot."""
    return PurePosixPath(plain_in_any_case(name)).stem


class Listing:
    """Names of the files below a folder; each folder is listed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, dict[str, bool]] = {}
        self._by_form: dict[tuple[str, Form], dict[str, list[str]]] = {}

    def has_file(self, key: str) -> bool:
        """Returns whether a key is a regular file or a link to one."""
        path = PurePosixPath(key)
        return self._names_in(str(path.parent)).get(path.name, False)

    def resolve(self, key: str, form: Form) -> str:
        """Replaces each name of a key that is not there by the only one of the same form."""
        place = PurePosixPath()
        for name in PurePosixPath(key).parts:
            fits = [name]
            if name not in self._names_in(str(place)):
                fits = self._names_of_form(str(place), form).get(form(name), [])
            place /= fits[0] if len(fits) == 1 else name
        return str(place)

    def difference(self, key: str) -> str:
        """Returns how a missing file differs from what is there, for a message."""
        path = self._folder / key
        if os.path.islink(path):
            return f"a link to {os.readlink(path)}, which does not exist"
        if os.path.isdir(path):
            return "a folder"
        for form, how in (
            (plain_in_any_case, "other capital letters"),
            (without_ending, "another ending"),
        ):
            near = self.resolve(key, form)
            if self.has_file(near):
                return f"the folder has {near!r}, with {how}"
        return "the folder has nothing of a similar name"

    def _names_in(self, place: str) -> dict[str, bool]:
        """Maps the names in a folder to whether they are files."""
        if place not in self._names:
            try:
                with os.scandir(self._folder / place) as entries:
                    self._names[place] = {entry.name: entry.is_file() for entry in entries}
            except (OSError, ValueError):  # a name that is too long, or has a null character
                self._names[place] = {}
        return self._names[place]

    def _names_of_form(self, place: str, form: Form) -> dict[str, list[str]]:
        """Maps each form to the names in a folder that have it."""
        if (place, form) not in self._by_form:
            names = self._by_form[place, form] = defaultdict(list)
            for name in self._names_in(place):
                names[form(name)].append(name)
        return self._by_form[place, form]
