"""The folder of one run: whose it is, and the readable files in it."""

import fcntl
import json
import os
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ml_collections import ConfigDict

from fgvpl_jax.apps.default_config import get_config
from fgvpl_jax.errors import UserError
from fgvpl_jax.json_text import parse_json
from fgvpl_jax.training import is_writer
from fgvpl_jax.whole_files import written_whole

# Where things lie may change between two commands on one run; what they are may not: the backbone
# is compared by its hash, the drawn images by their names.
LOCATIONS = (
    "clip",
    "data.root",
    "data.few_shot_file",
    "data.image_cache_dir",
    "data.image_cache_gb",
)
# How much memory a step takes may change too: up to rounding, of photos to bytes, it computes the
# same.
RESOURCES = ("data.resident_gb", "microbatch", "rematerialise")

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
        # A file's name may hold bytes that are no text: Python's escape of them is JSON's too.
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        with written_whole(file) as stream:
            stream.write(text.encode("utf-8", errors="backslashreplace"))

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


def save_arrays(file: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz whole or not at all; of several processes the first does."""
    if not is_writer():
        return
    with written_whole(file) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # its stub takes a flag for one


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Reads an .npz whole; its format holds a checksum of every array.

    Raises:
        UserError: If it is not there or not as it was written.
    """
    try:
        with np.load(file, allow_pickle=False) as saved:
            # `np.savez` compresses nothing; what is compressed may unpack to any size.
            if any(member.compress_type != zipfile.ZIP_STORED for member in saved.zip.infolist()):
                raise ValueError("it is compressed")
            arrays = dict(saved)
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("it holds what is no array")
            return arrays
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing: go on with --mode=train") from error
    except Exception as error:  # numpy, zipfile and zlib have a dozen kinds for damage
        raise UserError(f"{file} is damaged ({error}): go on with --mode=train") from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a file of the workdir.

    Raises:
        UserError: If it is no longer a JSON object.
    """
    try:
        return dict(parse_json(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it or start a new run") from error


def plain(config: ConfigDict) -> dict[str, Any]:
    """A config as JSON holds it: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"data": {"root": 1}} to {"data.root": 1}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
