"""Starts `gateway` as a fork of a process that has imported its modules.

The imports take nearly two seconds of a processor, most of what a start costs, and the tests start
hundreds. A fork runs `gateway/__main__.py` from its first line, so it prepares its process as
usual. For a test of the interpreter's own start, with closed streams or variables that Python or a
library reads when it is imported, only `python -m gateway` is right.

This module is also the program of the process that forks: it takes requests from the socket whose
descriptor is its argument, and ends when no test holds the other end.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests.waiting import GENEROUS_SECONDS

ROOT = Path(__file__).parent.parent
REQUEST_BYTES = 1 << 20


class Fork:
    """A running command, with the part of `subprocess.Popen` that tests use."""

    def __init__(
        self,
        *words: str,
        cwd: Path,
        env: Mapping[str, str],
        stderr: IO[bytes] | IO[str],
        stdout: IO[bytes] | None = None,
        module: str = "gateway",
    ) -> None:
        """Starts the command in a session of its own. Without `stdout`, that is a pipe.

        `module` may be one of the tests that changes the gateway and then runs its command line.
        """
        read_status, write_status = os.pipe()
        self.returncode: int | None = None
        self._status = os.fdopen(read_status)
        if stdout is None:
            read_end, write_end = os.pipe()
            self.stdout: IO[bytes] = os.fdopen(read_end, "rb")
        else:
            self.stdout, write_end = stdout, os.dup(stdout.fileno())
        request = {
            "module": module,
            "words": words,
            "cwd": str(cwd),
            "env": dict(env),
            "umask": _umask(),
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
            "ignores_interrupts": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        }
        try:
            data = json.dumps(request).encode()
            socket.send_fds(_forking(), [data], [write_end, stderr.fileno(), write_status])
        finally:
            os.close(write_end)
            os.close(write_status)
        started = self._status.readline()
        if not started:
            self._status.close()
            self.stdout.close()
            raise RuntimeError("the process that forks has failed: its traceback is above")
        self.pid = int(started)

    def poll(self) -> int | None:
        """The exit status, or None while the command runs."""
        if self.returncode is None and self._has_ended(0):
            self._read_status()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the exit status: that of `subprocess.Popen`."""
        if self.returncode is not None:
            return self.returncode
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired("gateway", timeout or 0)
        return self._read_status()

    def _has_ended(self, seconds: float | None) -> bool:
        # Not select.select, which refuses descriptors above 1023.
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        return poll.poll(None if seconds is None else seconds * 1000) != []

    def _read_status(self) -> int:
        line = self._status.readline()
        self._status.close()
        if not line:
            raise RuntimeError("The process that reports the exit status was killed.")
        self.returncode = int(line)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_fork(
    *words: str, cwd: Path, env: Mapping[str, str], module: str = "gateway"
) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end, as `subprocess.run`."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        fork = Fork(*words, cwd=cwd, env=env, stdout=stdout, stderr=stderr, module=module)
        try:
            status = fork.wait(GENEROUS_SECONDS)
        finally:
            fork.kill()
            fork.wait()
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["gateway", *words], status, *texts)


def _umask() -> int:
    """That of this process. Reading it otherwise means to change it, for all threads."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("Umask:")]
    return int(line.split()[1], 8)


@cache
def _forking() -> socket.socket:
    """The socket of the process that forks, which is started for the first command."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            cwd=ROOT,
            # prometheus_client reads at the import whether metrics are those of several processes.
            env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": os.devnull},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# ── the process that forks ──────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Request:
    module: str
    words: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    umask: int
    files: tuple[int, int]
    ignores_interrupts: bool


def wait_for_module(requests: socket.socket) -> str:
    """Returns in each fork, which is to run that module. The process itself ends here."""
    signal.signal(signal.SIGCHLD, reap)
    while True:
        data, descriptors, *_ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not data:
            sys.exit()
        if os.fork() == 0:
            requests.close()
            request = Request(**json.loads(data))
            become(request, *descriptors)
            return request.module
        for descriptor in descriptors:
            os.close(descriptor)


def reap(*_: object) -> None:
    """Ends zombies. Ignored children would end without it, but nobody would count their time."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_with_test(pid: int, status: int) -> None:
    """Waits until the command ends; kills its session if the test's process ends first."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(status, 0)  # only an error: the other end of the pipe is closed
    if ended not in dict(poll.poll()):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def become(request: Request, stdout: int, stderr: int, status: int) -> None:
    """Returns in the process of the command, and keeps another that reports how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.close(stdout)
        os.close(stderr)
        end_with_test(pid, status)
        _, ended = os.waitpid(pid, 0)
        with suppress(BrokenPipeError):
            os.write(status, f"{os.waitstatus_to_exitcode(ended)}\n".encode())
        os._exit(0)
    os.setsid()
    os.write(status, f"{os.getpid()}\n".encode())
    os.close(status)
    for descriptor, number in ((stdout, 1), (stderr, 2)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    interrupted: Any = signal.SIG_IGN if request.ignores_interrupts else signal.default_int_handler
    signal.signal(signal.SIGINT, interrupted)
    resource.setrlimit(resource.RLIMIT_NOFILE, request.files)
    os.umask(request.umask)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    sys.argv[1:] = request.words


if __name__ == "__main__":
    import gateway.cli.serve  # noqa: F401 - with nearly everything that any command imports
    from tests.yaml_once import parse_shipped_yaml, parse_yaml_once

    parse_yaml_once()
    parse_shipped_yaml()

    with socket.socket(fileno=int(sys.argv[1])) as opened:
        module_of_fork = wait_for_module(opened)
    runpy.run_module(module_of_fork, run_name="__main__", alter_sys=True)
