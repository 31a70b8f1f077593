"""Standard output and error that do not end a run when they are closed, full or without reader."""

import io
import os
import select
import sys

STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}


class SteadyOutput(io.RawIOBase):
    """Writes to a descriptor and discards what cannot be written.

    Attributes:
        lost: The first error of a write; None if everything was written.
    """

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self.lost: OSError | None = None

    def writable(self) -> bool:
        """Returns that this is an output."""
        return True

    def fileno(self) -> int:
        """Returns the descriptor, by which libraries find the size of the terminal."""
        return self._descriptor

    def isatty(self) -> bool:
        """Returns whether somebody watches the output in a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: "bytes | memoryview") -> int:  # type: ignore[override]
        """Writes some of the data, and returns how much."""
        try:
            return os.write(self._descriptor, data)
        except BlockingIOError:  # the reader is slow, and its pipe does not block
            select.select([], [self._descriptor], [])
            return self.write(data)
        except OSError as error:
            self.lost = self.lost or error
            return len(data)


def steady_outputs() -> list[SteadyOutput]:
    """Replaces standard output and error; returns what they write to.

    A stream that was closed when the command began is connected to the null device, because
    libraries would otherwise write to the next file that gets its descriptor.
    """
    descriptors = {name: _descriptor(name, number) for name, number in STREAMS.items()}
    outputs = []
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        output = SteadyOutput(descriptors[name])
        stream = io.TextIOWrapper(
            io.BufferedWriter(output),  # type: ignore[type-var]  # its stub lacks RawIOBase
            encoding=getattr(before, "encoding", None),
            errors="backslashreplace",  # a file's name may hold bytes that are not text
            # `python -u` writes through; lines are as prompt, and quicker.
            line_buffering=before is None or before.line_buffering or before.write_through,
        )
        setattr(sys, name, stream)
        outputs.append(output)
    return outputs


def _descriptor(name: str, number: int) -> int:
    """Returns the descriptor of a stream, or of the null device if the stream was closed."""
    if getattr(sys, name) is not None:
        return number
    # The lowest free number, so that this is the stream's own unless a library has taken that.
    return os.open(os.devnull, os.O_RDWR)


def output_error() -> OSError | None:
    """Returns the first error of a write to standard output, if there was one."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return getattr(raw, "lost", None)
