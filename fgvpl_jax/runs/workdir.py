"""The folder of one run: its files, its stored config, and its lock."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user, read_json, write_arrays, write_json
from fgvpl_jax.methods import Recipe
from fgvpl_jax.runs import lock
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.settings import LOCATIONS, RESOURCES, flatten, plain
from fgvpl_jax.training import is_writer
from fgvpl_jax.version import __version__

# Format of `config.json`, under the key "format"; format 1 has no such key. Increase it when the
# meaning of a stored field changes. A new field needs no new format if runs before it did what its
# default says.
FORMAT = 2


class Workdir:
    """Paths of a run's files, and the rule that one folder holds one run.

    Attributes:
        path: Folder of the run; created by the first write.
    """

    def __init__(self, path: str | Path):
        self.path = expand_user(path).absolute()
        existing = next(p for p in (self.path, *self.path.parents) if p.exists())
        if not existing.is_dir():
            raise UserError(
                f"the workdir {path} cannot be used: {existing} is a file; name a folder"
            )
        self.config_file = self.path / "config.json"
        self.few_shot_file = self.path / "few_shot.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.results_file = self.path / "results.json"
        self.predictions_file = self.path / "predictions.npz"
        self.support_file = self.path / "support.npz"
        self.known_classes_file = self.path / "known_classes.npz"
        self.checkpoints = self.path / "checkpoints"
        # Only in the folder of a run with several labels a photo.
        self.label_model_file = self.path / "labels.npz"
        self.classes_file = self.path / "classes.npz"
        self.folds = self.path / "cv"
        # Only in the folder of a run with the method "auto".
        self.candidates = self.path / "candidates"
        self.record_file = self.candidates / "tried.json"

    def candidate(self, method: str) -> "Workdir":
        """Returns the folder of one of the methods that a run with the method "auto" tries."""
        return Workdir(self.candidates / method)

    def remove_model(self) -> None:
        """Removes all checkpoints and visual caches; results and predictions stay."""
        for folder in (self, *(Workdir(path) for path in self.candidates.glob("*/"))):
            shutil.rmtree(folder.checkpoints, ignore_errors=True)
            folder.support_file.unlink(missing_ok=True)
            folder.known_classes_file.unlink(missing_ok=True)

    def copy_with_classes(self, other: "Workdir", classes: dict[str, np.ndarray]) -> None:
        """Copies a finished run to a new folder, with changes of its classes.

        The results come last: without them, a folder is not that of a finished run.
        """
        names = (self.folds.name, self.results_file.name, self.classes_file.name, "data")
        shutil.copytree(self.path, other.path, ignore=shutil.ignore_patterns(*names))
        other.write_arrays(other.classes_file, **classes)
        shutil.copyfile(self.results_file, other.results_file)

    def stored_config(self) -> ConfigDict:
        """Returns the resolved config of the run in this folder.

        A field that was added after the version that wrote the run has its default.

        Raises:
            UserError: If there is no run, or if the run has a field or format that this version
                does not know.
        """
        if not self.config_file.exists():
            raise UserError(
                f"{self.path} holds no run (no config.json): train first, or choose another workdir"
            )
        stored = flatten(self._stored()["config"])
        defaults = plain(get_config())
        fields = flatten(defaults)
        unknown = sorted(stored.keys() - fields.keys())
        if unknown:
            raise UserError(
                f"{self.config_file} has fields that version {__version__} of fgvpl_jax does not "
                f"know, {', '.join(unknown)}: use the version that wrote it, or choose another "
                "workdir"
            )
        # The default of these is the method's recipe, which a stored config has filled in.
        lost = [name for name in Recipe._fields if name not in stored]
        if lost:
            raise UserError(
                f"{self.config_file} is damaged (the field {lost[0]} is missing): restore it, or "
                "choose another workdir"
            )
        config = ConfigDict(defaults)
        with config.ignore_type():
            config.update_from_flattened_dict(stored)
        return config

    def stored_backbone(self) -> dict[str, Any]:
        """Returns id, revision and content hashes of the backbone of the run in this folder."""
        return self._stored()["backbone"]

    def _stored(self) -> dict[str, Any]:
        """Reads `config.json`, of any format up to this version's."""
        stored = read_json(self.config_file)
        format_ = stored.get("format", 1)
        if type(format_) is int and format_ > FORMAT:
            raise UserError(
                f"{self.config_file} has format {format_}, and version {__version__} of fgvpl_jax "
                f"reads formats up to {FORMAT}: use a newer version, or choose another workdir"
            )
        is_format = type(format_) is int and format_ >= 1
        parts = (stored.get(part) for part in ("config", "backbone"))
        if not is_format or not all(isinstance(part, dict) for part in parts):
            raise UserError(
                f"{self.config_file} does not belong to a run of fgvpl_jax: choose another workdir"
            )
        return stored

    def check_is_free_for(self, config: ConfigDict) -> None:
        """Refuses a folder that holds another run.

        Raises:
            UserError: If the folder holds a run with another config, whose differing fields the
                message names, or a run without its config.
        """
        if not self.config_file.exists():
            parts = (self.checkpoints, self.folds, self.candidates, self.label_model_file)
            for leftover in parts:
                if leftover.exists():
                    raise UserError(
                        f"{leftover} belongs to a run without its config.json: choose another "
                        "workdir"
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
                "choose another workdir, or use that run's config to resume it"
            )

    def write_config(self, config: ConfigDict, backbone: dict[str, Any]) -> None:
        """Writes `config.json`.

        Args:
            config: Resolved config. If `clip` is a folder, its path is stored as an absolute one,
                because later commands may start elsewhere.
            backbone: Id, revision and content hashes of the backbone.
        """
        content = plain(config)
        folder = expand_user(config.clip)
        if folder.is_dir():
            content["clip"] = str(folder.absolute())
        self.write(self.config_file, {"format": FORMAT, "config": content, "backbone": backbone})

    def write(self, file: Path, content: dict[str, Any]) -> None:
        """Writes one JSON file, whole or not at all; only process 0 writes."""
        if not is_writer():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(file, content)

    def write_arrays(self, file: Path, **arrays: np.ndarray) -> None:
        """Writes one .npz file, whole or not at all; only process 0 writes."""
        if is_writer():
            write_arrays(file, **arrays)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands from writing here, see `lock.py`.

        A folder created for the lock is removed again if nothing was written. Of several processes
        of a job, process 0 holds the lock.

        Raises:
            WorkdirInUse: If another command is running in the folder.
        """
        if not is_writer():
            yield
            return
        created = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with lock.locked(self.path):
                yield
        finally:
            with suppress(OSError):  # a folder that is not empty stays
                for folder in created:
                    folder.rmdir()
