"""Sends a cheap request every few milliseconds, to measure how long an event loop is blocked.

Runs as its own process: `python -m tests.bench.prober URL PID`, where PID is the process that
answers. After SIGTERM it prints a line of JSON with the time of the slowest answer. Time that
either process spent in the kernel's run queue does not count.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

EVERY_SECONDS = 0.003
URGENT = -10
"""A priority that only root may set. Without it, more queue time is subtracted."""


@dataclass
class Longest:
    """The result that is printed at the end."""

    asked: int = 0
    milliseconds: float = 0.0


class Stopped(Exception):
    """SIGTERM was received."""


def queued_seconds(pid: int) -> float:
    """The total time that the main thread of a process has waited for a processor."""
    stat = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text()
    return int(stat.split()[1]) / 1e9


def probe_until_stopped(connection: socket.socket, host: str, path: str, *, pid: int) -> Longest:
    """Sends requests on one connection until SIGTERM."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    longest, own = Longest(), os.getpid()
    with contextlib.suppress(Stopped):
        while True:
            queued = queued_seconds(pid) + queued_seconds(own)
            started = time.perf_counter()
            connection.sendall(request)
            if b" 200 OK" not in connection.recv(65_536):
                raise ConnectionError("no answer")
            seconds = time.perf_counter() - started
            seconds -= queued_seconds(pid) + queued_seconds(own) - queued
            longest.milliseconds = max(longest.milliseconds, seconds * 1000)
            longest.asked += 1
            time.sleep(EVERY_SECONDS)
    return longest


def _stop(*_: object) -> None:
    raise Stopped


def main() -> None:
    """Probes until SIGTERM."""
    url, pid = sys.argv[1:]
    parts = urlsplit(url)
    with contextlib.suppress(PermissionError):
        os.nice(URGENT)
    signal.signal(signal.SIGTERM, _stop)
    with socket.create_connection((parts.hostname or "", parts.port or 80)) as connection:
        longest = probe_until_stopped(connection, parts.netloc, parts.path, pid=int(pid))
    print(json.dumps(vars(longest)))  # noqa: T201


if __name__ == "__main__":
    main()
