"""Start reports: a worker tells its parent, through a pipe, that it serves or why it cannot.

A report is one byte once the worker serves; otherwise it is the reason, a NUL and the traceback.
The parent closes its end after the byte, and reads a failure after the worker has exited.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

READY: Final = b"!"
MAX_REASON_CHARACTERS: Final = 1_000
MAX_TRACEBACK_CHARACTERS: Final = 30_000
"""What remains fits into a pipe, so that a worker never waits for its parent to read."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StartFailure:
    """Why a worker cannot start."""

    reason: str
    """One line of printable characters."""
    traceback: str = ""
    event: str = "worker_start_failed"
    """The name of its log event."""

    @property
    def frames(self) -> tuple[str, ...]:
        """The traceback without the message, which may vary: equal for one fault."""
        lines = (line.lstrip(" |") for line in self.traceback.splitlines())  # groups are indented
        return tuple(line for line in lines if line.startswith("File "))


class StartReporter:
    """The worker's end of the pipe."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def report_ready(self) -> None:
        """Raises `BrokenPipeError` if the parent was killed, which ends the worker."""
        os.write(self._pipe, READY)
        os.close(self._pipe)
        self._pipe = -1

    def report_failure(self, reason: str, traceback: str = "") -> None:
        """Sends the failure to the parent, or logs it if the worker already serves."""
        line = " ".join(reason.split())[:MAX_REASON_CHARACTERS]
        line = "".join(character if character.isprintable() else "?" for character in line)
        if self._pipe < 0:
            log_failure("worker_failed", pid=os.getpid(), reason=line, traceback=traceback)
            return
        # The end of a traceback is the message, which the reason has too.
        report = f"{line}\0{traceback[:MAX_TRACEBACK_CHARACTERS]}"
        with suppress(OSError):
            os.write(self._pipe, report.encode(errors="backslashreplace"))


def read_failure(report: bytes, exit_code: int) -> StartFailure:
    """The failure in a worker's report, or in its exit code if it sent none."""
    # A worker that is killed while it writes may leave half a character.
    reason, _, traceback = report.decode(errors="replace").partition("\0")
    if exit_code < 0:
        reason = f"signal {-exit_code} ({signal.strsignal(-exit_code)}) ended the worker"
    fallback = f"the worker exited with status {exit_code} before it served"
    return StartFailure(reason or fallback, traceback)


def log_failure(event: str, *, pid: int | None, reason: str, traceback: str = "") -> None:
    """Logs the end of a worker. A failed fork has no `pid`."""
    fields = {"pid": pid, "reason": reason, "exception": traceback}
    log.error(event, **{name: value for name, value in fields.items() if value})
