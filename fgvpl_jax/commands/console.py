"""What the command prints on mistakes, and the exit codes that go with it."""

import re
import sys

MISTAKE = 2
LOST_PROCESS = 3
INTERRUPTED = 130  # by Ctrl-C; 143 by SIGTERM


def complain(message: object) -> int:
    """Prints one line to stderr; returns the exit code of a mistake."""
    print("error:", printable(" ".join(str(message).split())), file=sys.stderr)
    return MISTAKE


def printable(text: str) -> str:
    """Returns the text with its control characters escaped: file names may hold some."""
    return re.sub(r"[^\n\x20-\x7e\xa0-\U0010ffff]", lambda c: f"\\x{ord(c[0]):02x}", text)
