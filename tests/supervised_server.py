"""A tiny HTTP server under the supervisor: what `test_supervisor` runs as a process of its own.

    python supervised_server.py WORKERS STATE_DIR

Every answer is the worker's process id; `/slow` takes a second, after `/fault` the worker fails.
`STATE_DIR/mode` is read by each worker as it starts: `obey` says what each mode does. Printed are
the port and, as each worker is gone, `exit PID`; workers write `hup PID` to `STATE_DIR/hups`. The
log is JSON, on standard error.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gateway import supervisor
from gateway.cli.logs import configure_logs
from gateway.supervisor import CannotStart, bind_socket, supervise

HANG_SECONDS = 60
SHORT_TIMEOUT_SECONDS = 0.3
SLOW_START_SECONDS = 4.5
"""Longer than all attempts of a worker that fails at once."""


def main() -> int | str:
    workers, state = int(sys.argv[1]), Path(sys.argv[2])
    configure_logs("json")
    if (state / "mode").read_text() == "late":
        supervisor.START_TIMEOUT_SECONDS = SHORT_TIMEOUT_SECONDS
    with bind_socket("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        try:
            return supervise(
                socket=listener,
                workers=workers,
                serve=lambda listener, ready: serve(listener, ready, state),
                on_worker_exit=lambda pid: print("exit", pid, flush=True),  # noqa: T201
            )
        except CannotStart as fault:
            return str(fault)


def serve(listener: socket.socket, ready: Callable[[], None], state: Path) -> None:
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: stopping.append(1))
    signal.signal(signal.SIGHUP, lambda *_: note(state, f"hup {os.getpid()}"))
    obey((state / "mode").read_text(), state)
    listener.settimeout(0.05)
    ready()
    while not stopping:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            answer(connection)


def obey(mode: str, state: Path) -> None:
    match mode:
        case "crash":
            raise RuntimeError(f"told to crash in\n{os.getpid()}")
        case "long crash":
            raise RuntimeError("told to crash " + 200_000 * "é")
        case "exit":
            raise SystemExit("told to exit")
        case "exit silently":
            raise SystemExit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang" | "late":
            time.sleep(HANG_SECONDS)
        case "one starts slowly" if is_first(state):
            time.sleep(SLOW_START_SECONDS)
        case "one starts slowly":
            raise RuntimeError("told to crash")


def is_first(state: Path) -> bool:
    try:
        (state / "first").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def note(state: Path, line: str) -> None:
    with (state / "hups").open("a") as log:
        log.write(line + "\n")


def answer(connection: socket.socket) -> None:
    connection.settimeout(5)
    asked = connection.recv(4096)
    if b" /slow " in asked:
        time.sleep(1)
    body = str(os.getpid()).encode()
    connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    if b" /fault " in asked:
        raise RuntimeError("told to fail")


if __name__ == "__main__":
    raise SystemExit(main())
