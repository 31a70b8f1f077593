"""How orbax finds a run's checkpoints, also where one is damaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orbax.checkpoint import v1 as ocp


@dataclass(frozen=True)
class StepFolder:
    """What orbax asks of each checkpoint when it opens the folder of all.

    Attributes:
        step: By which its folder is named.
        path: The folder.
    """

    step: int
    path: Any

    @property
    def commit_timestamp(self) -> datetime:
        """By the file system; by orbax's own, one that is damaged would keep it from all."""
        return datetime.fromtimestamp(self.path.stat().mtime, UTC)


class StepFolders(ocp.path.step.NameFormat):
    """Orbax's standard names; what is being saved has another."""

    def build_name(self, step: int) -> str:
        """The name of a step's folder."""
        return str(step)

    def find_all(self, base_path: Any) -> Iterator[Any]:
        """All that were saved, in any order."""
        return (StepFolder(int(p.name), p) for p in base_path.iterdir() if p.name.isdecimal())

    def find_step(self, base_path: Any, step: int) -> Any:
        """That of one step.

        Raises:
            ValueError: If there is none.
        """
        folder = base_path / self.build_name(step)
        if not folder.is_dir():
            raise ValueError(f"no checkpoint of step {step} in {base_path}")
        return StepFolder(step, folder)
