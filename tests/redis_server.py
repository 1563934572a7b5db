"""A real `redis-server` for tests: started on a free port, empty, gone afterwards.

The environment variable `REDIS_SERVER` names another server program, such as `valkey-server`.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.waiting import GENEROUS_SECONDS, until

MISSING = "redis-server is not installed: apt-get install redis-server"


@contextmanager
def run_redis_server(folder: Path) -> Iterator[str]:
    """Runs a server without persistence whose files lie in `folder`; yields its URL.

    Without the binary the tests that need it are skipped at home and fail where `CI` is `true`.
    """
    process, port = _start(_binary(), folder)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


@dataclass
class DurableRedis:
    """A server that keeps what it acknowledged, and that can die and come back where it was."""

    process: subprocess.Popen[bytes]
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def start_again(self) -> None:
        """On the same port, with what lies in its folder."""
        self.process, self.port = _start(_binary(), self.folder, durable=True, port=self.port)

    def freeze(self) -> None:
        """It takes connections and answers nothing until it is thawed."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def run_durable_redis(folder: Path) -> Iterator[DurableRedis]:
    """Runs a server that writes every change to its append-only file before it answers."""
    server = DurableRedis(*_start(_binary(), folder, durable=True), folder)
    try:
        yield server
    finally:
        server.thaw()
        server.kill()


def refuse_without_server() -> None:
    """Skips the test, or fails it in continuous integration."""
    if os.environ.get("CI") == "true":
        pytest.fail(MISSING, pytrace=False)
    pytest.skip(MISSING)


def fold_missing_server(report: pytest.TestReport) -> None:
    """Gives all skips for want of a server one place, so that they are told in one line."""
    if report.skipped and MISSING in str(report.longrepr):
        line = refuse_without_server.__code__.co_firstlineno
        report.longrepr = (__file__, line, f"Skipped: {MISSING}")


def _binary() -> str:
    binary = shutil.which(os.environ.get("REDIS_SERVER", "redis-server"))
    if binary is None:
        refuse_without_server()
    return str(binary)


def _start(
    binary: str, folder: Path, *, durable: bool = False, port: int | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """A free port may be taken by somebody else before the server binds it: hence three tries."""
    keeps = (
        ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
    )
    for _ in range(3):
        chosen = port or _free_port()
        place = ["--bind", "127.0.0.1", "--port", str(chosen), "--dir", str(folder)]
        process = subprocess.Popen(
            [binary, *place, "--save", "", *keeps], stdout=subprocess.DEVNULL
        )
        if _answers(process, chosen):
            return process, chosen
        process.kill()
        process.wait()
    pytest.fail("redis-server did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether this very process serves the port; False when it ended."""
    until(lambda: process.poll() is not None or _ping(port))
    return process.poll() is None


def _ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=GENEROUS_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
