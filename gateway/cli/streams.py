"""Standard output and standard error, where a failed write means the same for every command.

A write to standard output that fails ends the command: `OutputLost` is no `OSError`, so no handler
takes it for an error of another file. A write to standard error that fails is dropped. Either way
the stream discards what follows, so that nothing fails once more when the interpreter exits.
"""

from __future__ import annotations

import errno
import io
import select
import sys
from typing import Any, TextIO


class OutputLost(Exception):
    """Standard output cannot be written: the disk is full, or nothing reads the pipe any more."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.reason = str(error.strerror)
        self.has_no_reader = error.errno == errno.EPIPE


class _Output(io.FileIO):
    """A descriptor that takes whole writes, and discards all that follow one that fails."""

    is_lost = False

    def write(self, data: Any, /) -> int:
        if self.is_lost:
            return len(data)
        try:
            return self.write_now(data)
        except OSError as error:
            self.is_lost = True
            raise OutputLost(error) from None

    def write_now(self, data: Any) -> int:
        """Waits for the reader of a full pipe, also of one that does not block."""
        while (written := super().write(data)) is None:
            full = select.poll()
            full.register(self.fileno(), select.POLLOUT)
            full.poll()
        return written


class _ErrorOutput(_Output):
    def write(self, data: Any, /) -> int:
        """Drops what a full pipe that does not block cannot take: no request waits for a log."""
        # In one step: every request writes a line.
        written = None
        if not self.is_lost:
            try:
                written = io.FileIO.write(self, data)
            except OSError:
                self.is_lost = True
        return len(data) if written is None else written


def open_streams() -> None:
    """Puts them in the place of Python's own."""
    sys.stdout = _opened(sys.stdout, _Output)
    sys.stderr = _opened(sys.stderr, _ErrorOutput)


def _opened(stream: TextIO, output: type[_Output]) -> TextIO:
    return io.TextIOWrapper(
        io.BufferedWriter(output(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.isatty() or output is _ErrorOutput,
    )
