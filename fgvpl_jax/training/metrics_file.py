"""The file `metrics.jsonl` of a training run: one line per epoch, kept in step with checkpoints."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json, written_whole
from fgvpl_jax.training.train_step import StepMetrics

EpochMetrics = dict[str, float | int]


def epoch_metrics(
    epoch: int, steps: Sequence[StepMetrics], seconds: float, encoding_seconds: float
) -> EpochMetrics:
    """Returns one line of the file; loss and accuracy are of the augmented images.

    Args:
        epoch: Number of the epoch, from 1.
        steps: Metrics of all its steps, fetched from the device.
        seconds: Duration of the epoch.
        encoding_seconds: Part of it in which frozen features or tokens were encoded or read.
    """
    loss, correct, weight = (float(sum(column)) for column in zip(*steps, strict=True))
    return {
        "epoch": epoch,
        "loss": loss / weight,
        "accuracy": correct / weight,
        "seconds": round(seconds, 3),
        "encoding_seconds": round(encoding_seconds, 3),
        "images_per_second": round(weight / seconds, 1),
    }


def append_line(file: Path, line: EpochMetrics) -> None:
    """Appends a line and flushes it to disk, before the checkpoint that counts it is written."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def keep_first_lines(file: Path, count: int) -> None:
    """Cuts the file to its first `count` lines; creates an empty file if `count` is 0.

    Raises:
        UserError: If a line is missing or damaged, see `read_metrics`.
    """
    text = "".join(json.dumps(line) + "\n" for line in read_metrics(file, count))
    with written_whole(file) as stream:
        stream.write(text.encode())


def read_metrics(file: Path, count: int) -> list[EpochMetrics]:
    """Reads the lines of the first `count` epochs.

    Raises:
        UserError: If a line is missing or damaged.
    """
    if not count:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()[:count]
        metrics = [parse_json(line) for line in lines]
        found = [line["epoch"] for line in metrics if math.isfinite(line["seconds"])]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error!r}): restore it, or start again in another workdir"
        ) from error
    if found != list(range(1, count + 1)):
        raise UserError(
            f"{file} holds {len(found)} of the {count} epochs that were trained: restore it, or "
            "start again in another workdir"
        )
    return metrics
