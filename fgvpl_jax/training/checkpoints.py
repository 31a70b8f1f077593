"""Checkpoints of what training changes; they name the frozen backbone and do not copy it."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from fgvpl_jax.errors import UserError
from fgvpl_jax.training.checkpoint_names import CheckpointNames, readable_path
from fgvpl_jax.training.named_arrays import NamedArrays, arrays_hash, by_path, filled
from fgvpl_jax.training.processes import is_writer, wait_for_all
from fgvpl_jax.training.train_step import StepMetrics, TrainState

KEEP_LAST = 2
EPOCH_START = "epoch_start"


@dataclass(frozen=True)
class Provenance:
    """The run that a checkpoint belongs to; restoring into another run is refused.

    Attributes:
        method: Name of the method.
        class_names: Names of the classes, in label order.
        backbone: Id, revision and content hashes of the frozen CLIP.
        seed: Seed of the run. With the epoch it is the whole random state: order and augmentation
            of every epoch derive from (seed, epoch) alone.
    """

    method: str
    class_names: list[str]
    backbone: dict[str, str | None]
    seed: int


@dataclass(frozen=True)
class Progress:
    """Position in a training, and the state that it continues from.

    Attributes:
        state: Trainable variables and optimizer state, on the devices.
        epoch: Number of whole epochs done.
        steps: Metrics of the steps done since then, on the host.
        seconds: Time that those steps took.
        epoch_start: Trainable variables at the start of the unfinished epoch, from which its cache
            was built; None if they were not kept.
    """

    state: TrainState
    epoch: int = 0
    steps: Sequence[StepMetrics] = ()
    seconds: float = 0.0
    epoch_start: nnx.State | None = None


class _DamagedError(Exception):
    """A checkpoint cannot be used; the message says why."""


class Checkpoints:
    """The `checkpoints/` folder of one run; a checkpoint's name is its number of steps.

    A checkpoint appears whole or not at all and carries the hash of its content. The last two are
    kept; since training ends with a checkpoint, the final one is never removed.

    Args:
        directory: Folder; created if absent.
        provenance: Saved with every state and compared before a state is restored.
        to_train: Remove checkpoints that a kill left unfinished, and damaged checkpoints after the
            newest intact one, from which training resumes. Only for the one process that writes
            to the folder.
    Raises:
        UserError: If `to_train` is set and the folder has checkpoints, but no intact one.
    """

    def __init__(self, directory: Path, provenance: Provenance, *, to_train: bool = False):
        self.provenance = provenance
        self._directory = directory
        self._path = ExitStack()
        self._checkpointer = _open(
            self._path.enter_context(readable_path(directory)),
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
        """Number of steps of the newest checkpoint; None without a checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def latest_epoch(self) -> int | None:
        """Number of whole epochs of the newest checkpoint; None without a checkpoint."""
        self._wait()
        step = self.latest_step
        if step is None:
            return None
        try:
            return int(self._checkpointer.checkpointables_metadata(step).custom_metadata["epoch"])
        except Exception as error:  # orbax raises a different error for each kind of damage
            raise _unusable(self._directory, step, error) from error

    @staticmethod
    def read_provenance(directory: Path) -> Provenance:
        """Reads which run the newest checkpoint in a folder belongs to.

        Raises:
            UserError: If there is no checkpoint, or it is damaged.
        """
        with readable_path(directory) as path, _open(path) as checkpointer:
            latest = checkpointer.latest
            if latest is None:
                raise UserError(f"no checkpoint in {directory}: train first")
            try:
                saved = checkpointer.checkpointables_metadata(latest.step).custom_metadata
                return Provenance(**{field.name: saved[field.name] for field in fields(Provenance)})
            except Exception as error:  # see `latest_epoch`
                raise _unusable(directory, latest.step, error) from error

    def save(self, step: int, progress: Progress) -> None:
        """Starts to write a checkpoint; it is on disk when the next call, or `close`, returns.

        Args:
            step: Number of steps since training began; an existing checkpoint of this step stays.
            progress: State after these steps; it is copied, so the caller may donate it.
        Raises:
            FloatingPointError: If a value of the state is not finite; nothing is written.
            UserError: If this checkpoint, or the one before it, cannot be written.
        """
        self._wait()
        if step == self.latest_step:
            return
        trees: dict[str, Any] = progress.state._asdict()
        if progress.epoch_start is not None:
            trees[EPOCH_START] = progress.epoch_start
        # Whole arrays on the host, so that any number of devices can read them. The epoch is among
        # them because orbax refuses to save nothing, and a state may be empty.
        arrays = {name: leaves for name, tree in trees.items() if (leaves := by_path(tree))}
        arrays["epoch"] = {"epoch": np.asarray(progress.epoch)}
        for leaves in arrays.values():
            for path, leaf in leaves.items():
                if not np.isfinite(leaf).all():
                    raise FloatingPointError(f"{path} is not finite")
        metadata = {
            **asdict(self.provenance),
            "epoch": progress.epoch,
            "steps": [[float(value) for value in metrics] for metrics in progress.steps],
            "seconds": progress.seconds,
        }
        metadata["sha256"] = arrays_hash(arrays, metadata)
        try:
            self._saving = self._checkpointer.save_checkpointables_async(
                step, arrays, custom_metadata=metadata
            )
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, state: TrainState) -> Progress:
        """Reads the newest checkpoint.

        Args:
            state: State with the structure, shapes and shardings to restore. A None in it stays
                None: evaluation needs no optimizer.
        Raises:
            UserError: If there is no checkpoint, it is damaged, or it belongs to another method,
                list of classes, backbone or seed.
        """
        self._wait()
        step = self.latest_step
        if step is None:
            raise UserError(f"no checkpoint in {self._directory}: train first")
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
        return Progress(restored, saved["epoch"], steps, saved["seconds"], epoch_start)

    def close(self) -> None:
        """Waits for the checkpoint that is being written and releases the folder.

        Raises:
            UserError: If it cannot be written.
        """
        with self._path:
            try:
                self._wait()
            except UserError:
                with suppress(Exception):  # orbax raises the same error again
                    self._checkpointer.close()
                raise
            try:
                self._checkpointer.close()
            except Exception as error:  # such as a timeout after a clock that jumped
                raise self._unwritten(error) from error

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        try:
            if saving is not None:
                saving.result()
        except Exception as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: Exception) -> UserError:
        """Returns the error for a full disk or another cause, with the library's own message."""
        return UserError(
            f"a checkpoint cannot be written to {self._directory} ({_first_line(error)}): free "
            "space if the disk is full; the same command then resumes from the checkpoint before it"
        )

    def _read(self, step: int) -> tuple[NamedArrays, dict[str, Any]]:
        """Reads arrays and metadata of a checkpoint; raises `_DamagedError` if it is damaged."""
        try:
            saved = dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})
            arrays = self._checkpointer.load_checkpointables(step)
            expected = saved.pop("sha256", "")
            found = arrays_hash(arrays, saved)
        except Exception as error:  # see `latest_epoch`
            raise _DamagedError(_first_line(error)) from error
        if not expected:
            raise _DamagedError("it has no content hash")
        if found != expected:
            raise _DamagedError(
                f"its content has sha256 {found[:12]}…, but had {expected[:12]}… when it was saved"
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
        wait_for_all("checkpoints are read")  # before one is removed
        if damaged and len(damaged) == len(steps):
            newest, reason = next(iter(damaged.items()))
            raise UserError(
                f"none of the checkpoints in {self._directory} is intact "
                f"(step {newest}: {reason}): remove that folder to train again, or use the "
                "version that made it"
            )
        for step, reason in damaged.items():
            if is_writer():
                print(
                    f"the checkpoint of step {step} in {self._directory} is damaged ({reason}): "
                    "removed, training resumes from the one before it",
                    file=sys.stderr,
                )
            self._checkpointer.delete(step)

    def _check_provenance(self, saved: dict[str, Any]) -> None:
        for name, ours in asdict(self.provenance).items():
            if name not in saved:
                raise UserError(
                    f"the checkpoint in {self._directory} was not written by this program: it "
                    f"has no {name}"
                )
            theirs = saved[name]
            same = same_backbone(theirs, ours) if name == "backbone" else theirs == ours
            if not same:
                raise UserError(
                    f"the checkpoint in {self._directory} was trained with {name} {theirs}, this "
                    f"run has {ours}: use that run's config or another workdir"
                )


def _open(path: Path, **options: Any) -> ocp.training.Checkpointer:
    return ocp.training.Checkpointer(path, step_name_format=CheckpointNames(), **options)


def _unusable(directory: Path, step: int, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint of step {step} in {directory} is damaged or was written by another "
        f"program ({_first_line(error)}): train with the run's config to resume from the newest "
        "intact checkpoint"
    )


def same_backbone(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Returns whether two backbones, recorded as in `Provenance`, have the same content.

    A backbone that was recorded before small files had a hash is compared by its weights alone.
    """
    small_files = theirs.get("small_files_sha256")
    return theirs.get("sha256") == ours["sha256"] and (
        not small_files or small_files == ours["small_files_sha256"]
    )


def _first_line(error: Exception) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first.partition(" [tensorstore_spec=")[0]  # the rest is pages of settings
