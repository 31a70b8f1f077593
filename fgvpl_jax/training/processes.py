"""Several processes as one job: joining them, who writes, and what they tell each other."""

import json
import os
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgvpl_jax import interruption
from fgvpl_jax.data import Share
from fgvpl_jax.errors import UserError

# After so long without a sign of life a process counts as dead and all others end; also how long
# one that ends waits for the others. jax's own 100 and 300 seconds hold a broken job's machines.
TIMEOUT_SECONDS = 30
START_TIMEOUT_SECONDS = 300  # machines do not start at the same moment


def join_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of a job's; to be called before anything is computed.

    On TPU VMs, and where Slurm or Open MPI started several processes, jax finds the others itself.
    Without them and without arguments this process is the whole job.

    Args:
        coordinator_address: `host:port` that process 0 can be reached at.
        num_processes: Of the whole job.
        process_id: This one's number, from 0.
    Raises:
        UserError: If only some are given, or the processes do not find each other.
    """
    given = (coordinator_address, num_processes, process_id)
    if given == (None, None, None) and os.environ.get("SLURM_NTASKS") == "1":
        return  # jax would take one GPU for a Slurm task, though there is no other task
    # It would take SIGTERM for itself, from whoever handles it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with warnings.catch_warnings():
            # In a Kubernetes pod without its Python client jax tells that it cannot look there.
            warnings.simplefilter("ignore", UserWarning)
            jax.distributed.initialize(
                *given,
                initialization_timeout=START_TIMEOUT_SECONDS,
                heartbeat_timeout_seconds=TIMEOUT_SECONDS,
                shutdown_timeout_seconds=TIMEOUT_SECONDS,
            )
    except ValueError as error:  # jax found no cluster, or an argument is missing or out of range
        if given != (None, None, None):
            raise UserError(
                f"{error} Give --coordinator_address=HOST:PORT, --num_processes and --process_id, "
                "from 0, to every process"
            ) from error
    except RuntimeError as error:
        raise UserError(
            f"the processes of this job did not find each other ({error}): start all of them "
            f"within {START_TIMEOUT_SECONDS} seconds, and let them reach {coordinator_address}"
        ) from error


def is_writer() -> bool:
    """Whether this process writes the run's files and speaks for all: process 0 does."""
    return jax.process_index() == 0


def process_share() -> Share:
    """What this process reads."""
    return Share(jax.process_index(), jax.process_count())


def gather_texts(texts: Iterable[str]) -> list[str]:
    """The texts of all processes, by process; every process must call it."""
    ours = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(ours)))
    padded = np.pad(ours, (0, sizes.max() - len(ours)))
    rows = multihost_utils.process_allgather(padded)
    decoded = [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]
    return [text for theirs in decoded for text in theirs]


def agree_to_stop() -> bool:
    """Whether a signal asked any process to end; then all end after the same step.

    Every process must call it.
    """
    signum = interruption.requested() or 0
    if jax.process_count() > 1:
        signum = int(multihost_utils.process_allgather(np.int32(signum)).max())
        if signum:
            interruption.note(signum)
    return bool(signum)


def slowest(seconds: float) -> float:
    """The longest that any process took; every process must call it."""
    if jax.process_count() == 1:
        return seconds
    return float(multihost_utils.process_allgather(np.float32(seconds)).max())


def stoppable() -> AbstractContextManager:
    """Where a signal may raise at once: with several processes nowhere, the others would wait."""
    return interruption.at_once() if jax.process_count() == 1 else nullcontext()


def wait_for_all(name: str) -> None:
    """Returns when every process has come here.

    Args:
        name: Of the place in the program.
    """
    multihost_utils.sync_global_devices(name)
