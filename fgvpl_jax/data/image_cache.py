"""What the first run makes of images, kept on disk for the next: decoded images, their features.

A split, decoded or encoded in one way, is one file of fixed-size records, memory-mapped to read.
Files are never changed: a run writes a partial file of its own and renames it when it is whole, so
that runs side by side, or one that is killed, leave either a whole file or none.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
from absl import logging
from PIL import Image

from fgvpl_jax.data.splits import Split
from fgvpl_jax.data.transforms import Transform

FORMAT = 2  # counts up when records, or the bytes that `decode_image` gives, change
# Endings of our own: only what bears them is ever removed.
WHOLE, PARTIAL = ".fgvpl_images", ".fgvpl_partial"
# A partial file grows with every batch; one that has not for so long belongs to a killed run.
ABANDONED_SECONDS = 3600
CHECKSUM = "crc32"  # a record's last field
# Width and height of the photos by which transforms are told apart.
PROBES = ((40, 31), (427, 640), (1000, 523))

Append = Callable[..., None]


def default_cache_folder() -> Path:
    """Where the XDG base directory specification has a program's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "fgvpl_jax" / "images"


@dataclass(frozen=True)
class ImageCache:
    """A folder of such files, of limited size.

    Attributes:
        folder: Created when first written to.
        max_bytes: Of all files together; the least recently used make room for new ones.
    """

    folder: Path
    max_bytes: int

    def entry(self, split: Split, transform: Transform) -> "CacheEntry | None":
        """The place of a split under a transform; None where a change of it would not show.

        Files count as the same while path, size and times are, transforms while they treat some
        random photos alike.
        """
        identity = identify(split, transform)
        if identity is None:
            return None
        record = np.dtype([("image", np.uint8, identity[3]), ("readable", np.bool_)])
        return self.place(identity, record, len(split))

    def place(self, identity: list, record: np.dtype, length: int) -> "CacheEntry":
        """The place of records.

        Args:
            identity: All that they depend on, as JSON has it.
            record: Of one image.
            length: Number of images.
        """
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        record = np.dtype([*((n, record[n]) for n in record.names or ()), (CHECKSUM, np.uint32)])
        return CacheEntry(self, self.folder / f"{key}{WHOLE}", record, length)

    def make_room(self, size: int) -> None:
        """Removes what killed runs left and, where needed, the least recently used files.

        Args:
            size: Bytes about to be written.
        Raises:
            OSError: If they exceed the limit or the disk's free space.
        """
        if size > self.max_bytes:
            raise OSError(errno.EFBIG, f"{size / 1e9:.3g} GB exceed {self.max_bytes / 1e9:.3g} GB")
        self.folder.mkdir(parents=True, exist_ok=True)
        for used, _, file in self._files(PARTIAL):
            if time.time() - used > ABANDONED_SECONDS:
                _remove(file)
        whole = self._files(WHOLE)
        excess = size + sum(bytes_ for _, bytes_, _ in whole + self._files(PARTIAL))
        excess -= self.max_bytes
        for _, bytes_, file in whole:
            if excess <= 0:
                break
            _remove(file)
            excess -= bytes_
        if size > shutil.disk_usage(self.folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _files(self, ending: str) -> list[tuple[float, int, Path]]:
        """(last use, bytes, file), least recently used first."""
        found = []
        for file in self.folder.glob(f"*{ending}"):
            with suppress(FileNotFoundError):  # another run may remove it at this moment
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        return sorted(found)


@dataclass(frozen=True)
class CacheEntry:
    """The records of one split, in the cache or not yet.

    Attributes:
        cache: Whose it is.
        file: There only when whole.
        record: Of one image, such as "image", uint8 [H, W, 3], and "readable"; last comes "crc32"
            of the others.
        length: Records in the file.
    """

    cache: ImageCache
    file: Path
    record: np.dtype
    length: int

    def read(self) -> np.ndarray | None:
        """The records, memory-mapped, to be checked one by one; None where they are not there."""
        try:
            records = np.memmap(self.file, self.record, "r", shape=(self.length,))
        except OSError:
            return None
        except ValueError:  # too short
            self.remove_damaged()
            return None
        with suppress(OSError):  # a cache that may only be read
            os.utime(self.file)
        return records

    def read_checked(self) -> np.ndarray | None:
        """The records, all of them intact; None where they are not there, or were damaged."""
        records = self.read()
        if records is None:
            return None
        if any(checksum(record) != record[CHECKSUM] for record in records):
            self.remove_damaged()
            return None
        return records

    def remove_damaged(self) -> None:
        """Tells of a file that is not as it was written, and removes it."""
        logging.warning("%s is damaged: what it held is made anew", self.file)
        _remove(self.file)

    @contextmanager
    def recording(self) -> Iterator[Append]:
        """Gives what to call with the record's columns of every batch, in the split's order.

        At the end the file is there.

        If the block is left by an error there is none. A file that cannot be written is told of
        in one line, and the calls go on without effect.
        """
        partial = self.file.with_suffix(f".{uuid.uuid4().hex}{PARTIAL}")
        failed = False

        def attempt(step: Callable[[], object]) -> None:
            nonlocal failed
            if failed:
                return
            try:
                step()
            except OSError as error:
                failed = True
                _remove(partial)  # at once: others may need the space
                logging.warning(
                    "the image cache in %s cannot keep %d images (%s), so they are computed again "
                    "each time: free some space, or change data.image_cache_gb or "
                    "data.image_cache_dir",
                    self.cache.folder,
                    self.length,
                    error.strerror or error,
                )

        def append(*columns: np.ndarray) -> None:
            records = np.empty(len(columns[0]), self.record)
            names = [name for name in self.record.names or () if name != CHECKSUM]
            for name, column in zip(names, columns, strict=True):
                records[name] = column
            records[CHECKSUM] = [checksum(record) for record in records]
            attempt(lambda: _append(partial, records))

        attempt(lambda: self.cache.make_room(self.length * self.record.itemsize))
        try:
            yield append
            attempt(lambda: os.replace(partial, self.file))
            # Again: what runs side by side made room for, they did not know of each other.
            attempt(lambda: self.cache.make_room(0))
        finally:
            _remove(partial)


def identify(split: Split, transform: Transform) -> list | None:
    """What images under a transform depend on, as JSON has it; None where a change would not show.

    The fourth element is the shape of an image.
    """
    fingerprint = split.fingerprint()
    if fingerprint is None:
        return None
    outputs = [transform(photo) for photo in _probes()]
    probed = hashlib.sha256(b"".join(output.tobytes() for output in outputs)).hexdigest()
    return [FORMAT, PIL.__version__, fingerprint, outputs[0].shape, probed]


def checksum(record: np.void) -> int:
    """CRC-32 of all that a record holds beside it."""
    value = 0
    for name in record.dtype.names or ():
        if name != CHECKSUM:
            value = zlib.crc32(np.ascontiguousarray(record[name]).data, value)
    return value


def _append(file: Path, records: np.ndarray) -> None:
    # Not through a memory map: there, a full disk kills the process.
    with file.open("ab") as stream:
        stream.write(records.data)


def _remove(file: Path) -> None:
    with suppress(OSError):  # gone already, or, on Windows, in use
        file.unlink()


def _probes() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in PROBES
    ]
