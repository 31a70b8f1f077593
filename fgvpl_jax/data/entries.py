"""Decides which entries of a user's folder are photos, and remembers the entries it skips."""

import os
import stat
import sys
from collections import defaultdict
from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from absl import logging

from fgvpl_jax.data.file_kinds import HEAD_BYTES, TIFF, Group, kind_of
from fgvpl_jax.errors import UserError, first_of

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
IMAGE_SUFFIXES |= {".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Raw photos are TIFF files too, whose first picture is a small preview.
RAW_SUFFIXES = {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc"}
RAW_SUFFIXES |= {".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"}
RAW_SUFFIXES |= {".rwl", ".sr2", ".srf", ".srw", ".x3f"}
FOREIGN_SUFFIXES = {".dds", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".ico", ".jxl"}
FOREIGN_SUFFIXES |= {".jxr", ".pcx", ".psd", ".svg", ".tga", ".wmf", ".xcf", *RAW_SUFFIXES}
UNFINISHED_SUFFIXES = {".crdownload", ".download", ".opdownload", ".part", ".partial", ".tmp"}
# Names of folders and files, in lower case.
THUMBNAIL_FOLDERS = {"@eadir", "@__thumb", "__thumb", "__thumbs", "_thumb", "_thumbs", "_thumbnail"}
THUMBNAIL_FOLDERS |= {"_thumbnails", ".@__thumb", ".thumb", ".thumbs", ".thumbnail", ".thumbnails"}
THUMBNAIL_FOLDERS |= {"thumbs", "thumbnails"}
# A class may be called "thumb", but a folder in a class's folder is no class.
INNER_THUMBNAIL_FOLDERS = THUMBNAIL_FOLDERS | {"thumb", "thumbnail"}
SYSTEM_FOLDERS = {"$recycle.bin", "#recycle", "#snapshot", "@recently-snapshot", "@recycle", "@tmp"}
SYSTEM_FOLDERS |= {"__macosx", "__pycache__", "lost+found", "system volume information"}
SYSTEM_FILES = {".ds_store", ".localized", "desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db"}
THUMBNAIL_MARKS = ("_thumb", "-thumb", ".thumb", "_thumbnail", "-thumbnail", ".thumbnail")
MOST_NAMED = 3


class Reason(Enum):
    """Why an entry is skipped, as users read it: a plural noun and, if needed, advice."""

    BROKEN_LINK = "links to files that do not exist (mount or fetch them, or remove the links)"
    POINTER = "pointers to files that are stored elsewhere (fetch them)"
    UNOPENED = "files that cannot be opened (allow reading them, or remove them)"
    FOREIGN = "pictures in formats that are not read (convert them to JPEG)"
    LOOSE = "photos in no class folder (move them into the folders of their classes)"
    UNFINISHED = "unfinished downloads (download them again)"
    ARCHIVE = "archives (unpack them)"
    SPECIAL = "pipes, sockets and devices"
    VISITED = "links to folders that are read already, or contain the link"
    THUMBNAIL = "thumbnails that a program made"
    SYSTEM = "files and folders of the operating system"
    HIDDEN = "hidden files and folders (their names begin with a dot)"
    OTHER = "files that are no pictures"

    @property
    def is_problem(self) -> bool:
        """Whether photos that should be there cannot be read."""
        return self in (Reason.BROKEN_LINK, Reason.POINTER, Reason.UNOPENED)


Skipped = Mapping[Reason, tuple[str, ...]]


class Entries:
    """Reads folders below one folder, and remembers every entry that is skipped."""

    def __init__(self, base: Path) -> None:
        """Starts with nothing skipped.

        Args:
            base: Folder that the paths of skipped entries are relative to.
        """
        self._base = base
        self._skipped: dict[Reason, list[str]] = defaultdict(list)

    @property
    def skipped(self) -> Skipped:
        """Paths of the skipped entries for each reason; folders end with a slash."""
        return {reason: tuple(self._skipped[reason]) for reason in Reason if self._skipped[reason]}

    def skip(self, path: Path, reason: Reason, *, folder: bool = False) -> None:
        """Remembers that an entry is skipped."""
        name = path.relative_to(self._base).as_posix() + ("/" if folder else "")
        self._skipped[reason].append(name)

    def folders(self, place: Path) -> list[Path]:
        """Returns the folders in a folder that may be classes or splits, in name order.

        Raises:
            UserError: If the folder cannot be listed, a link leads nowhere, or a name is misread.
        """
        found = []
        for child in listed(place):
            if child.is_dir():
                reason = reason_to_skip_folder(child.name, THUMBNAIL_FOLDERS)
                if reason is None:
                    found.append(child)
            elif (
                is_broken_link(child)
                and not child.name.startswith(".")
                and child.suffix.lower() not in IMAGE_SUFFIXES | FOREIGN_SUFFIXES
            ):
                raise UserError(
                    f"{child} is a link to {os.readlink(child)}, which does not exist: mount or "
                    "fetch it, or remove the link"
                )
        return found

    def skip_all_but(self, place: Path, folders: list[Path]) -> None:
        """Remembers the reason for each entry of a folder that is not one of `folders`."""
        kept = set(folders)
        for child in listed(place):
            if child in kept:
                continue
            if child.is_dir():
                reason = reason_to_skip_folder(child.name, THUMBNAIL_FOLDERS)
                self.skip(child, reason or Reason.OTHER, folder=True)
            else:
                self.skip(child, reason_to_skip_file(child) or Reason.LOOSE)

    def photos(self, folder: Path) -> list[Path]:
        """Returns the photos at any depth below a folder, in path order.

        Links to folders are followed, but each folder is visited only once, and no folder that
        contains this one: its photos may be those of other classes.

        Raises:
            UserError: If a folder cannot be listed.
        """
        found: list[Path] = []
        seen = {os.path.realpath(parent) for parent in folder.absolute().parents}
        seen.update(str(parent) for parent in Path(os.path.realpath(folder)).parents)
        for name, folders, files in os.walk(folder, followlinks=True, onerror=_raise_unlisted):
            place = Path(name)
            real = os.path.realpath(place)
            if real in seen:
                self.skip(place, Reason.VISITED, folder=True)
                folders.clear()
                continue
            seen.add(real)
            for child in sorted(folders):
                reason = reason_to_skip_folder(child, INNER_THUMBNAIL_FOLDERS)
                if reason is not None:
                    folders.remove(child)
                    self.skip(place / child, reason, folder=True)
            folders.sort()
            for file in sorted(place / child for child in files):
                reason = reason_to_skip_file(file)
                if reason is None:
                    found.append(file)
                else:
                    self.skip(file, reason)
        return sorted(found)


def listed(place: Path) -> list[Path]:
    """Returns the entries of a folder in name order.

    Raises:
        UserError: If the folder cannot be listed.
    """
    try:
        return sorted(place.iterdir())
    except OSError as error:
        _raise_unlisted(error)
        raise


def _raise_unlisted(error: OSError) -> None:
    raise UserError(
        f"the folder {error.filename} cannot be listed ({error.strerror or error}): allow reading "
        "it, or move it elsewhere"
    ) from error


def is_broken_link(path: Path) -> bool:
    """Returns whether a path is a link whose target does not exist."""
    return path.is_symlink() and not path.exists()


def reason_to_skip_folder(name: str, thumbnails: set[str]) -> Reason | None:
    """Returns why a folder of this name is skipped; None if it is read."""
    lowered = name.lower()
    if lowered in thumbnails:
        return Reason.THUMBNAIL
    if lowered in SYSTEM_FOLDERS:
        return Reason.SYSTEM
    return Reason.HIDDEN if name.startswith(".") else None


def reason_to_skip_file(file: Path) -> Reason | None:
    """Returns why a file is skipped; None if it is a photo.

    A file whose name says that it is a photo counts as one even if it is damaged or a link to
    nowhere: it is reported as unreadable rather than skipped. Files with other names count if their
    content is a photo.
    """
    name, suffix = file.name.lower(), file.suffix.lower()
    if name in SYSTEM_FILES or name.startswith("._"):
        return Reason.SYSTEM
    if name.startswith("."):
        return Reason.POINTER if suffix == ".icloud" else Reason.HIDDEN
    if is_thumbnail(file):
        return Reason.THUMBNAIL
    if is_broken_link(file):
        return None if suffix in IMAGE_SUFFIXES else Reason.BROKEN_LINK
    if suffix in UNFINISHED_SUFFIXES:
        return Reason.UNFINISHED
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            return Reason.SPECIAL
        if suffix in IMAGE_SUFFIXES:
            return None
        with file.open("rb") as stream:
            kind = kind_of(stream.read(HEAD_BYTES))
    except OSError:
        return None if suffix in IMAGE_SUFFIXES else Reason.UNOPENED
    if kind is None or kind.group is Group.OTHER or (kind is TIFF and suffix in RAW_SUFFIXES):
        return Reason.FOREIGN if suffix in FOREIGN_SUFFIXES else Reason.OTHER
    if kind.group is Group.FOREIGN:
        return Reason.FOREIGN
    if kind.group is Group.POINTER:
        return Reason.POINTER
    return Reason.ARCHIVE if kind.group is Group.ARCHIVE else None


def is_thumbnail(file: Path) -> bool:
    """Returns whether a program named this file as a thumbnail of a photo that is there too."""
    if file.name.lower().startswith("synophoto_thumb") or file.suffix.lower() == ".thm":
        return True
    stem = file.stem
    originals = [stem[: -len(mark)] for mark in THUMBNAIL_MARKS if stem.lower().endswith(mark)]
    if stem.lower().startswith(("thumb_", "thumb-")):
        originals.append(stem[len("thumb_") :])
    suffixes = {"", file.suffix, *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES)}
    return any(
        original and file.with_name(original + suffix).is_file()
        for original in originals
        for suffix in suffixes
    )


def refuse_misread_name(name: str, place: object) -> None:
    """Refuses a name that Python decoded in an encoding other than UTF-8.

    CLIP would read other letters than the user does.

    Raises:
        UserError: If the name is not ASCII and the locale's encoding is not UTF-8.
    """
    encoding = sys.getfilesystemencoding()
    if encoding.replace("-", "").lower() != "utf8" and not name.isascii():
        raise UserError(
            f"{place} has the name {name!r}, and the locale makes Python read names as {encoding}: "
            "set the environment variable PYTHONUTF8=1, which makes it read them as UTF-8"
        )


def skipped_lines(skipped: Skipped) -> list[str]:
    """Returns one line for each reason: the number of entries, the reason, and the first paths."""
    return [
        f"{len(paths):,} {reason.value}: {first_of(paths, MOST_NAMED)}"
        for reason, paths in skipped.items()
    ]


def warn_of_skipped(skipped: Skipped, place: object) -> None:
    """Logs a warning that counts and names the entries of a folder that are skipped.

    What every macOS or Windows folder holds is no news; `--mode=data` names it too.
    """
    news: Skipped = {
        reason: paths for reason, paths in skipped.items() if reason is not Reason.SYSTEM
    }
    if news:
        logging.warning("skipped in %s: %s", place, "; ".join(skipped_lines(news)))
