"""Names by which orbax finds a run's checkpoints, even if one is damaged or the path is unusual."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

# Orbax takes the path for a pattern, and TensorStore a backslash for a separator; neither takes
# bytes that are not UTF-8. A first folder gs, or any name that ends with a colon, means a URL.
MISREAD = re.compile(r"[][*?\\\udc80-\udcff]|:(/|$)|^(gs|s3|az|hf)(/|$)")


@dataclass(frozen=True)
class CheckpointFolder:
    """Facts about a checkpoint that orbax reads when it opens the folder of all checkpoints.

    Attributes:
        step: Number of steps, which is the folder's name.
        path: The folder.
    """

    step: int
    path: Any

    @property
    def commit_timestamp(self) -> datetime:
        """Time by the file system; reading orbax's own record would fail on a damaged one."""
        # `os.stat`, because the path's own method fails if the folder's owner has no name here.
        return datetime.fromtimestamp(os.stat(self.path).st_mtime, UTC)


class CheckpointNames(ocp.path.step.NameFormat):
    """Orbax's standard names; a checkpoint that is being written has another name."""

    def build_name(self, step: int) -> str:
        """Returns the name of a step's folder."""
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """Returns all finished checkpoints, in any order."""
        return (CheckpointFolder(int(p.name), p) for p in base_path.iterdir() if p.name.isdecimal())

    def find_step(self, base_path: Any, step: int) -> Any:
        """Returns the checkpoint of one step.

        Raises:
            ValueError: If there is no such checkpoint.
        """
        folder = base_path / self.build_name(step)
        if not folder.is_dir():
            raise ValueError(f"no checkpoint of step {step} in {base_path}")
        return CheckpointFolder(step, folder)


@contextmanager
def readable_path(directory: Path) -> Iterator[Path]:
    """Creates a folder and returns a path to it that orbax and TensorStore do not misread.

    A path that they would misread is replaced by a symbolic link to it, for as long as the context
    is open.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if not MISREAD.search(directory.relative_to(directory.anchor).as_posix()):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="fgvpl_") as folder:
        link = Path(folder) / "checkpoints"
        link.symlink_to(directory, target_is_directory=True)
        yield link
