"""Starts servers as child processes, waits until they listen, and ends them."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.bench.load import Failed

START_SECONDS = 120.0
"""A peer may take most of a minute to start."""

STOP_SECONDS = 10.0

LOW_PRIORITY = 5
"""The priority of client and upstream, so that they do not slow the gateway down."""

PACKAGES = {"nginx": "nginx-light", "wrk": "wrk", "redis-server": "redis-server"}
"""The needed tools, and the Debian or Ubuntu packages that contain them."""


def check_tools() -> None:
    """If tools are missing, raises `Failed` with the packages to install."""
    missing = [tool for tool in PACKAGES if shutil.which(tool, path=tool_path()) is None]
    if missing:
        packages = " ".join(PACKAGES[tool] for tool in missing)
        raise Failed(f"{', '.join(missing)} missing: apt-get install {packages}")


def tool_path() -> str:
    """Debian installs nginx into /usr/sbin, which is only in root's PATH."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


def raise_descriptor_limit() -> int:
    """Raises this process's limit of open files to its maximum, and returns that."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
    return maximum


@contextmanager
def run_process(
    name: str,
    command: Sequence[str | Path],
    *,
    port: int,
    folder: Path,
    environ: Mapping[str, str] | None = None,
) -> Iterator[int]:
    """Runs a server until the block is left; yields its process id.

    Its output goes to `<name>.log` in the folder.
    """
    log_file = folder / f"{name}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": tool_path(), **(environ or {})},
        )
    try:
        _wait_until_it_listens(name, process, port=port, log_file=log_file)
        yield process.pid
    finally:
        _end(process)


def _wait_until_it_listens(
    name: str, process: subprocess.Popen[bytes], *, port: int, log_file: Path
) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    output = log_file.read_text(errors="replace").strip().splitlines()
    raise Failed(f"{name} did not start: {output[-1] if output else 'no output'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
