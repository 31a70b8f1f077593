"""Disk cache for what the first run computes from images: decoded images and their features.

Each file holds one split, decoded or encoded in one way, as fixed-size records that are read
through a memory map. Files are never changed: a run writes its own partial file and renames it when
it is complete, so that concurrent runs, or a killed run, leave either a complete file or no file.
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
from fgvpl_jax.files import user_cache_folder

FORMAT = 3  # incremented when the records, or the bytes that `decode_image` returns, change
# Only files with these suffixes, which no other program uses, are ever removed.
WHOLE, PARTIAL = ".fgvpl_images", ".fgvpl_partial"
# A partial file grows with every batch; one that has not grown for this long is from a killed run.
ABANDONED_SECONDS = 3600
CHECKSUM = "crc32"  # a record's last field
# Width and height of the photos that identify a transform.
PROBES = ((40, 31), (427, 640), (1000, 523))

Append = Callable[..., None]


def default_cache_folder() -> Path:
    """Returns the cache folder; see `user_cache_folder`."""
    return user_cache_folder("images")


@dataclass(frozen=True)
class ImageCache:
    """A folder of cache files whose total size is limited.

    Attributes:
        folder: Folder of the files, created at the first write.
        max_bytes: Limit of the total size; the least recently used files make room for new ones.
    """

    folder: Path
    max_bytes: int

    def entry(self, split: Split, transform: Transform) -> "CacheEntry | None":
        """Returns the entry of a split under a transform.

        A file counts as unchanged if its path, size and times are, a transform if its outputs for
        some random photos are.

        Returns:
            The entry; None if the split's images are not files, so that changes are not detected.
        """
        identity = identify(split, transform)
        if identity is None:
            return None
        record = np.dtype([("image", np.uint8, identity[3]), ("readable", np.bool_)])
        return self.place(identity, record, len(split))

    def place(self, identity: list, record: np.dtype, length: int) -> "CacheEntry":
        """Returns the entry of records.

        Args:
            identity: Everything that the records depend on, as JSON data.
            record: Data type of one image's record, without the checksum.
            length: Number of images.
        """
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        record = np.dtype([*((n, record[n]) for n in record.names or ()), (CHECKSUM, np.uint32)])
        return CacheEntry(self, self.folder / f"{key}{WHOLE}", record, length)

    def make_room(self, size: int) -> None:
        """Removes files of killed runs and, if needed, the least recently used files.

        Args:
            size: Number of bytes about to be written.
        Raises:
            OSError: If `size` exceeds the limit or the free space on the disk.
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
        """Returns (last use, bytes, file) of each file, least recently used first."""
        found = []
        for file in self.folder.glob(f"*{ending}"):
            with suppress(FileNotFoundError):  # another run may remove it at any moment
                status = file.stat()
                found.append((status.st_mtime, status.st_size, file))
        return sorted(found)


@dataclass(frozen=True)
class CacheEntry:
    """Records of one split, which the cache may or may not hold yet.

    Attributes:
        cache: Cache that the entry belongs to.
        file: Path of the records; the file exists only if it is complete.
        record: Data type of one image's record, such as "image", uint8 [H, W, 3], and "readable";
            the last field is "crc32", the checksum of the others.
        length: Number of records in the file.
    """

    cache: ImageCache
    file: Path
    record: np.dtype
    length: int

    def read(self) -> np.ndarray | None:
        """Memory-maps the records, without checking them; returns None if there is no file."""
        try:
            records = np.memmap(self.file, self.record, "r", shape=(self.length,))
        except OSError:
            return None
        except ValueError:  # too short
            self.remove_damaged()
            return None
        with suppress(OSError):  # a read-only cache
            os.utime(self.file)
        return records

    def read_checked(self) -> np.ndarray | None:
        """Returns the records after checking all of them; None if missing or damaged."""
        records = self.read()
        if records is None:
            return None
        if any(checksum(record) != record[CHECKSUM] for record in records):
            self.remove_damaged()
            return None
        return records

    def remove_damaged(self) -> None:
        """Logs a warning that the file was changed after it was written, and removes the file."""
        logging.warning("%s is damaged: its content is computed again", self.file)
        _remove(self.file)

    @contextmanager
    def recording(self) -> Iterator[Append]:
        """Yields a function to call with each batch's record columns, in the split's order.

        The file is complete when the block ends. If an error ends the block, there is no file. If
        the file cannot be written, one line is logged and further calls have no effect.
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
                _remove(partial)  # immediately: other runs may need the space
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
            # Again, because concurrent runs made room without knowing about each other's files.
            attempt(lambda: self.cache.make_room(0))
        finally:
            _remove(partial)


def identify(split: Split, transform: Transform) -> list | None:
    """Returns everything that a split's images under a transform depend on, as JSON data.

    Returns:
        A list whose fourth element is the shape of an image; None if the split's images are not
        files, so that changes are not detected.
    """
    fingerprint = split.fingerprint()
    if fingerprint is None:
        return None
    outputs = [transform(photo) for photo in _probes()]
    probed = hashlib.sha256(b"".join(output.tobytes() for output in outputs)).hexdigest()
    return [FORMAT, PIL.__version__, fingerprint, outputs[0].shape, probed]


def checksum(record: np.void) -> int:
    """Returns the CRC-32 of all other fields of a record."""
    value = 0
    for name in record.dtype.names or ():
        if name != CHECKSUM:
            value = zlib.crc32(np.ascontiguousarray(record[name]).data, value)
    return value


def _append(file: Path, records: np.ndarray) -> None:
    # Not through a memory map, where a full disk kills the process.
    with file.open("ab") as stream:
        stream.write(records.data)


def _remove(file: Path) -> None:
    with suppress(OSError):  # already removed or, on Windows, in use
        file.unlink()


def _probes() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        for width, height in PROBES
    ]
