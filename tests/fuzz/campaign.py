"""Passes many damaged files to every reader; reports counts, coverage and peak memory.

    python -m tests.fuzz.campaign --inputs 1000000

Coverage.py measures branches for the first inputs of each reader, but not for the rest. Inputs that
break a promise are saved in `--finds`, one file each, and the exit code is 1.
"""

import argparse
import ast
import hashlib
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType

import coverage

ROOT = Path(__file__).parents[2]
LONGEST_SECONDS = 20  # limit per input, to detect hangs
MOST_GROWTH_MB = 1024  # limit for the process, relative to the valid files
MEASURED = ("fgvpl_jax/*",)
# Slow readers get a smaller share: transformers, PyTorch and ml_collections take milliseconds.
SHARES = {"config.json": 0.02, "pytorch": 0.05, "overrides": 0.1, "support.npz": 0.5}


class Hang(BaseException):
    """Raised if an input takes longer than the limit."""


def on_alarm(signum: int, frame: FrameType | None) -> None:
    raise Hang(f"longer than {LONGEST_SECONDS} s")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spans(file: Path, functions: tuple[str, ...]) -> Iterator[range]:
    """Yields the line numbers of each function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name in functions:
            found.add(node.name)
            yield range(node.lineno, (node.end_lineno or node.lineno) + 1)
    assert found == set(functions), f"{file} has no {set(functions) - found}"


def branch_row(measured: coverage.Coverage, name: str, functions: tuple[str, ...]) -> str:
    """Returns a table row: branches taken in these functions, and lines with other branches."""
    file = ROOT / name
    lines = {line for span in spans(file, functions) for line in span}
    exits = {n: v for n, v in measured.branch_stats(str(file)).items() if n in lines}
    total, taken = (sum(column) for column in zip((0, 0), *exits.values(), strict=True))
    partly = [str(line) for line, (leaving, hit) in exits.items() if hit < leaving]
    return f"| {name} | {taken} of {total} | {taken / max(total, 1):.0%} | {', '.join(partly)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--under_coverage", type=int, default=2_000, help="inputs of each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="names of the readers to run")
    parser.add_argument("--finds", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow and numpy warn about files that they then refuse
    signal.signal(signal.SIGALRM, on_alarm)
    measured = coverage.Coverage(branch=True, include=MEASURED, data_file=None)
    measured.start()  # before the readers are imported
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        from tests.fuzz.targets import all_targets

        targets = all_targets(Path(name).resolve())
        measured.stop()
        chosen = {n: t for n, t in targets.items() if not options.only or n in options.only}
        whole = sum(SHARES.get(n, 1.0) for n in chosen)
        covers: defaultdict[str, set[str]] = defaultdict(set)
        done = broken = 0
        for n, target in chosen.items():
            counts: Counter[str] = Counter()
            rng = Random(f"{options.seed} {n}")
            for data in target.seeds:
                target.accepts(data)
            before, started = peak_mb(), time.monotonic()
            inputs = max(1, round(options.inputs * SHARES.get(n, 1.0) / whole))
            corpus = list(target.seeds)
            for number in range(inputs):
                if number in (0, options.under_coverage):
                    (measured.start if number == 0 else measured.stop)()
                data = target.input(rng, corpus)
                signal.alarm(LONGEST_SECONDS)
                try:
                    counts["accepted" if target.accepts(data) else "refused"] += 1
                except (Exception, Hang) as error:
                    counts["broken"] += 1
                    keep_find(options.finds, n, data, error)
                signal.alarm(0)
                if peak_mb() - before > MOST_GROWTH_MB:
                    counts["broken"] += 1
                    keep_find(options.finds, n, data, MemoryError(f"{peak_mb():.0f} MB"))
                    before = peak_mb()
            if inputs <= options.under_coverage:
                measured.stop()
            for file, functions in target.covers.items():
                covers[file].update(functions)
            broken += counts["broken"]
            seconds = time.monotonic() - started
            print(
                f"| {n} | {inputs:,} | {counts['accepted']:,} | {counts['refused']:,} | "
                f"{counts['broken']} | {peak_mb() - before:.0f} MB | {inputs / seconds:,.0f} |",
                flush=True,
            )
            done += inputs
    for file, names in covers.items():
        print(branch_row(measured, file, tuple(names)))
    print(f"{len(chosen)} readers, {done:,} inputs, {broken} broken promises")
    return 1 if broken else 0


def keep_find(folder: Path, name: str, data: bytes, error: BaseException) -> None:
    """Saves an input that broke the promise of its reader; prints the file and the error."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name.replace(' ', '_')}_{hashlib.sha256(data).hexdigest()[:12]}"
    file.write_bytes(data)
    last = traceback.extract_tb(error.__traceback__)[-1:]
    print(f"{file}: {type(error).__name__}: {str(error)[:200]} {last}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
