"""Checkpoints of what training changes; the frozen backbone is named, not copied."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import jax
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
            {name: _by_path(tree) for name, tree in state._asdict().items()},
            custom_metadata={**asdict(self.provenance), "epoch": epoch},
        )

    def restore(self, state: TrainState) -> TrainState:
        """The newest saved state.

        Args:
            state: A state of the run's structure, whose shapes and shardings are taken over. A
                None in it is not read: evaluation needs no optimizer.
        Raises:
            UserError: If there is no checkpoint or it belongs to another method, class list,
                backbone or seed.
        """
        directory, epoch = self._checkpointer.directory, self.latest_epoch
        if epoch is None:
            raise UserError(f"no checkpoint in {directory}: train first (--mode=train)")
        saved = self._checkpointer.metadata(epoch).custom_metadata
        for name, ours in asdict(self.provenance).items():
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
                for path, leaf in _by_path(tree).items()
            }
            for name, tree in state._asdict().items()
            if tree is not None
        }
        restored = self._checkpointer.load_checkpointables(epoch, wanted)
        trees = {
            name: jax.tree.unflatten(
                jax.tree.structure(getattr(state, name)), [restored[name][path] for path in leaves]
            )
            for name, leaves in wanted.items()
        }
        return state._replace(**trees)

    def close(self) -> None:
        """Releases the folder."""
        self._checkpointer.close()


def _by_path(tree: Any) -> dict[str, jax.Array]:
    """Leaves under readable names, in the tree's own order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
