"""Several processes as one job: how they join, which one writes, and what they exchange."""

import json
import os
import sys
import threading
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from jax.experimental import multihost_utils

from fgvpl_jax import interruption
from fgvpl_jax.data import Share
from fgvpl_jax.errors import UserError

# A process without a heartbeat for this time counts as dead and all others end; a process that ends
# waits this long for the others. With jax's own 100 and 300 seconds a broken job holds its machines
# for longer.
TIMEOUT_SECONDS = 30
START_TIMEOUT_SECONDS = 300  # machines do not start at the same moment
SILENT_SECONDS = 5  # a longer wait for the other processes is reported
ALONE = "; to train with this process alone, add --num_processes=1"


class LostProcesses(UserError):
    """The processes of a job did not find each other; a thread of jax may still wait for them."""


def join_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process part of a job; must be called before anything is computed.

    On TPU VMs, and under Slurm or Open MPI, jax finds the other processes itself. Elsewhere,
    without arguments, this process is the whole job. It is also the whole job if `num_processes` is
    1 and nothing else is given.

    Args:
        coordinator_address: `host:port` at which process 0 can be reached.
        num_processes: Number of processes in the job.
        process_id: Number of this process, from 0.
    Raises:
        UserError: If only some arguments are given, or the cluster describes the job wrongly.
        LostProcesses: If the processes do not find each other.
    """
    given = (coordinator_address, num_processes, process_id)
    if given == (None, 1, None):
        return
    if given == (None, None, None) and os.environ.get("SLURM_NTASKS") == "1":
        return  # jax would give a Slurm task a single GPU, although there is no other task
    # The service would take over SIGTERM from the handler of the program.
    jax.config.update("jax_enable_preemption_service", False)
    error = _initialize(given)
    if error is None:
        return
    reason = " ".join(str(error).split()) or type(error).__name__
    if given != (None, None, None) and isinstance(error, ValueError):
        raise UserError(
            f"{reason} Give coordinator_address (HOST:PORT), num_processes and process_id (from 0) "
            "to every process"
        ) from error
    if isinstance(error, RuntimeError | TimeoutError):
        raise LostProcesses(
            f"the processes of this job did not find each other ({reason}): start all of them "
            f"within {START_TIMEOUT_SECONDS} seconds, on machines that can reach each other"
            f"{ALONE}"
        ) from error
    if not str(error).endswith("should be defined."):  # otherwise jax found no cluster
        raise UserError(
            f"the cluster's description of this job cannot be used ({type(error).__name__}: "
            f"{reason}): correct the variables of Slurm, Open MPI or the TPU VM{ALONE}"
        ) from error


def _initialize(given: tuple[str | None, int | None, int | None]) -> Exception | None:
    """Connects to the other processes; returns the error that prevented it, if any.

    Jax waits in a thread, because its wait does not react to signals and ends the process.
    """
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                *given,
                initialization_timeout=2 * START_TIMEOUT_SECONDS,
                heartbeat_timeout_seconds=TIMEOUT_SECONDS,
                shutdown_timeout_seconds=TIMEOUT_SECONDS,
            )
        except Exception as error:
            errors.append(error)

    waiting = threading.Thread(target=initialize, daemon=True)
    with warnings.catch_warnings():
        # In a Kubernetes pod without its Python client jax warns that it cannot look there.
        warnings.simplefilter("ignore", UserWarning)
        waiting.start()
        waiting.join(SILENT_SECONDS)
        if waiting.is_alive():
            print(
                f"waiting up to {START_TIMEOUT_SECONDS} seconds for the other processes of this "
                f"job (Ctrl-C ends this one){ALONE}",
                file=sys.stderr,
                flush=True,
            )
            waiting.join(START_TIMEOUT_SECONDS - SILENT_SECONDS)
    if waiting.is_alive():
        return TimeoutError(f"no answer for {START_TIMEOUT_SECONDS} seconds")
    return errors[0] if errors else None


def is_writer() -> bool:
    """Returns whether this process writes the run's files and prints: process 0 does."""
    return jax.process_index() == 0


def process_share() -> Share:
    """Returns the part of the data that this process reads."""
    return Share(jax.process_index(), jax.process_count())


def gather_arrays(ours: np.ndarray) -> list[np.ndarray]:
    """Returns the array of each process; every process must call this function.

    Args:
        ours: Array of at most 32 bits a number; its first axis may differ between processes.
    """
    if jax.process_count() == 1:
        return [ours]
    sizes = multihost_utils.process_allgather(np.int32(len(ours)))
    padding = [(0, sizes.max() - len(ours))] + [(0, 0)] * (ours.ndim - 1)
    found = multihost_utils.process_allgather(np.pad(ours, padding))
    return [theirs[:size] for theirs, size in zip(found, sizes, strict=True)]


def gather_rows(ours: np.ndarray) -> np.ndarray:
    """Returns the rows of all processes, in their order; see `gather_arrays`."""
    return np.concatenate(gather_arrays(ours))


def gather_texts(texts: Iterable[str]) -> list[str]:
    """Returns the texts of all processes, in their order; every process must call this function."""
    ours = np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)
    return [text for theirs in gather_arrays(ours) for text in json.loads(theirs.tobytes())]


def agree_to_stop() -> bool:
    """Returns whether a signal asked any process to stop; all then stop after the same step.

    Every process must call this function.
    """
    signum = interruption.requested() or 0
    if jax.process_count() > 1:
        signum = int(multihost_utils.process_allgather(np.int32(signum)).max())
        if signum:
            interruption.note(signum)
    return bool(signum)


def slowest(seconds: float) -> float:
    """Returns the longest time of all processes; every process must call this function."""
    if jax.process_count() == 1:
        return seconds
    return float(multihost_utils.process_allgather(np.float32(seconds)).max())


def stoppable() -> AbstractContextManager:
    """Lets a signal raise at once; with several processes never, as the others would wait."""
    return interruption.at_once() if jax.process_count() == 1 else nullcontext()


def wait_for_all(name: str) -> None:
    """Waits until every process has called this function.

    Args:
        name: Name of the place in the program.
    """
    multihost_utils.sync_global_devices(name)
