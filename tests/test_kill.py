"""Runs that are killed at random moments, and resumed, end like undisturbed runs.

The test runs run.py in a forked process, sends it a signal at a seeded random moment within the
time of an undisturbed run, and starts it again with the same command until it has results. It then
compares the run's files with those of the undisturbed run. `-s` shows which part of the run each
signal hit.
"""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from fgvpl_jax import load_classifier
from tests.conftest import FAST_PROCESS, write_photo_folders
from tests.forks import ForkedRun
from tests.whole_runs import metrics, stored_results, without_times

LONGEST_SECONDS = 300  # for one process; catches hangs, not slow runs
# Strings in a stack that identify the part of the run; the first match counts.
PARTS = {
    "saving": (") in save\n", ") in close\n", "_wait"),
    "restoring": ("in restore\n", "_remove_damaged"),
    "cache building": ("training/visual_cache_builder.py",),
    "evaluation": ("in measure\n", "evaluator.py"),
    "training": ("training/loop.py",),
    "preparing": ("in prepare\n",),
}
# All files and folders of a finished run.
NAMES = {
    *(
        "config.json",
        "few_shot.json",
        "known_classes.npz",
        "metrics.jsonl",
        "predictions.npz",
        "results.json",
        "support.npz",
    ),
    *("checkpoints", "cv"),
}
KINDS = {
    "short": ["--config.epochs=10"],
    "epoch": ["--config.epochs=200"],
    "once": ["--config.epochs=200", "--config.cache_refresh=once"],
    "folds": [
        "--config.epochs=60",
        "--config.cv_folds=2",
    ],  # without a test split, it trains three times
}


class Kind:
    """One setting, with its command and the outcome of an undisturbed run."""

    def __init__(self, name: str, clip: Path, photos: Path, place: Path):
        self.settings = [
            "--config=configs/folder.py",
            "--config.method=fg_vpl",
            f"--config.clip={clip}",
            f"--config.data.root={photos}",
            "--config.shots=5",
            "--config.batch_size=4",
            "--config.checkpoint_every_epochs=3",
            "--config.eval_batch_size=2",
            *KINDS[name],
        ]
        self.photos = sorted(photos.rglob("*.png"))[:10]
        started = time.monotonic()
        run = self.start(place)
        assert run.finish(LONGEST_SECONDS) == 0, log_of(place)
        self.seconds = time.monotonic() - started
        self.outcome = self.outcome_of(place)

    def start(self, place: Path) -> ForkedRun:
        place.mkdir(exist_ok=True)
        (place / "stacks").unlink(missing_ok=True)
        images = f"--config.data.image_cache_dir={place / 'images'}"
        return ForkedRun(
            [*self.settings, images, f"--workdir={place / 'W'}"],
            os.environ | FAST_PROCESS,
            log=place / "log",
            stacks=place / "stacks",
        )

    def outcome_of(self, place: Path) -> dict:
        """Returns results, metrics and predictions, without times."""
        files = sorted((place / "W").rglob("metrics.jsonl"))
        return {
            "results": without_times(stored_results(place / "W")),
            "metrics": [metrics(file.parent) for file in files],
            "predictions": [
                (p.class_names, p.probabilities, p.location.attention_map.tolist(), p.similar)
                for p in load_classifier(place / "W").predict(self.photos)
            ],
        }

    def compare(self, place: Path) -> None:
        assert self.outcome_of(place) == self.outcome
        assert {file.name for file in (place / "W").iterdir()} <= NAMES
        assert len(list((place / "W" / "checkpoints").iterdir())) == 2

    def interrupt(self, place: Path, signum: int, after: float) -> str | None:
        """Starts the run and signals it; returns the part that was hit, or None if it had ended."""
        fresh, unfinished = not place.exists(), saves(place)
        run = self.start(place)
        try:
            run.wait(after)
            assert run.returncode == 0, log_of(place)
            if fresh:
                self.seconds = min(self.seconds, after)  # the first run also compiles
            return None
        except subprocess.TimeoutExpired:
            part = "saving" if saves(place) - unfinished else part_of(run, place)
            run.send_signal(signum)
        run.finish(LONGEST_SECONDS)
        if signum == signal.SIGTERM and part != "starting":
            # 0 or -15: the run had written its results and was just ending.
            ended = (0, -signal.SIGTERM) if stored_results_exist(place) else ()
            assert run.returncode in (143, *ended), log_of(place)
        return part


def stored_results_exist(place: Path) -> bool:
    return (place / "W" / "results.json").exists()


def log_of(place: Path) -> str:
    return (place / "log").read_text()[-3000:]


def saves(place: Path) -> set[Path]:
    """Returns the checkpoints that are being saved, or were being saved when the run was killed."""
    return set((place / "W").rglob("*.orbax-checkpoint-tmp*"))


def part_of(run: ForkedRun, place: Path) -> str:
    """Returns the part that the run is in, according to the stacks of its threads."""
    stacks = place / "stacks"
    run.send_signal(signal.SIGUSR1)
    for _ in range(20):
        time.sleep(0.01)
        if stacks.exists() and stacks.stat().st_size:
            break
    text = stacks.read_text() if stacks.exists() else ""
    for part, marks in PARTS.items():
        if any(mark in text for mark in marks):
            return part
    return "ending" if stored_results_exist(place) else "starting"


@pytest.fixture(scope="module")
def kinds(tiny_clip_dir, photos_dir, tmp_path_factory):
    """Returns a function that makes each kind when it is first needed."""
    unsplit = tmp_path_factory.mktemp("unsplit")
    write_photo_folders(unsplit, 5)
    made: dict[str, Kind] = {}

    def kind(name: str) -> Kind:
        if name not in made:
            photos = unsplit if name == "folds" else photos_dir
            made[name] = Kind(name, tiny_clip_dir, photos, tmp_path_factory.mktemp(name))
        return made[name]

    return kind


def check_chain(kind: Kind, place: Path, signals: list[int], seed: int) -> None:
    """Signals each start of a run until it has results, compares them, and starts another run."""
    rng = random.Random(seed)
    parts: list[str] = []
    runs = 0
    while len(parts) < len(signals):
        run = place / str(runs)
        part = kind.interrupt(run, signals[len(parts)], rng.uniform(0, kind.seconds))
        if part is not None:
            parts.append(f"{signal.Signals(signals[len(parts)]).name} {part}")
        if (run / "W" / "results.json").exists() or len(parts) == len(signals):
            assert kind.start(run).finish(LONGEST_SECONDS) == 0, log_of(run)
            kind.compare(run)
            runs += 1
    print(f"\n{runs} runs of {kind.seconds:.1f} s ended as one without {', '.join(parts)}")


def test_an_interrupted_run_ends_like_an_undisturbed_one(kinds, tmp_path):
    check_chain(kinds("short"), tmp_path, [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["epoch", "once", "folds"])
def test_a_run_killed_many_times_ends_like_an_undisturbed_one(kinds, tmp_path, name, seed):
    check_chain(kinds(name), tmp_path, 10 * [signal.SIGKILL], seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["epoch", "once", "folds"])
def test_a_run_terminated_many_times_ends_like_an_undisturbed_one(kinds, tmp_path, name):
    check_chain(kinds(name), tmp_path, 4 * [signal.SIGTERM], 3)
