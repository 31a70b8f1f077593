"""Checkpoints of what training changes; the frozen backbone is named, not copied."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from fgvpl_jax.errors import UserError
from fgvpl_jax.training.step import TrainState

KEEP_LAST = 2


@dataclass(frozen=True)
class Provenance:
    """What a checkpoint belongs to; restoring into anything else is refused.

    Attributes:
        method: Name of the method.
        class_names: In label order.
        backbone: Id, revision and content hash of the frozen CLIP.
        seed: With the epoch, the whole random state: order and augmentation of every epoch
            derive from (seed, epoch) alone.
    """

    method: str
    class_names: list[str]
    backbone: dict[str, str | None]
    seed: int


class Checkpoints:
    """The `checkpoints/` folder of one run: the state after whole epochs.

    Args:
        directory: Created if absent.
        provenance: Written beside every state and compared before one is restored.
    """

    def __init__(self, directory: Path, provenance: Provenance):
        self.provenance = provenance
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP_LAST),
        )

    @property
    def latest_epoch(self) -> int | None:
        """Number of finished epochs in the newest checkpoint; None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @staticmethod
    def read_provenance(directory: Path) -> Provenance:
        """What the newest checkpoint in a folder belongs to.

        Raises:
            UserError: If there is none.
        """
        with ocp.training.Checkpointer(directory.absolute()) as checkpointer:
            latest = checkpointer.latest
            if latest is None:
                raise UserError(f"no checkpoint in {directory}: train first (--mode=train)")
            saved = checkpointer.metadata(latest.step).custom_metadata
        return Provenance(**{field.name: saved[field.name] for field in fields(Provenance)})

    def save(self, epoch: int, state: TrainState) -> None:
        """Keeps the state after `epoch` whole epochs; returns once it is on disk."""
        self._checkpointer.save_checkpointables(
            epoch,
            # The epoch too: orbax refuses an empty checkpoint, and a method may train nothing.
            {"epoch": {"epoch": np.asarray(epoch)}, **_filled_parts(state)},
            custom_metadata={**asdict(self.provenance), "epoch": epoch},
        )

    def restore(self, state: TrainState) -> TrainState:
        """The newest saved state.

        Args:
            state: A state of the run's structure, whose shapes and shardings are taken over. A
                None in it is not read: evaluation needs no optimizer.
        Raises:
            UserError: If there is no checkpoint, it is damaged, or it belongs to another method,
                class list, backbone or seed.
        """
        directory, epoch = self._checkpointer.directory, self.latest_epoch
        if epoch is None:
            raise UserError(f"no checkpoint in {directory}: train first (--mode=train)")
        try:
            saved = self._checkpointer.metadata(epoch).custom_metadata or {}
        except Exception as error:  # as below
            raise _damaged(directory, epoch, error) from error
        for name, ours in asdict(self.provenance).items():
            if name not in saved:
                raise UserError(
                    f"the checkpoint in {directory} is not of this program: it has no {name}"
                )
            theirs = saved[name]
            # A backbone is the same wherever it lies: its content decides.
            same = theirs["sha256"] == ours["sha256"] if name == "backbone" else theirs == ours
            if not same:
                raise UserError(
                    f"the checkpoint in {directory} was trained with {name} {theirs}, this run has "
                    f"{ours}: use that run's config or another --workdir"
                )
        wanted = {
            name: {
                path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
                for path, leaf in leaves.items()
            }
            for name, leaves in _filled_parts(state).items()
        }
        if not wanted:
            return state
        try:
            restored = self._checkpointer.load_checkpointables(epoch, wanted)
        except Exception as error:  # orbax has an error of its own for each kind of damage
            raise _damaged(directory, epoch, error) from error
        return state._replace(
            **{name: _filled(getattr(state, name), restored[name]) for name in wanted}
        )

    def close(self) -> None:
        """Releases the folder."""
        self._checkpointer.close()


def _damaged(directory: Any, epoch: int, error: Exception) -> UserError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return UserError(
        f"the checkpoint of epoch {epoch} in {directory} is damaged or of another program "
        f"({reason}): remove that epoch's folder to go on from an earlier one"
    )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _filled_parts(state: TrainState) -> dict[str, dict[str, jax.Array]]:
    """The parts of a state that have leaves; orbax refuses empty ones."""
    parts = {name: _by_path(tree) for name, tree in state._asdict().items()}
    return {name: leaves for name, leaves in parts.items() if leaves}


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """Leaves under readable names; orbax refuses to save an empty one, such as no prompt."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): leaf for path, leaf in leaves if leaf.size}


def _filled(tree: Any, leaves: dict[str, jax.Array]) -> Any:
    """The tree with its leaves replaced by those of `_by_path`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaves.get(_name(path), leaf), tree)
