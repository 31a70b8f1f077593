"""Times `import fgvpl_jax` and `run.py --help`, compared with `import jax`.

    python -m benchmarks.import_time

Each runs in its own process, in turns. The goal is at most twice the time of jax.
"""

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax

from benchmarks.measuring import report

ROOT = Path(__file__).parents[1]
ROUNDS = 7
COMMANDS = {
    "import jax": ["-c", "import jax"],
    "import fgvpl_jax": ["-c", "import fgvpl_jax"],
    "import fgvpl_jax; load_classifier": ["-c", "import fgvpl_jax; fgvpl_jax.load_classifier"],
    "run.py --help": ["run.py", "--help"],
    "run.py, a config, a mistake": ["run.py", "--config=configs/eurosat.py"],
}


def seconds(arguments: list[str]) -> float:
    """Returns the seconds of one process; the last command exits with code 2."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    return time.perf_counter() - started


def main() -> dict[str, Any]:
    """Returns medians in seconds and as multiples of that of `import jax`."""
    for arguments in COMMANDS.values():
        seconds(arguments)  # brings the files into the system's cache
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    reference = median(times["import jax"])
    result: dict[str, Any] = {"rounds": ROUNDS}
    for name, values in times.items():
        result[f"{name}, seconds"] = median(values)
        result[f"{name}, over import jax"] = median(values) / reference
    return result


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # only the host is measured
    report(main())
