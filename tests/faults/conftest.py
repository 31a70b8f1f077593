"""An undisturbed run for all fault tests, and a tally of outcomes that is printed at the end."""

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_arrays
from fgvpl_jax.runs import experiment
from fgvpl_jax.runs.workdir import Workdir
from tests.conftest import make_tiny_config
from tests.whole_runs import interruption_in_epoch, metrics, stored_results, without_times

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 300  # for one process; catches hangs
COLUMNS = ("injected", "ended right", "of them refused", "data lost", "false success")
TALLY: dict[str, Counter[str]] = {}


def outcome_of(path: Path) -> dict[str, Any]:
    """Returns results, metrics and predictions of a finished run, without times."""
    predictions = read_arrays(path / "predictions.npz")
    return {
        "results": without_times(stored_results(path)),
        "metrics": metrics(path),
        "predictions": {name: column.tolist() for name, column in predictions.items()},
    }


def count(fault: str, *columns: str) -> None:
    """Adds one injection to the tally, and one to each column that describes its outcome."""
    TALLY.setdefault(fault, Counter()).update({"injected": 1} | dict.fromkeys(columns, 1))


def pytest_terminal_summary(terminalreporter):
    if TALLY:
        terminalreporter.write_line("")
        terminalreporter.write_line(f"| fault | {' | '.join(COLUMNS)} |")
        terminalreporter.write_line("| --- " * (len(COLUMNS) + 1) + "|")
    for fault, counts in TALLY.items():
        numbers = " | ".join(str(counts[column]) for column in COLUMNS)
        terminalreporter.write_line(f"| {fault} | {numbers} |")


@dataclass(frozen=True)
class Undisturbed:
    """A finished run, and a copy of the same run that stopped halfway.

    Attributes:
        config: Config of both runs.
        path: Folder of the finished run.
        half: Folder with the checkpoints of epochs 1 and 2 of 4.
        outcome: Results, metrics and predictions of the finished run.
    """

    config: ConfigDict
    path: Path
    half: Path
    outcome: dict[str, Any]

    def resumes(self, path: Path, apart_from: str = "") -> bool:
        """Runs the command on a folder; returns whether it ends like this run.

        Args:
            path: Folder of a run.
            apart_from: Part of the outcome that may differ.

        Raises:
            UserError: If the command refuses the folder.
        """
        experiment.train_and_evaluate(self.config, Workdir(path))
        return outcome_of(path) | {apart_from: 0} == self.outcome | {apart_from: 0}

    def try_damaged(
        self, fault: str, path: Path, repair: Callable[[], object], apart_from: str = ""
    ) -> None:
        """Runs the command on a damaged folder, and again after a repair if it refuses.

        Args:
            fault: Name in the tally.
            path: Damaged folder of a run.
            repair: Function that restores the damaged files, and nothing else.
            apart_from: Part of the outcome that no checksum protects.
        """
        try:
            same = self.resumes(path, apart_from)
        except UserError as error:
            assert str(error).strip()
            repair()
            whole = self.resumes(path)
            count(fault, "of them refused", "ended right" if whole else "data lost")
            assert whole, f"{fault}: the repaired run ended differently"
            return
        count(fault, "ended right" if same else "false success")
        assert same, f"{fault}: the run ended differently without an error"

    def command(self, path: Path) -> list[str]:
        """Returns the command that starts the same run in another folder."""
        config = self.config
        fields = (
            "method",
            "clip",
            "shots",
            "epochs",
            "batch_size",
            "eval_batch_size",
            "checkpoint_every_epochs",
        )
        places = ("root", "image_cache_dir")
        return [
            *(sys.executable, "run.py", "--config=configs/folder.py", f"--workdir={path}"),
            *(f"--config.{name}={config[name]}" for name in fields),
            *(f"--config.data.{name}={config.data[name]}" for name in places),
            f"--config.benchmark={config.benchmark}",
            f"--config.cache_logit_weight_grid={config.cache_logit_weight_grid}",
        ]


@pytest.fixture(scope="session")
def undisturbed(tiny_clip_dir, photos_dir, tmp_path_factory) -> Undisturbed:
    place = tmp_path_factory.mktemp("undisturbed")
    config = make_tiny_config(tiny_clip_dir, photos_dir)
    shutil.copytree(tiny_clip_dir, place / "clip")
    shutil.copytree(photos_dir, place / "photos")
    config.clip = str(place / "clip")
    config.data.root = str(place / "photos" / "list.csv")
    write_list(place / "photos")
    config.data.image_cache_dir = str(place / "cache")
    config.data.image_cache_gb = 1.0
    config.checkpoint_every_epochs = 1
    with interruption_in_epoch(3):
        experiment.train_and_evaluate(config, Workdir(place / "half"))
    experiment.train_and_evaluate(config, Workdir(place / "W"))
    return Undisturbed(config, place / "W", place / "half", outcome_of(place / "W"))


def write_list(photos: Path) -> None:
    """Writes a list.csv with the split and class of each photo, taken from its folders."""
    files = [file.relative_to(photos) for file in sorted(photos.rglob("*.png"))]
    rows = [f"{file},{file.parts[1]},{file.parts[0]}\n" for file in files]
    (photos / "list.csv").write_text("path,label,split\n" + "".join(rows))
