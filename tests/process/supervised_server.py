"""A tiny HTTP server under the supervisor, which `test_supervisor` runs as a separate process.

    python -m tests.process.supervised_server WORKERS STATE_DIR [START_TIMEOUT_SECONDS]

Every response is the worker's process id. `/slow` creates `STATE_DIR/slow` and takes a second;
after `/fault` the worker fails. Each worker reads `STATE_DIR/mode` when it starts; `obey` has the
modes. The parent prints the port, and `exit PID` when a worker has exited; workers write `hup PID`
to `STATE_DIR/hups`. The log is JSON on standard error, which the test redirects to
`STATE_DIR/log`.
"""

import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway.cli.logs import configure_logs
from gateway.process.listener import Listeners, bind_socket
from gateway.process.supervisor import (
    START_ATTEMPTS,
    START_TIMEOUT_SECONDS,
    CannotStart,
    supervise,
)

HANG_SECONDS = 60


def main() -> int | str:
    workers, state = int(sys.argv[1]), Path(sys.argv[2])
    start_timeout_seconds = float(sys.argv[3]) if sys.argv[3:] else START_TIMEOUT_SECONDS
    configure_logs("json")
    with bind_socket("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        if (state / "mode").read_text() == "no descriptors":
            leave_two_descriptors()
        try:
            return supervise(
                listeners=Listeners(listener),
                workers=workers,
                serve=lambda listeners, ready: serve(listeners.clients, ready, state),
                on_worker_exit=lambda pid: print("exit", pid, flush=True),  # noqa: T201
                start_timeout_seconds=start_timeout_seconds,
            )
        except CannotStart as fault:
            return str(fault)


def leave_two_descriptors() -> None:
    """Leaves enough for the parent's own pipe, none for a worker's."""
    lowest = os.dup(0)
    os.close(lowest)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2, hard))


def serve(listener: socket.socket, ready: Callable[[], None], state: Path) -> None:
    stopping: list[int] = []

    def stop(*_: object) -> None:
        stopping.append(1)
        (state / "stopping").touch()

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)
    signal.signal(signal.SIGHUP, lambda *_: write_hup(state, f"hup {os.getpid()}"))
    obey((state / "mode").read_text(), state)
    listener.settimeout(0.05)
    ready()
    while not stopping:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            respond(connection, state)


def obey(mode: str, state: Path) -> None:
    """Runs the fault or delay that `mode` names, before the worker serves."""
    faults: dict[str, BaseException] = {
        "crash": RuntimeError(f"told to crash in\n{os.getpid()}"),
        "crash with a child": RuntimeError("told to crash"),
        "long crash": RuntimeError("told to crash " + 200_000 * "é"),
        "crash in a group": ExceptionGroup("two", [RuntimeError("told to crash"), OSError()]),
        "crash oddly": RuntimeError("told \x1b[2J to \0 crash \ud83d"),
        "exit": SystemExit("told to exit"),
        "exit silently": SystemExit(3),
    }
    match mode:
        case "hang":
            time.sleep(HANG_SECONDS)
        case "kill" | "half a word":
            if mode == "half a word":
                send_half_a_word()
            os.kill(os.getpid(), signal.SIGKILL)
        case "one starts slowly":
            start_slowly_or_crash(state)
        case "crash here or there":
            crash_here_or_there(state)
        case "serve briefly":
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        case "crash with a child" if os.fork() == 0:
            time.sleep(HANG_SECONDS)
    if mode in faults:
        raise faults[mode]


def start_slowly_or_crash(state: Path) -> None:
    if not is_first(state):
        raise RuntimeError("told to crash")
    while (state / "log").read_text().count("worker_start_failed") < START_ATTEMPTS:
        time.sleep(0.05)


def crash_here_or_there(state: Path) -> None:
    if is_first(state):
        raise RuntimeError("told to crash here")
    (state / "first").unlink()
    raise RuntimeError("told to crash there")


def send_half_a_word() -> None:
    """Simulates a kill during the report: writes the first byte of a character to every pipe."""
    for fd in range(3, 30):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.write(fd, "é".encode()[:1])


def is_first(state: Path) -> bool:
    try:
        (state / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def write_hup(state: Path, line: str) -> None:
    with (state / "hups").open("a") as log:
        log.write(line + "\n")


def respond(connection: socket.socket, state: Path) -> None:
    connection.settimeout(HANG_SECONDS)
    request = connection.recv(4096)
    if b" /slow " in request:
        (state / "slow").touch()
        time.sleep(1)
    if b" /hang " in request:
        (state / "hang").touch()
        time.sleep(HANG_SECONDS)
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    if b" /fault " in request:
        raise RuntimeError("told to fail")


if __name__ == "__main__":
    raise SystemExit(main())
