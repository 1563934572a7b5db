"""Starts gateways without importing their modules anew, which takes a second of processor time.

One process of its own has imported them, and forks for each start. The fork becomes what
`python -m gateway` would be: it has its own session, environment, folder and streams, and runs the
module from its beginning. All forks have the same hashes of strings, so a test of what gateways
have in common starts one of them as a new interpreter.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from runpy import run_module
from typing import IO, Any, NoReturn

_NUMBER = struct.Struct("=i")
_MAX_BYTES = 1 << 18


class Started:
    """A process that was started, with as much of `subprocess.Popen` as tests need."""

    def __init__(self, stdout: int, reports: int) -> None:
        self.stdout: IO[bytes] = os.fdopen(stdout, "rb")
        self.returncode: int | None = None
        self._reports = reports
        self.pid = self._read()

    def poll(self) -> int | None:
        """The exit status; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the exit status."""
        if self._look(timeout) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and select.select([self._reports], [], [], seconds)[0]:
            self.returncode = self._read()
            os.close(self._reports)
        return self.returncode

    def _read(self) -> int:
        data = os.read(self._reports, _NUMBER.size)
        assert data, "the process that starts gateways has ended"
        number: int = _NUMBER.unpack(data)[0]
        return number


def start(
    module: str, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str], stderr: IO[bytes]
) -> Started:
    """As `python -m module arguments` in a new session, with a pipe for its standard output."""
    request = {
        "module": module,
        "arguments": list(arguments),
        "cwd": str(cwd),
        "env": dict(env),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    output, reports = os.pipe(), os.pipe()
    descriptors = [output[1], stderr.fileno(), reports[1]]
    try:
        socket.send_fds(_starter(), [json.dumps(request).encode()], descriptors)
    finally:
        os.close(output[1])
        os.close(reports[1])
    return Started(output[0], reports[0])


@cache
def _starter() -> socket.socket:
    """The connection to the process that forks; it ends with this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(there.fileno())],
            pass_fds=[there.fileno()],
            cwd=Path(__file__).parent.parent,
            start_new_session=True,
        )

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


# ── the process that forks ──────────────────────────────────────────────────────────────────


def _serve(requests: socket.socket) -> None:
    """Forks for each request, and reports process ids and exit statuses."""
    running: dict[int, int] = {}
    """Where to report the exit of each process."""
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno())
    while True:
        ready, _, _ = select.select([requests, woken], [], [])
        if woken in ready:
            woken.recv(4096)
            _report_exits(running)
        if requests in ready:
            data, descriptors, _, _ = socket.recv_fds(requests, _MAX_BYTES, 3)
            if not data:
                return
            stdout, stderr, reports = descriptors
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                for each in (requests, woken, wake):
                    each.close()
                for descriptor in (reports, *running.values()):
                    os.close(descriptor)
                _become(json.loads(data), stdout, stderr)
            os.close(stdout)
            os.close(stderr)
            running[pid] = reports
            _report(reports, pid)


def _report_exits(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        reports = running.pop(pid)
        _report(reports, os.waitstatus_to_exitcode(status))
        os.close(reports)


def _report(reports: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(reports, _NUMBER.pack(number))


def _become(request: Mapping[str, Any], stdout: int, stderr: int) -> NoReturn:
    """Runs the module, as in a new interpreter."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for descriptor, target in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, target)
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, request["open_files"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["module"], *request["arguments"]]
    run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit(0)


def _import_all() -> None:
    """Imports what `gateway serve` needs, except `gateway.__main__`, which prepares a process."""
    # prometheus_client decides when it is imported that several processes have metrics. The metrics
    # of this one are forgotten: each fork has a folder of its own.
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="tests-metrics-")
    try:
        import_module("gateway.cli.main")
        import_module("gateway.cli.serve")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    _import_all()
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        _serve(connection)
