"""Stops a run on SIGTERM or Ctrl-C without losing anything.

Outside `deferred` a signal raises at once, because the code that runs there leaves only complete
files. Inside `deferred` the signal is recorded, and the training loop chooses where to stop. All of
this applies only inside `handling_signals`, which only the package's own programs enter.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A shell reports a process that a signal ended with this number plus the signal's.
SIGNAL_EXIT_CODE = 128
STDERR = 2


class Interrupted(KeyboardInterrupt):
    """Raised on a signal. Like its base class, it passes through `except Exception`.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int, message: str = "interrupted") -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """Exit code of the process: 143 for SIGTERM, 130 for Ctrl-C."""
        return SIGNAL_EXIT_CODE + self.signum


# Global to the process, because signal handlers are.
_requested: int | None = None
_deferring = False


def requested() -> int | None:
    """Returns the signal that has been recorded; None if there was no signal."""
    return _requested


def note(signum: int) -> None:
    """Records a signal that another process of the job received."""
    global _requested
    _requested = signum


@contextmanager
def handling_signals() -> Iterator[None]:
    """Handles SIGTERM and Ctrl-C inside the block, as described above; main thread only.

    A second signal ends the process at once if it is Ctrl-C. If it is SIGTERM it is ignored: batch
    systems send several.
    """
    global _requested
    before = [signal.signal(signum, _handle) for signum in SIGNALS]
    try:
        yield
    finally:
        _requested = None
        for signum, handler in zip(SIGNALS, before, strict=True):
            signal.signal(signum, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Defers signals to the end of the block."""
    with _set_deferring(True):
        yield
    if _requested is not None:
        raise Interrupted(_requested)


@contextmanager
def at_once() -> Iterator[None]:
    """Lets signals raise at once inside `deferred`, including one that was recorded before."""
    with _set_deferring(False):
        if _requested is not None:
            raise Interrupted(_requested)
        yield


@contextmanager
def _set_deferring(value: bool) -> Iterator[None]:
    global _deferring
    before, _deferring = _deferring, value
    try:
        yield
    finally:
        _deferring = before


def _handle(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested is not None:
        if signum == signal.SIGINT:
            os._exit(SIGNAL_EXIT_CODE + signum)
        return
    _requested = signum
    if not _deferring:
        raise Interrupted(signum)
    # Not with print, because the signal may have interrupted a print.
    with suppress(OSError):
        os.write(STDERR, b"\nstopping after the current steps; Ctrl-C (again) exits at once\n")
