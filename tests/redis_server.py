"""A real `redis-server` for tests, which starts empty on a free port.

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
import redis

from gateway.store.redis.rights import acl_rule
from tests.ports import free_port
from tests.waiting import GENEROUS_SECONDS, until

MISSING = "redis-server is not installed: apt-get install redis-server"


@contextmanager
def run_redis_server(folder: Path, *options: str) -> Iterator[str]:
    """Runs a server without persistence in `folder`, with further options; yields its URL.

    If the binary is missing, the tests that need it are skipped. With `CI=true` they fail.
    """
    process, port = _start(binary(), folder, *options)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def emptied(url: str) -> str:
    """The URL of a server, which has no data from now on."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return url


def restricted(url: str) -> str:
    """The URL for a user who may do exactly what the documented ACL rule allows."""
    with redis.Redis.from_url(url) as client:
        client.execute_command(*acl_rule("gateway", "right").split())
    return url.replace("redis://", "redis://gateway:right@")


@dataclass
class DurableRedis:
    """A server that loses no acknowledged write, and that a test can kill and start again."""

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
        """Starts on the same port, with the data in its folder."""
        self.process, self.port = _start(binary(), self.folder, durable=True, port=self.port)

    def freeze(self) -> None:
        """Until `thaw`, the server accepts connections but does not answer."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def run_durable_redis(folder: Path) -> Iterator[DurableRedis]:
    """Runs a server that syncs every change to its append-only file before it answers."""
    server = DurableRedis(*_start(binary(), folder, durable=True), folder)
    try:
        yield server
    finally:
        server.thaw()
        server.kill()


def skip_without_server() -> None:
    """Skips the test, or fails it in continuous integration."""
    if os.environ.get("CI") == "true":
        pytest.fail(MISSING, pytrace=False)
    pytest.skip(MISSING)


def skip_without_tls() -> None:
    """Skips the test if the server was built without TLS, as those of Python packages are."""
    # Every build knows the options, but only one with TLS can refuse an incomplete set of them.
    if b"No tls-cert-file configured!" not in Path(binary()).read_bytes():
        pytest.skip(f"{binary()} was built without TLS")


def merge_missing_server_skips(report: pytest.TestReport) -> None:
    """Gives skips for a missing server one location, so that pytest reports them in one line."""
    if report.skipped and MISSING in str(report.longrepr):
        line = skip_without_server.__code__.co_firstlineno
        report.longrepr = (__file__, line, f"Skipped: {MISSING}")


def binary() -> str:
    binary = shutil.which(os.environ.get("REDIS_SERVER", "redis-server"))
    if binary is None:
        skip_without_server()
    return str(binary)


def _start(
    binary: str, folder: Path, *more: str, durable: bool = False, port: int | None = None
) -> tuple[subprocess.Popen[bytes], int]:
    """Tries three times, because another process may take a free port before the server does."""
    persistence = (
        ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
    )
    for _ in range(3):
        chosen = port or free_port()
        options = ["--bind", "127.0.0.1", "--port", str(chosen), "--dir", str(folder), *more]
        process = subprocess.Popen(
            [binary, *options, "--save", "", *persistence], stdout=subprocess.DEVNULL
        )
        if _answers(process, chosen):
            return process, chosen
        process.kill()
        process.wait()
    pytest.fail("redis-server did not start")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether this process serves the port; False if it ended."""
    until(lambda: process.poll() is not None or _ping(port))
    return process.poll() is None


def _ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=GENEROUS_SECONDS) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
