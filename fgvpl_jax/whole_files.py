"""Files that are there whole or as they were before, whenever the program is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
