"""Servers as child processes: started, waited for until they answer, ended."""

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
"""A peer may take most of a minute to come up."""

STOP_SECONDS = 10.0

LOW_PRIORITY = 5
"""Of who asks and who answers upstream: what they do shall not keep the gateway waiting."""

PACKAGES = {"nginx": "nginx-light", "wrk": "wrk", "redis-server": "redis-server"}
"""What is needed, and the package of Debian and Ubuntu that has it."""


def check_tools() -> None:
    """Raises `Failed`, which says what to install."""
    missing = [tool for tool in PACKAGES if shutil.which(tool, path=_path()) is None]
    if missing:
        packages = " ".join(PACKAGES[tool] for tool in missing)
        raise Failed(f"{', '.join(missing)} missing: apt-get install {packages}")


def _path() -> str:
    """Debian keeps nginx where only root looks."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


def raise_descriptor_limit() -> int:
    """Lets this process have as many files open as it may; answers how many that is."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def free_port() -> int:
    """A port that nobody has right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def run_process(
    name: str,
    command: Sequence[str | Path],
    *,
    port: int,
    folder: Path,
    environ: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Runs a server until the block is left; what it says goes to `<name>.log` in the folder."""
    log_file = folder / f"{name}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "PATH": _path(), **(environ or {})},
        )
    try:
        _wait_until_it_listens(name, process, port=port, log_file=log_file)
        yield
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
    said = log_file.read_text(errors="replace").strip().splitlines()
    raise Failed(f"{name} did not start: {said[-1] if said else 'it said nothing'}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
