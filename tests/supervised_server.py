"""A tiny HTTP server under the supervisor: what `test_supervisor` runs as a process of its own.

    python supervised_server.py WORKERS STATE_DIR

Every answer is the worker's process id; `/slow` takes a second. `STATE_DIR/mode` is read by each
worker as it starts: `crash`, `config` (exits with 78) and `hang` do what they say. Printed are
the port and, as each worker is gone, `exit PID`; workers write `hup PID` to `STATE_DIR/hups`.
"""

import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gateway.supervisor import EX_CONFIG, bind_socket, supervise


def main() -> int:
    workers, state = int(sys.argv[1]), Path(sys.argv[2])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with bind_socket("127.0.0.1", 0) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201
        return supervise(
            socket=listener,
            workers=workers,
            serve=lambda listener, ready: serve(listener, ready, state),
            on_worker_exit=lambda pid: print("exit", pid, flush=True),  # noqa: T201
        )


def serve(listener: socket.socket, ready: Callable[[], None], state: Path) -> None:
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: stopping.append(1))
    signal.signal(signal.SIGHUP, lambda *_: note(state, f"hup {os.getpid()}"))
    obey((state / "mode").read_text())
    listener.settimeout(0.05)
    ready()
    while not stopping:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            answer(connection)


def obey(mode: str) -> None:
    if mode == "crash":
        raise RuntimeError("told to crash")
    if mode == "config":
        raise SystemExit(EX_CONFIG)
    if mode == "hang":
        time.sleep(60)


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


if __name__ == "__main__":
    raise SystemExit(main())
