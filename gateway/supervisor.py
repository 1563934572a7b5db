"""The parent process: binds the port, forks the workers, counts the signals, and nothing else.

It has no loop, no thread and no store, so that forking from it is safe and little in it can
break. What a worker does is the `serve` that the caller hands in.

    SIGTERM, SIGINT   first: SIGTERM to every worker, wait until they have left
                      second: SIGKILL to every worker
    SIGHUP            passed on to every worker
    SIGUSR2           replaces the workers one after the other: start one, wait until it serves,
                      SIGUSR1 one old, next; stops when a new one does not come up

A worker leaves at SIGTERM, when the whole gateway ends, and at SIGUSR1, when another one serves in
its place: only then may it stop taking connections at once. It starts with these two at their
default and SIGINT, SIGHUP and SIGUSR2 ignored, because a Ctrl-C or a `kill` of the whole group
reaches it too: only the parent counts. A worker whose parent was killed sees another
`os.getppid()`, or a broken pipe when it says that it serves; nothing else tells it.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, NoReturn

Serve = Callable[[socket.socket, Callable[[], None]], None]
"""`serve(socket, ready)`: runs one worker until it has drained; calls `ready` once it serves."""

EX_CONFIG: Final = 78
"""How a worker exits that no second attempt would help (sysexits.h)."""

START_TIMEOUT_SECONDS: Final = 60.0
"""A worker that does not serve by then is killed; it counts as one that cannot start."""

_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_BACKLOG: Final = 1024
_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_HEEDED: Final = (*_STOP, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)

_log = logging.getLogger(__name__)


class CannotListen(Exception):
    """The address cannot be bound. The message names it and says how to change it."""


class PortInUse(CannotListen):
    """Another process has the port."""


def bind_socket(host: str, port: int) -> socket.socket:
    """The one listening socket, which all workers share. Raises `CannotListen`.

    Connections queue up in it from here on, also while no worker serves yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as fault:
        raise _cannot_listen(host, port, fault) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as fault:
        listener.close()
        raise _cannot_listen(host, port, fault) from None
    return listener


def supervise(
    *,
    socket: socket.socket,
    workers: int,
    serve: Serve,
    on_worker_exit: Callable[[int], None] | None = None,
) -> int:
    """Keeps `workers` processes serving on `socket` until told to stop; an exit status.

    0 after everyone has drained, 128 + signal after a second one cut that short, `EX_CONFIG`
    when a worker says so before any has ever served. `on_worker_exit` gets the process id of
    each worker that is gone. To be called in the main thread of a process without others.
    """
    with _heeded_signals() as signals:
        return _Parent(socket, workers, serve, on_worker_exit or (lambda pid: None), signals).run()


@dataclass(slots=True, eq=False)
class _Worker:
    """A child process, from its fork until it was waited for."""

    pid: int
    pipe: int
    """Becomes readable when the worker serves; −1 afterwards."""
    give_up_at: float
    is_draining: bool = False

    @property
    def is_starting(self) -> bool:
        return self.pipe >= 0

    def send(self, number: int) -> None:
        """Its process id cannot be anybody else's: nobody but the parent waits for it."""
        os.kill(self.pid, number)

    def ask_to_leave(self, number: int) -> None:
        """Asked once; a worker that is leaving is not asked again."""
        if not self.is_draining:
            self.is_draining = True
            self.send(number)

    def close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


class _Parent:
    def __init__(
        self,
        listener: socket.socket,
        wanted: int,
        serve: Serve,
        on_worker_exit: Callable[[int], None],
        signals: int,
    ) -> None:
        self._listener = listener
        self._wanted = wanted
        self._serve = serve
        self._on_worker_exit = on_worker_exit
        self._signals = signals
        self._workers: list[_Worker] = []
        self._outgoing: list[_Worker] = []  # still to be replaced by the roll that is under way
        self._has_served = False
        self._delay_seconds = _FIRST_DELAY_SECONDS  # after the next start that comes to nothing
        self._next_start_at = 0.0
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        while self._workers or not self._is_stopping:
            self._start_missing()
            self._replace_one()
            self._wait()
            self._heed_signals()
            self._reap()
            self._give_up_on_late()
        return self._status

    # ── keeping the number ──────────────────────────────────────────────────────────────────

    def _missing(self) -> int:
        """How many to start; a roll has one more than wanted, draining ones do not count."""
        if self._is_stopping:
            return 0
        staying = sum(not worker.is_draining for worker in self._workers)
        return self._wanted + bool(self._outgoing) - staying

    def _start_missing(self) -> None:
        if time.monotonic() < self._next_start_at:
            return
        try:
            for _ in range(self._missing()):
                self._workers.append(self._fork())
        except OSError as fault:
            _log.error("cannot fork a worker: %s", fault)
            self._note_failed_start()

    def _replace_one(self) -> None:
        """The next step of a roll, as soon as there is one serving worker too many."""
        serving = [w for w in self._workers if not w.is_draining and not w.is_starting]
        if self._outgoing and len(serving) > self._wanted:
            replaced = self._outgoing.pop(0)
            _log.info("worker %d is replaced", replaced.pid)
            replaced.ask_to_leave(signal.SIGUSR1)

    def _note_failed_start(self) -> None:
        """The next attempt comes later each time; a roll ends with the old workers kept."""
        if self._outgoing:
            _log.error("a new worker did not come up: the old ones stay")
            self._outgoing.clear()
        if time.monotonic() < self._next_start_at:
            return
        self._next_start_at = time.monotonic() + self._delay_seconds
        self._delay_seconds = min(2 * self._delay_seconds, _LONGEST_DELAY_SECONDS)

    # ── waiting for something to happen ─────────────────────────────────────────────────────

    def _wait(self) -> None:
        """Returns at a signal, when a worker serves, or when it is time to do something."""
        starting = {worker.pipe: worker for worker in self._workers if worker.is_starting}
        times = [worker.give_up_at for worker in starting.values()]
        if self._missing() > 0:
            times.append(self._next_start_at)
        seconds = max(0.0, min(times) - time.monotonic()) if times else None
        readable, _, _ = select.select([self._signals, *starting], [], [], seconds)
        for pipe in readable:
            if pipe != self._signals:
                self._note_ready(starting[pipe])

    def _note_ready(self, worker: _Worker) -> None:
        """An end without a word is a worker that died, which `_reap` deals with."""
        if not os.read(worker.pipe, 1):
            return
        worker.close_pipe()
        self._has_served = True
        self._delay_seconds = _FIRST_DELAY_SECONDS
        self._next_start_at = 0.0
        _log.info("worker %d serves", worker.pid)

    def _give_up_on_late(self) -> None:
        for worker in self._workers:
            if worker.is_starting and time.monotonic() > worker.give_up_at:
                _log.error("worker %d does not come up: killed", worker.pid)
                worker.send(signal.SIGKILL)

    def _reap(self) -> None:
        for worker in self._workers.copy():
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._note_exit(worker, os.waitstatus_to_exitcode(status))

    def _note_exit(self, worker: _Worker, code: int) -> None:
        self._workers.remove(worker)
        if worker in self._outgoing:
            self._outgoing.remove(worker)
        if not worker.is_draining:
            _log.warning("worker %d left with status %d", worker.pid, code)
        if worker.is_starting and not worker.is_draining:
            self._note_failed_start()
            if code == EX_CONFIG and not self._has_served:
                self._stop(EX_CONFIG)
        worker.close_pipe()
        self._on_worker_exit(worker.pid)

    # ── signals ─────────────────────────────────────────────────────────────────────────────

    def _heed_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._signals, 4096):
                self._heed(number)

    def _heed(self, number: int) -> None:
        if number in _STOP and self._is_stopping:
            self._status = 128 + number
            self._send_all(signal.SIGKILL)
        elif number in _STOP:
            self._stop(0)
        elif number == signal.SIGHUP:
            self._send_all(signal.SIGHUP)
        elif number == signal.SIGUSR2:
            self._outgoing = [worker for worker in self._workers if not worker.is_draining]
            self._next_start_at = 0.0

    def _stop(self, status: int) -> None:
        """Nobody is started any more; once the workers have closed the port, it is closed."""
        self._is_stopping = True
        self._status = status
        self._listener.close()
        for worker in self._workers:
            worker.ask_to_leave(signal.SIGTERM)

    def _send_all(self, number: int) -> None:
        for worker in self._workers:
            worker.send(number)

    # ── forking ─────────────────────────────────────────────────────────────────────────────

    def _fork(self) -> _Worker:
        """Signals wait meanwhile: a child with the parent's handlers would count for it."""
        sys.stdout.flush()  # else a child writes again what is still in these
        sys.stderr.flush()
        pipe, child_pipe = os.pipe()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(pipe)  # so that it breaks when the parent's end is gone
                self._run_worker(child_pipe, mask)
        except OSError:
            os.close(pipe)
            raise
        finally:
            os.close(child_pipe)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _Worker(pid, pipe, time.monotonic() + START_TIMEOUT_SECONDS)

    def _run_worker(self, pipe: int, mask: set[int | signal.Signals]) -> NoReturn:
        """In the child, which must never come back into the parent's code."""
        status = 1
        try:
            self._leave_parent_behind(mask)
            self._serve(self._listener, partial(_say_ready, pipe))
            status = 0
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
        except BaseException:  # noqa: BLE001 - the outermost frame of this process
            _log.exception("the worker failed")
        finally:
            logging.shutdown()
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _leave_parent_behind(self, mask: set[int | signal.Signals]) -> None:
        """Closes the parent's pipes and takes the signals that this module's docstring says."""
        os.close(signal.set_wakeup_fd(-1))
        os.close(self._signals)
        for worker in self._workers:
            worker.close_pipe()
        for number in _HEEDED:
            by_default = number in (signal.SIGTERM, signal.SIGCHLD)
            signal.signal(number, signal.SIG_DFL if by_default else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _say_ready(pipe: int) -> None:
    os.write(pipe, b"!")
    os.close(pipe)


@contextmanager
def _heeded_signals() -> Iterator[int]:
    """A file descriptor from which the number of every signal that arrived can be read.

    No signal is lost between a look and a wait, because it is readable until it was read.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    former = {number: signal.signal(number, lambda *_: None) for number in _HEEDED}
    try:
        yield reading
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(reading)
        os.close(writing)


def _cannot_listen(host: str, port: int, fault: OSError) -> CannotListen:
    shown = f"[{host}]" if ":" in host else host
    if fault.errno == errno.EADDRINUSE:
        return PortInUse(
            f"Port {port} on {host} is in use by another process. "
            f"Choose another one: GATEWAY_LISTEN={shown}:{port % 65_535 + 1}"
        )
    return CannotListen(
        f"Cannot listen on {shown}:{port}: {fault.strerror}. GATEWAY_LISTEN says where."
    )
