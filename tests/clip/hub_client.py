"""Finds checkpoints on a hub in new processes: the hub's client reads its environment at import.

The processes are forked from one that has imported the package but not the client, because each
import of the package takes longer than the search.
"""

import multiprocessing
import os
from pathlib import Path

from fgvpl_jax.clip.hub import find_checkpoint

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


def find_elsewhere(name: str, home: Path, **environment: str) -> tuple[str, str | None]:
    """Runs `find_checkpoint` in a process with this cache and these environment variables.

    Returns:
        The directory and the revision.
    """
    keep = {n: v for n, v in os.environ.items() if not n.upper().endswith("_PROXY")}
    variables = keep | {"HF_HOME": str(home)} | environment
    with _FORKS.Pool(1, _set_environment, (variables,)) as pool:  # ends a process that hangs
        directory, revision = pool.apply_async(find_checkpoint, (name,)).get(120)
    return str(directory), revision


def _set_environment(variables: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(variables)
