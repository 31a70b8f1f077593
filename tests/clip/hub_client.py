"""Finds checkpoints on a hub in new processes: the hub's client reads its environment at import."""

import os
from pathlib import Path

from fgvpl_jax.clip import hub
from tests.forks import FORKS


def find_elsewhere(
    name: str, home: Path, *, timeout_seconds: float = hub.TIMEOUT_SECONDS, **environment: str
) -> tuple[str, str | None]:
    """Runs `find_checkpoint` in a process with this cache and these environment variables.

    Args:
        name: Name of the repository.
        home: Folder of the cache.
        timeout_seconds: How long to wait for an answer of the hub.
        **environment: Environment variables.
    Returns:
        The directory and the revision.
    """
    keep = {n: v for n, v in os.environ.items() if not n.upper().endswith("_PROXY")}
    variables = keep | {"HF_HOME": str(home)} | environment
    with FORKS.Pool(1, _set_up, (variables, timeout_seconds)) as pool:  # ends a process that hangs
        directory, revision = pool.apply_async(hub.find_checkpoint, (name,)).get(120)
    return str(directory), revision


def _set_up(variables: dict[str, str], timeout_seconds: float) -> None:
    hub.TIMEOUT_SECONDS = timeout_seconds
    os.environ.clear()
    os.environ.update(variables)
