"""A real `redis-server` for tests: started on a free port, empty, gone afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MISSING = "redis-server is not installed: apt-get install redis-server"
START_SECONDS = 10.0


@contextmanager
def run_redis_server(folder: Path) -> Iterator[str]:
    """Runs a server without persistence whose files lie in `folder`; yields its URL.

    Without the binary the tests that need it are skipped at home and fail where `CI` is `true`.
    """
    binary = shutil.which("redis-server")
    if binary is None:
        refuse_without_server()
    process, port = _start(str(binary), folder)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def refuse_without_server() -> None:
    """Skips the test, or fails it in continuous integration."""
    if os.environ.get("CI") == "true":
        pytest.fail(MISSING, pytrace=False)
    pytest.skip(MISSING)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Gives all skips for want of a server one place, so that they are told in one line.

    A `conftest.py` imports this hook for the tests beside and below it.
    """
    report = yield
    if report.skipped and MISSING in str(report.longrepr):
        line = refuse_without_server.__code__.co_firstlineno
        report.longrepr = (__file__, line, f"Skipped: {MISSING}")
    return report


def _start(binary: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A free port may be taken by somebody else before the server binds it: hence three tries."""
    for _ in range(3):
        port = _free_port()
        place = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
        process = subprocess.Popen(
            [binary, *place, "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL
        )
        if _answers(process, port):
            return process, port
        process.kill()
        process.wait()
    pytest.fail("redis-server did not start")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether this very process serves the port; False when it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _ping(port) and process.poll() is None:
            return True
        time.sleep(0.02)
    return False


def _ping(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(7) == b"+PONG\r\n"
    except OSError:
        return False
