"""How a run is told to stop: SIGTERM and Ctrl-C are acted on where nothing is lost.

Outside of `deferred` a signal raises at once: whatever is at work leaves only whole files. Inside,
it is noted, and the training loop ends at a place of its own choosing. Nothing here happens before
`handling_signals` is entered, which only a program of ours does.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A shell's code for a process that a signal ended.
SIGNAL_EXIT_CODE = 128
STDERR = 2


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end. Like its base, no `except Exception` takes it for a failure.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int, message: str = "interrupted"):
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """143 for SIGTERM, 130 for Ctrl-C."""
        return SIGNAL_EXIT_CODE + self.signum


# Of the process, as signal handlers are.
_requested: int | None = None
_deferring = False


def requested() -> int | None:
    """The signal that asked for the end; None where none did."""
    return _requested


def note(signum: int) -> None:
    """Takes over what another process of the job was asked."""
    global _requested
    _requested = signum


@contextmanager
def handling_signals() -> Iterator[None]:
    """Handles SIGTERM and Ctrl-C as said above, in the main thread, until it is left.

    A second Ctrl-C ends the process at once. A second SIGTERM does not: batch systems send several.
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
    """Signals are noted until the end of the block."""
    with _set_deferring(True):
        yield
    if _requested is not None:
        raise Interrupted(_requested)


@contextmanager
def at_once() -> Iterator[None]:
    """Within `deferred`: signals raise, also one that was noted before."""
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
    # Not by print, which may be at work in the very code that the signal came upon.
    with suppress(OSError):
        os.write(STDERR, b"\nstopping after the steps at work; Ctrl-C (again) exits at once\n")
