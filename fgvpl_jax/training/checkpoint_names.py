"""Names by which orbax finds the checkpoints of a run, even if one of them is damaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orbax.checkpoint import v1 as ocp


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
        return datetime.fromtimestamp(self.path.stat().mtime, UTC)


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
