"""Compares "auto" with every method that it tried, and counts how often its interval is right.

    python -m benchmarks.auto_methods CONFIG FOLDER --shots 1 4 16 --seeds 1 2 3 [--minutes=5]

CONFIG is the name of a file in `configs/`, FOLDER keeps the runs. All accuracies are on the test
split, which is read after each choice. With `--undrawn=N` they are on N training images that were
not drawn, and no test image is read. `--methods` names the methods that may be tried.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from benchmarks.measuring import report
from fgvpl_jax.commands.shipped_configs import config_named
from fgvpl_jax.data import Split
from fgvpl_jax.methods import AUTO, METHODS
from fgvpl_jax.runs import candidates
from fgvpl_jax.runs.automatic import train_auto, trained_on_all, with_shared_features
from fgvpl_jax.runs.prepare import prepare
from fgvpl_jax.runs.run import Run
from fgvpl_jax.runs.workdir import Workdir


def main(
    config: ConfigDict, folder: Path, shots: Sequence[int], seeds: Sequence[int], undrawn: int
) -> list[dict[str, Any]]:
    """Returns, for each number of shots, mean accuracies and the share of right intervals."""
    rows = []
    for count in shots:
        found = []
        for seed in seeds:
            config.shots, config.seed = count, seed
            found.append(compare(config, Workdir(folder / f"shots={count},seed={seed}"), undrawn))
            print(json.dumps(found[-1]), flush=True)
        names = [name for name in ("auto", *METHODS) if all(name in one for one in found)]
        rows.append(
            {
                "shots": count,
                "draws": len(found),
                "interval is right": float(np.mean([one["interval is right"] for one in found])),
                "estimate less accuracy": float(
                    np.mean([one["estimate"] - one["auto"] for one in found])
                ),
                **{name: float(np.mean([one[name] for one in found])) for name in names},
            }
        )
    return rows


def compare(config: ConfigDict, workdir: Workdir, undrawn: int) -> dict[str, Any]:
    """Returns the accuracies of "auto" and of each method that it tried, in one draw."""
    run = prepare(config, workdir)
    if undrawn:
        run = replace(run, dataset=replace(run.dataset, test=undrawn_images(run, undrawn)))
    results = train_auto(run, time.monotonic())
    assert results.test_accuracy is not None and results.cv_interval is not None
    low, high = results.cv_interval
    row: dict[str, Any] = {
        "shots": config.shots,
        "seed": config.seed,
        "chosen": results.reason,
        "estimate": results.cv_accuracy,
        "interval": (low, high),
        "interval is right": low <= results.test_accuracy <= high,
        "auto": results.test_accuracy,
    }
    run, _ = with_shared_features(run)
    assert run.dataset.test is not None
    for one in results.tried or ():
        if one.nll is not None:
            final = trained_on_all(candidates.candidate_run(run, one.method))
            found = final.evaluator.predict(run.dataset.test, final.chosen.choices, name="test")
            row[one.method] = float((found.logits.argmax(axis=1) == found.labels).mean())
    return row


def undrawn_images(run: Run, count: int) -> Split:
    """Returns training images that are neither support nor validation images."""
    few_shot = run.few_shot
    drawn = {*few_shot.support.keys, *(few_shot.validation.keys if few_shot.validation else ())}
    train = run.dataset.train
    free = [place for place, key in enumerate(train.keys) if key not in drawn]
    chosen = np.random.default_rng(run.config.seed).permutation(free)[:count]
    return train.select(np.sort(chosen).tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--undrawn", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=[*METHODS])
    parser.add_argument("--root", default=None)
    parser.add_argument("--clip", default=None)
    given = parser.parse_args()
    settings = config_named(given.config)
    settings.method, settings.minutes = AUTO, given.minutes
    settings.data.root = given.root or settings.data.root
    settings.clip = given.clip or settings.clip
    candidates.METHODS = {name: METHODS[name] for name in given.methods}
    rows = main(settings, given.folder, given.shots, given.seeds, given.undrawn)
    report({f"{row['shots']} shots": row for row in rows})
