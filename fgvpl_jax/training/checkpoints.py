"""Checkpoints of what training changes; the frozen backbone is named, not copied."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from fgvpl_jax.errors import UserError
from fgvpl_jax.training.checkpoint_names import StepFolders
from fgvpl_jax.training.named_arrays import NamedArrays, by_path, content_hash, filled
from fgvpl_jax.training.processes import is_writer, wait_for_all
from fgvpl_jax.training.train_step import StepMetrics, TrainState

KEEP_LAST = 2
EPOCH_START = "epoch_start"


@dataclass(frozen=True)
class Provenance:
    """What a checkpoint belongs to; restoring into anything else is refused.

    Attributes:
        method: Name of the method.
        class_names: In label order.
        backbone: Id, revision and content hashes of the frozen CLIP.
        seed: With the epoch, the whole random state: order and augmentation of every epoch
            derive from (seed, epoch) alone.
    """

    method: str
    class_names: list[str]
    backbone: dict[str, str | None]
    seed: int


@dataclass(frozen=True)
class Position:
    """How far training is.

    Attributes:
        epoch: Whole epochs done.
        steps: Metrics of the steps done since, on the host.
        seconds: What those steps took.
    """

    epoch: int = 0
    steps: Sequence[StepMetrics] = ()
    seconds: float = 0.0


class Restored(NamedTuple):
    """What training goes on from.

    Attributes:
        state: On the devices.
        position: How far it is.
        epoch_start: The trainable variables as they were when the unfinished epoch began, from
            which its cache was built; None where they were not saved.
    """

    state: TrainState
    position: Position
    epoch_start: nnx.State | None


class _DamagedError(Exception):
    """Why a checkpoint cannot be used."""


class Checkpoints:
    """The `checkpoints/` folder of one run; each is named by the number of its steps.

    A checkpoint appears whole or not at all and carries the hash of its content. The last ones are
    kept; since training ends with one, the final is never removed.

    Args:
        directory: Created if absent.
        provenance: Written beside every state and compared before one is restored.
        to_train: Removes what a kill left unfinished, and what is damaged after the newest intact
            checkpoint, which is then gone on from. Only for who alone writes there.
    Raises:
        UserError: If there are checkpoints to train on from, and none is intact.
    """

    def __init__(self, directory: Path, provenance: Provenance, *, to_train: bool = False):
        self.provenance = provenance
        self._checkpointer = _open(
            directory,
            preservation_policy=ocp.training.preservation_policies.LatestN(KEEP_LAST),
            cleanup_tmp_directories=to_train,
        )
        self._saving: Any = None
        if to_train:
            self._remove_damaged()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def latest_step(self) -> int | None:
        """Number of steps of the newest checkpoint; None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def latest_epoch(self) -> int | None:
        """Number of whole epochs in the newest checkpoint; None where there is none."""
        self._wait()
        step = self.latest_step
        if step is None:
            return None
        try:
            return int(self._checkpointer.checkpointables_metadata(step).custom_metadata["epoch"])
        except Exception as error:  # orbax has an error of its own for each kind of damage
            raise _unusable(self._directory, step, error) from error

    @staticmethod
    def read_provenance(directory: Path) -> Provenance:
        """What the newest checkpoint in a folder belongs to.

        Raises:
            UserError: If there is none, or it is damaged.
        """
        with _open(directory) as checkpointer:
            latest = checkpointer.latest
            if latest is None:
                raise UserError(f"no checkpoint in {directory}: train first (--mode=train)")
            try:
                saved = checkpointer.checkpointables_metadata(latest.step).custom_metadata
                return Provenance(**{field.name: saved[field.name] for field in fields(Provenance)})
            except Exception as error:  # as above
                raise _unusable(directory, latest.step, error) from error

    def save(
        self,
        step: int,
        state: TrainState,
        position: Position,
        epoch_start: nnx.State | None = None,
    ) -> None:
        """Begins to keep a state; it is on disk when the next call, or `close`, returns.

        Args:
            step: Steps done since training began; one that is there already is kept.
            state: After so many steps; copied, so the caller may donate it.
            position: The same place, told by epochs.
            epoch_start: See `Restored`.
        Raises:
            FloatingPointError: If anything in the state is not finite; nothing is written.
            UserError: If it, or the one before it, cannot be written.
        """
        self._wait()
        if step == self.latest_step:
            return
        trees: dict[str, Any] = state._asdict()
        if epoch_start is not None:
            trees[EPOCH_START] = epoch_start
        # On the host: whole, whatever number of devices will read it. The epoch is there since
        # orbax refuses what is empty, as a state may be.
        arrays = {name: leaves for name, tree in trees.items() if (leaves := by_path(tree))}
        arrays["epoch"] = {"epoch": np.asarray(position.epoch)}
        for leaves in arrays.values():
            for path, leaf in leaves.items():
                if not np.isfinite(leaf).all():
                    raise FloatingPointError(f"{path} is not finite")
        metadata = {
            **asdict(self.provenance),
            "epoch": position.epoch,
            "steps": [[float(value) for value in metrics] for metrics in position.steps],
            "seconds": position.seconds,
        }
        metadata["sha256"] = content_hash(arrays, metadata)
        try:
            self._saving = self._checkpointer.save_checkpointables_async(
                step, arrays, custom_metadata=metadata
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, state: TrainState) -> Restored:
        """The newest saved state.

        Args:
            state: A state of the run's structure, whose shapes and shardings are taken over. A
                None in it stays: evaluation needs no optimizer.
        Raises:
            UserError: If there is no checkpoint, it is damaged, or it belongs to another method,
                class list, backbone or seed.
        """
        self._wait()
        step = self.latest_step
        if step is None:
            raise UserError(f"no checkpoint in {self._directory}: train first (--mode=train)")
        try:
            arrays, saved = self._read(step)
        except _DamagedError as error:
            raise _unusable(self._directory, step, error) from error
        self._check_provenance(saved)
        try:
            restored = state._replace(
                **{
                    name: filled(tree, arrays.get(name, {}))
                    for name, tree in state._asdict().items()
                    if tree is not None
                }
            )
            epoch_start = None
            if EPOCH_START in arrays:
                epoch_start = filled(state.trainable, arrays[EPOCH_START])
        except (KeyError, ValueError) as error:
            raise _unusable(self._directory, step, error) from error
        steps = [
            StepMetrics(*(np.asarray(value, np.float32) for value in row)) for row in saved["steps"]
        ]
        position = Position(saved["epoch"], steps, saved["seconds"])
        return Restored(restored, position, epoch_start)

    def close(self) -> None:
        """Finishes what is being saved and releases the folder.

        Raises:
            UserError: If that cannot be written.
        """
        try:
            self._wait()
        except UserError:
            with suppress(Exception):  # the same one, in orbax's words
                self._checkpointer.close()
            raise
        try:
            self._checkpointer.close()
        except Exception as error:  # what it does after a save: a clock that jumped is a timeout
            raise self._unwritten(error) from error

    @property
    def _directory(self) -> Any:
        return self._checkpointer.directory

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except Exception as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> UserError:
        """A full disk or another cause, in the words of whichever library met it."""
        return UserError(
            f"a checkpoint cannot be written to {self._directory} ({_first_line(error)}): make "
            "room where the disk is full, and the same command goes on from the one before it"
        )

    def _read(self, step: int) -> tuple[NamedArrays, dict[str, Any]]:
        """Arrays and metadata of an intact checkpoint."""
        try:
            saved = dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})
            arrays = self._checkpointer.load_checkpointables(step)
            expected = saved.pop("sha256", "")
            found = content_hash(arrays, saved)
        except Exception as error:  # as above
            raise _DamagedError(_first_line(error)) from error
        if not expected:
            raise _DamagedError("it has no content hash")
        if found != expected:
            raise _DamagedError(
                f"its content has sha256 {found[:12]}…, and had {expected[:12]}… when it was saved"
            )
        return arrays, saved

    def _remove_damaged(self) -> None:
        steps = [checkpoint.step for checkpoint in self._checkpointer.checkpoints]
        damaged: dict[int, _DamagedError] = {}
        for step in reversed(steps):
            try:
                self._read(step)
                break
            except _DamagedError as error:
                damaged[step] = error
        wait_for_all("checkpoints are read")  # none is removed under another process's eyes
        if damaged and len(damaged) == len(steps):
            newest, reason = next(iter(damaged.items()))
            raise UserError(
                f"none of the checkpoints in {self._directory} is intact "
                f"(step {newest}: {reason}): remove that folder to train anew, or use the "
                "version that made it"
            )
        for step, reason in damaged.items():
            if is_writer():
                print(
                    f"the checkpoint of step {step} in {self._directory} is damaged ({reason}): "
                    "removed, training goes on from the one before it",
                    file=sys.stderr,
                )
            self._checkpointer.delete(step)

    def _check_provenance(self, saved: dict[str, Any]) -> None:
        for name, ours in asdict(self.provenance).items():
            if name not in saved:
                raise UserError(
                    f"the checkpoint in {self._directory} is not of this program: it has no {name}"
                )
            theirs = saved[name]
            same = same_backbone(theirs, ours) if name == "backbone" else theirs == ours
            if not same:
                raise UserError(
                    f"the checkpoint in {self._directory} was trained with {name} {theirs}, this "
                    f"run has {ours}: use that run's config or another --workdir"
                )


def _open(directory: Path, **options: Any) -> ocp.training.Checkpointer:
    return ocp.training.Checkpointer(
        directory.absolute(), step_name_format=StepFolders(), **options
    )


def _unusable(directory: Any, step: int, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint of step {step} in {directory} is damaged or of another program "
        f"({_first_line(error)}): --mode=train with the run's config goes on from the newest "
        "intact one"
    )


def same_backbone(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether two hold the same, wherever they lie; both as `Provenance` has them.

    One that was recorded before small files had a hash is known by its weights alone.
    """
    small = "small_files_sha256"
    return theirs.get("sha256") == ours["sha256"] and (
        small not in theirs or theirs[small] == ours[small]
    )


def _first_line(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first.partition(" [tensorstore_spec=")[0]  # of pages, and of no use to a person
