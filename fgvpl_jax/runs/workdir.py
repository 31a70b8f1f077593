"""The folder of one run: whose it is, and the readable files in it."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ml_collections import ConfigDict

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json, write_arrays, write_json
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.settings import LOCATIONS, RESOURCES, flatten, plain
from fgvpl_jax.training import is_writer

LOCK = ".lock"


class WorkdirInUse(UserError):
    """Another process works in the folder."""


class Workdir:
    """Paths of a run's files, and the rule that one folder holds one run.

    Attributes:
        path: The folder; created by the first write.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).expanduser().absolute()
        there = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not there.is_dir():
            raise UserError(f"--workdir={path}: {there} is a file: name a folder")
        self.config_file = self.path / "config.json"
        self.few_shot_file = self.path / "few_shot.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.results_file = self.path / "results.json"
        self.predictions_file = self.path / "predictions.npz"
        self.support_file = self.path / "support.npz"
        self.checkpoints = self.path / "checkpoints"
        self.folds = self.path / "cv"

    def stored_config(self) -> ConfigDict:
        """The resolved config of the run in this folder.

        Raises:
            UserError: If no run is here, or one of another version.
        """
        if not self.config_file.exists():
            raise UserError(
                f"{self.path} holds no run (no config.json): train first, or check --workdir"
            )
        stored = self._stored()["config"]
        other = flatten(stored).keys() ^ flatten(plain(get_config())).keys()
        if other:
            raise UserError(
                f"{self.config_file} is of another version, with other fields {sorted(other)}: "
                "choose another --workdir, or use the version that made it"
            )
        return ConfigDict(stored)

    def stored_backbone(self) -> dict[str, Any]:
        """Id, revision and content hashes of the backbone of the run in this folder."""
        return self._stored()["backbone"]

    def _stored(self) -> dict[str, Any]:
        stored = read_json(self.config_file)
        if not all(isinstance(stored.get(part), dict) for part in ("config", "backbone")):
            raise UserError(
                f"{self.config_file} is not of a run of this program: choose another --workdir"
            )
        return stored

    def check_is_free_for(self, config: ConfigDict) -> None:
        """Refuses a folder that holds another run.

        Raises:
            UserError: If a run of another config is here, whose differing fields it names, or one
                that lost its config.
        """
        if not self.config_file.exists():
            for leftover in (self.checkpoints, self.folds):
                if leftover.exists():
                    raise UserError(
                        f"{leftover} is of a run without its config.json: choose another --workdir"
                    )
            return
        ours, theirs = flatten(plain(config)), flatten(plain(self.stored_config()))
        differing = [
            f"{name} ({theirs.get(name)!r} there, {ours.get(name)!r} now)"
            for name in sorted(ours.keys() | theirs.keys())
            if name not in LOCATIONS + RESOURCES and ours.get(name) != theirs.get(name)
        ]
        if differing:
            raise UserError(
                f"{self.path} holds another run, with other {', '.join(differing)}: "
                "choose another --workdir, or that run's config to go on with it"
            )

    def write_config(self, config: ConfigDict, backbone: dict[str, Any]) -> None:
        """Writes `config.json`.

        Args:
            config: A folder as its backbone is kept absolute: later commands may start elsewhere.
            backbone: Id, revision and content hashes.
        """
        content = plain(config)
        folder = Path(config.clip).expanduser()
        if folder.is_dir():
            content["clip"] = str(folder.absolute())
        self.write(self.config_file, {"config": content, "backbone": backbone})

    def write(self, file: Path, content: dict[str, Any]) -> None:
        """Writes one JSON file whole or not at all; of several processes the first does."""
        if not is_writer():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(file, content)

    def write_arrays(self, file: Path, **arrays: np.ndarray) -> None:
        """Writes one .npz file whole or not at all; only process 0 writes."""
        if is_writer():
            write_arrays(file, **arrays)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands from writing here; the system ends the lock with the process.

        A folder made for it is removed again if nothing was written. Of several processes of a job
        the first holds the lock.

        Raises:
            WorkdirInUse: If another command is at work in the folder.
        """
        if not is_writer():
            yield
            return
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.path / LOCK
        with _lock(file) as stream:
            stream.truncate(0)
            stream.write(f"pid {os.getpid()} on {socket.gethostname()}")
            stream.flush()
            try:
                yield
            finally:
                file.unlink(missing_ok=True)
                with suppress(OSError):  # what is not empty stays
                    for folder in made:
                        folder.rmdir()


def _lock(file: Path) -> TextIO:
    """Opens and locks a file that whoever held it before may be removing."""
    while True:
        stream = file.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(file.stat(), os.fstat(stream.fileno())):
                    return stream
        except BlockingIOError:
            stream.seek(0)
            owner = stream.read() or "a process that just began"
            stream.close()
            raise WorkdirInUse(
                f"another command is at work in {file.parent} ({owner}): wait for it, or choose "
                "another --workdir"
            ) from None
        stream.close()
