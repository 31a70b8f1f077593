"""Fuzzes a reader with atheris, which prefers inputs that reach new code (extra `fuzz`).

python -m tests.fuzz.coverage_guided "split file" -atheris_runs=100000
"""

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["fgvpl_jax", "run"]):
    from tests.fuzz.targets import all_targets


def main() -> None:
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as place:
        target = all_targets(Path(place).resolve())[name]

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            corpus = [data] if data.strip() else list(target.seeds)
            return target.input(Random(seed), corpus)[:max_size]

        def one_input(data: bytes) -> None:
            target.accepts(data)

        atheris.Setup([*sys.argv, "-max_len=100000"], one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
