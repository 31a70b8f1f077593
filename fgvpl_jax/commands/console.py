"""Exit codes, the line printed for a mistake, and the library messages that are hidden."""

import os
import re
import sys
from logging import LogRecord, getLogger

from absl import logging

MISTAKE = 2
LOST_PROCESS = 3
INTERRUPTED = 130  # by Ctrl-C; 143 by SIGTERM
BROKEN_PIPE = 141  # as a shell reports a program that nobody reads any more


def complain(message: object) -> int:
    """Prints one line to stderr; returns the exit code of a mistake."""
    print("error:", printable(" ".join(str(message).split())), file=sys.stderr)
    return MISTAKE


def printable(text: str) -> str:
    """Returns the text with its control characters escaped: file names may hold some."""
    return re.sub(r"[^\n\x20-\x7e\xa0-\U0010ffff]", lambda c: f"\\x{ord(c[0]):02x}", text)


def quieten_libraries() -> None:
    """Hides what libraries print about things that are no news to a user of the command."""
    logging.set_verbosity(logging.WARNING)  # orbax logs every file at INFO
    for logger in (logging.get_absl_logger(), getLogger("asyncio")):
        logger.addFilter(_is_not_from_orbax)
        logger.addFilter(_make_printable)
    sys.unraisablehook = _hide_late_writes
    # transformers warns when PyTorch is absent.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _make_printable(record: LogRecord) -> bool:
    """Escapes control characters, because warnings name files of the user's folder."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _is_not_from_orbax(record: LogRecord) -> bool:
    """Orbax logs errors with their stacks, then raises them; `main` reports them in one line."""
    reason = str(record.exc_info[1]) if record.exc_info else ""
    return "orbax" not in record.pathname and "tensorstore" not in reason


def _hide_late_writes(unraisable: "sys.UnraisableHookArgs") -> None:
    """Hides the writes that were pending when a save failed: orbax has closed their event loop."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
