"""Signals of the parent process, as numbers in a pipe."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
HANDLED_SIGNALS: Final = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


@dataclass(frozen=True, slots=True)
class SignalPipe:
    """A pipe to which Python writes the number of each arriving signal.

    A number stays until it is read, so no signal is lost between a check and a wait.
    """

    read_end: int
    write_end: int

    def numbers(self) -> bytes:
        """The signals that have arrived."""
        with suppress(BlockingIOError):
            return os.read(self.read_end, 4096)
        return b""

    def close(self) -> None:
        """Closes both ends."""
        os.close(self.read_end)
        os.close(self.write_end)


@contextmanager
def open_signal_pipe() -> Iterator[SignalPipe]:
    """Sends the signals of `HANDLED_SIGNALS` to a pipe; restores the previous handlers at exit."""
    pipe = SignalPipe(*os.pipe())
    os.set_blocking(pipe.read_end, False)
    # `set_wakeup_fd` refuses a descriptor that blocks.
    os.set_blocking(pipe.write_end, False)
    signal.set_wakeup_fd(pipe.write_end, warn_on_full_buffer=False)
    # Python writes a signal to the pipe only if it has a handler in Python, even an empty one.
    former = {number: signal.signal(number, lambda *_: None) for number in HANDLED_SIGNALS}
    try:
        yield pipe
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        pipe.close()
