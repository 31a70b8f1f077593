"""Tries methods while time allows; what was tried is recorded, so that a resumed run agrees."""

import time
from dataclasses import asdict, dataclass

import jax

from fgvpl_jax.displays.live_table import duration
from fgvpl_jax.errors import SharedError, UserError, problem_of
from fgvpl_jax.files import read_json
from fgvpl_jax.runs.candidates import (
    PhotoFolds,
    candidate_runs,
    held_out_photos,
    is_closed_form,
    least_seconds,
    predict_seconds,
)
from fgvpl_jax.runs.mixing import held_out_scores
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.workdir import Workdir
from fgvpl_jax.training import is_writer, slowest

# Part of the time that may be spent on measuring how fast methods are.
MOST_MEASURING = 0.25


@dataclass
class Attempt:
    """State of one method, as stored in `tried.json`.

    Attributes:
        method: Name of the method.
        predicted_seconds: Predicted time of its folds and its final training; None if unknown.
        final_seconds: Part of it that the final training takes, which only a winner needs.
        measuring_seconds: Time spent on the prediction.
        seconds: Time that its held-out logits took.
        finished: Whether its held-out logits are known.
        note: Reason why it was not tried, or why it failed.
        may_succeed: Whether it failed by an unexpected error, such as a full disk, and not by its
            photos or settings: the same command tries it again.
    """

    method: str
    predicted_seconds: float | None = None
    final_seconds: float = 0.0
    measuring_seconds: float = 0.0
    seconds: float = 0.0
    finished: bool = False
    note: str = ""
    may_succeed: bool = False

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing left to decide or to do."""
        return self.finished or bool(self.note)


class Record:
    """The attempts of a run, in the order in which they were decided.

    Args:
        workdir: Folder of the run.
    """

    def __init__(self, workdir: Workdir):
        self._workdir = workdir
        self.attempts: dict[str, Attempt] = {}
        self.is_complete = False
        if workdir.record_file.exists():
            content = read_json(workdir.record_file)
            try:
                self.attempts = {one["method"]: Attempt(**one) for one in content["attempts"]}
                self.is_complete = bool(content["complete"])
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"{workdir.record_file} is damaged ({error!r}): restore it, or choose another "
                    "workdir"
                ) from error

    def attempt(self, method: str) -> Attempt:
        """Returns the attempt of a method, a new one if there is none yet."""
        return self.attempts.setdefault(method, Attempt(method))

    def forget_failures(self) -> None:
        """Forgets the attempts that the same command tries again."""
        for name, attempt in self.attempts.items():
            if attempt.may_succeed:
                self.attempts[name] = Attempt(name)
                self.is_complete = False

    def write(self) -> None:
        """Writes `tried.json`."""
        attempts = [asdict(attempt) for attempt in self.attempts.values()]
        self._workdir.candidates.mkdir(parents=True, exist_ok=True)
        self._workdir.write(
            self._workdir.record_file, {"complete": self.is_complete, "attempts": attempts}
        )

    @property
    def seconds_spent(self) -> float:
        """Time used so far, with the final trainings that the methods may still need."""
        return sum(
            attempt.measuring_seconds
            + attempt.seconds
            + (attempt.final_seconds if attempt.finished else 0.0)
            for attempt in self.attempts.values()
        )


def try_methods(run: Run, folds: PhotoFolds, record: Record) -> None:
    """Computes held-out logits of one method after the other, the cheapest first.

    Closed forms run until the time is over, the first of them in any case. The speed of the other
    methods is then measured in short trainings, and they run in the order of their predicted time
    if that much is left.
    """
    record.forget_failures()
    if record.is_complete:
        return
    budget = 60 * run.config.minutes
    candidates = candidate_runs(run, folds)
    for candidate in filter(is_closed_form, candidates):
        attempt = record.attempt(candidate.config.method)
        if any(a.finished for a in record.attempts.values()) and record.seconds_spent >= budget:
            leave_out(record, attempt, "the time was over")
        carry_out_attempt(candidate, folds, record, attempt)
    others = [candidate for candidate in candidates if not is_closed_form(candidate)]
    for candidate in others:
        predict(candidate, folds, record, budget)
    others.sort(key=lambda one: record.attempt(one.config.method).predicted_seconds or 0.0)
    for candidate in others:
        attempt = record.attempt(candidate.config.method)
        needed = attempt.predicted_seconds or 0.0
        if needed > budget - record.seconds_spent:
            leave_out(record, attempt, f"needs about {duration(needed)}")
        carry_out_attempt(candidate, folds, record, attempt)
    record.is_complete = True
    record.write()


def leave_out(record: Record, attempt: Attempt, why: str) -> None:
    """Records that a method is not tried, unless its attempt is settled or was interrupted."""
    if not attempt.is_settled and not attempt.seconds:
        attempt.note = f"not tried: {why}"
        record.write()
        say(f"{attempt.method}: {attempt.note}")


def predict(candidate: Run, folds: PhotoFolds, record: Record, budget: float) -> None:
    """Measures how fast a method is, and records the time that it would need."""
    attempt = record.attempt(candidate.config.method)
    if attempt.is_settled or attempt.predicted_seconds is not None:
        return
    measuring = sum(one.measuring_seconds for one in record.attempts.values())
    if measuring >= MOST_MEASURING * budget or record.seconds_spent >= budget:
        leave_out(record, attempt, "no time was left to measure its speed")
        return
    least = least_seconds(candidate, folds)
    if least > budget - record.seconds_spent:
        leave_out(record, attempt, f"needs more than {duration(least)}")
        return
    started = time.monotonic()
    try:
        found = predict_seconds(candidate, folds)
    except Exception as error:
        note_failure(attempt, error)
    else:
        attempt.predicted_seconds = round(found.folds + found.final, 3)
        attempt.final_seconds = round(found.final, 3)
    attempt.measuring_seconds = round(slowest(time.monotonic() - started), 3)
    record.write()


def carry_out_attempt(candidate: Run, folds: PhotoFolds, record: Record, attempt: Attempt) -> None:
    """Computes a method's held-out logits, unless its attempt is settled; records the time."""
    if attempt.is_settled:
        return
    started = time.monotonic() - attempt.seconds  # time before an interruption counts
    try:
        found = held_out_photos(candidate, folds)
    except Exception as error:
        note_failure(attempt, error)
    else:
        attempt.finished = True
        nll, accuracy = held_out_scores(found.logits, found.labels)
        say(f"{attempt.method}: held-out NLL {nll:.3f}, accuracy {accuracy:.1%}")
    finally:  # an interruption may end one process only, so this does not wait for the others
        attempt.seconds = round(time.monotonic() - started, 3)
        record.write()
    attempt.seconds = round(slowest(attempt.seconds), 3)


def note_failure(attempt: Attempt, error: Exception) -> None:
    """Records that a method failed; any error fails only this method, until the next start.

    In a job of several processes, only errors that all of them find do: after another one, the
    others would wait for this process, so it ends.
    """
    if jax.process_count() > 1 and not isinstance(error, SharedError):
        raise error
    attempt.note = f"failed: {problem_of(error)}"
    attempt.may_succeed = not isinstance(error, UserError)
    say(f"{attempt.method}: {attempt.note}")


def say(line: str) -> None:
    """Prints a line on process 0."""
    if is_writer():
        print(line)
