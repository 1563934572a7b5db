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

A worker that cannot start sends its parent the reason. The parent tries again, later each time. If
no worker has ever served, the parent gives up after `START_ATTEMPTS` failed attempts.
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
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn

Serve = Callable[[socket.socket, Callable[[], None]], None]
"""`serve(socket, ready)`: runs one worker until it has drained; calls `ready` once it serves.

A fault that needs no traceback is raised as `SystemExit(reason)`.
"""

START_TIMEOUT_SECONDS: Final = 60.0
"""A worker that does not serve by then is killed; it counts as one that cannot start."""

START_ATTEMPTS: Final = 4
"""If no worker has ever served, the gateway ends after this many failed attempts.

If each fails at once, they begin at 0, 0.5, 1.5 and 3.5 s.
"""

_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_SHORT_LIFE_SECONDS: Final = 2.0
"""If a worker served for less, its replacement is delayed, because it may crash as fast."""

_MAX_REASON_CHARACTERS: Final = 1_000
_MAX_TRACE_CHARACTERS: Final = 30_000
_READY: Final = b"!"
_BACKLOG: Final = 1024
_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_HEEDED: Final = (*_STOP, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)

_log = logging.getLogger(__name__)


class CannotListen(Exception):
    """The address cannot be bound. The message names it and says how to change it."""


class PortInUse(CannotListen):
    """Another process has the port."""


class CannotStart(Exception):
    """No worker served in the first `START_ATTEMPTS` attempts; the message has the last reason."""


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
    start_timeout_seconds: float = START_TIMEOUT_SECONDS,
) -> int:
    """Keeps `workers` processes serving on `socket` until told to stop; an exit status.

    0 after everyone has drained, 128 + signal after a second one cut that short. Raises
    `CannotStart` if no worker has ever served and all attempts failed. `on_worker_exit` gets the
    process id of each worker that is gone. To be called in the main thread of a process without
    others.
    """
    with _heeded_signals() as signals:
        return _Parent(
            socket,
            workers,
            serve,
            on_worker_exit=on_worker_exit or (lambda pid: None),
            start_timeout_seconds=start_timeout_seconds,
            signals=signals,
        ).run()


@dataclass(slots=True, eq=False)
class _Worker:
    """A child process, from its fork until it was waited for."""

    pid: int
    pipe: int
    """The parent's end of the worker's `_StartReport`; −1 once the worker serves."""
    give_up_at: float
    serves_since: float = 0.0
    report: bytes = b""
    is_late: bool = False
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

    def start_fault(self, code: int) -> _StartFault:
        """Builds the reason from the worker's report, or from its exit code if it sent none."""
        # If the worker was killed while it wrote, the report may end within a character.
        reason, _, trace = self.report.decode(errors="replace").partition("\0")
        if code < 0:
            reason = f"signal {-code} ({signal.strsignal(-code)}) ended the worker"
        fallback = f"the worker exited with status {code} before it served"
        return _StartFault(reason or fallback, trace)


@dataclass(frozen=True, slots=True)
class _StartFault:
    """Why a worker cannot start: a reason in one line, and the traceback if there is one."""

    reason: str
    trace: str = ""

    @property
    def place(self) -> tuple[str, ...]:
        """Where the fault was raised: the frames, without the message, which may vary."""
        lines = (line.lstrip(" |") for line in self.trace.splitlines())  # groups have a margin
        return tuple(line for line in lines if line.startswith("File "))


class _StartReport:
    """The worker's end of a pipe to its parent: reports that it serves, or why it cannot."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def succeed(self) -> None:
        """Raises `BrokenPipeError` when the parent was killed, which ends the worker."""
        os.write(self._pipe, _READY)
        os.close(self._pipe)
        self._pipe = -1

    def fail(self, reason: str, trace: str = "") -> None:
        """Sends the fault to the parent; logs it if the worker already serves."""
        line = " ".join(reason.split())[:_MAX_REASON_CHARACTERS]
        line = "".join(character if character.isprintable() else "?" for character in line)
        if self._pipe < 0:
            _log_fault("worker_failed", reason=line, trace=trace)
            return
        report = f"{line}\0{trace[:_MAX_TRACE_CHARACTERS]}"  # the cut end only repeats the reason
        with suppress(OSError):
            os.write(self._pipe, report.encode(errors="backslashreplace"))


@dataclass(frozen=True, slots=True)
class _SignalPipe:
    """A pipe to which Python writes the number of each arriving signal.

    The number stays until it is read, so no signal is lost between a check and a wait.
    """

    cache_policy: int
    writing: int

    def close(self) -> None:
        os.close(self.cache_policy)
        os.close(self.writing)


class _Parent:
    def __init__(
        self,
        listener: socket.socket,
        wanted: int,
        serve: Serve,
        *,
        on_worker_exit: Callable[[int], None],
        start_timeout_seconds: float,
        signals: _SignalPipe,
    ) -> None:
        self._listener = listener
        self._wanted = wanted
        self._serve = serve
        self._on_worker_exit = on_worker_exit
        self._start_timeout_seconds = start_timeout_seconds
        late = f"the worker did not serve within {start_timeout_seconds:g} s"
        self._timed_out = _StartFault(late)
        self._signals = signals
        self._workers: list[_Worker] = []
        self._outgoing: list[_Worker] = []  # still to be replaced by the roll that is under way
        self._has_served = False
        self._failed_attempts = 0
        self._last_reason = ""  # of a failed start
        self._traced: set[tuple[str, ...]] = set()  # places whose traceback has been logged
        self._delay_seconds = _FIRST_DELAY_SECONDS  # after the next start that comes to nothing
        self._next_start_at = 0.0
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        while self._workers or not self._is_stopping:
            self._start_missing()
            self._give_up_if_none_serves()
            self._replace_one()
            self._wait()
            self._heed_signals()
            self._reap()
            self._kill_late()
        return self._status

    # ── keeping the number ──────────────────────────────────────────────────────────────────

    def _missing(self) -> int:
        """How many to start; a roll has one more than wanted, draining ones do not count."""
        if self._is_stopping or self._has_used_up_attempts():
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
            self._note_failed_start(_StartFault(f"cannot fork a worker: {fault.strerror}"))

    def _replace_one(self) -> None:
        """The next step of a roll, as soon as there is one serving worker too many."""
        serving = [w for w in self._workers if not w.is_draining and not w.is_starting]
        if self._outgoing and len(serving) > self._wanted:
            replaced = self._outgoing.pop(0)
            _log.info("worker %d is replaced", replaced.pid)
            replaced.ask_to_leave(signal.SIGUSR1)

    def _note_failed_start(self, fault: _StartFault, *, pid: int | None = None) -> None:
        """Delays the next attempt, longer each time, and ends a roll: the old workers stay.

        Workers that fail at the same time are one attempt.
        """
        trace = "" if fault.place in self._traced else fault.trace
        _log_fault("worker_start_failed", reason=fault.reason, trace=trace, pid=pid)
        self._last_reason = fault.reason
        self._traced.add(fault.place)
        if self._outgoing:
            _log.error("a new worker did not come up: the old ones stay")
            self._outgoing.clear()
        if time.monotonic() < self._next_start_at:
            return
        self._failed_attempts += 1
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
        readable, _, _ = select.select([self._signals.cache_policy, *starting], [], [], seconds)
        for pipe in readable:
            if pipe != self._signals.cache_policy:
                self._read_report(starting[pipe])

    def _read_report(self, worker: _Worker) -> bool:
        """Reads what has arrived of a worker's report; False at its end."""
        chunk = os.read(worker.pipe, 65_536)
        worker.report += chunk
        if worker.report == _READY:
            self._note_ready(worker)
        return bool(chunk)

    def _note_ready(self, worker: _Worker) -> None:
        worker.close_pipe()
        worker.serves_since = time.monotonic()
        self._has_served = True
        self._traced.clear()
        self._delay_seconds = _FIRST_DELAY_SECONDS
        # Not at once: another worker may just have crashed soon after it served.
        soon = time.monotonic() + _FIRST_DELAY_SECONDS
        self._next_start_at = min(self._next_start_at, soon)
        _log.info("worker %d serves", worker.pid)

    def _kill_late(self) -> None:
        for worker in self._workers:
            if worker.is_starting and time.monotonic() > worker.give_up_at:
                worker.is_late = True
                worker.send(signal.SIGKILL)

    def _give_up_if_none_serves(self) -> None:
        """Waits for workers that are still starting: one that serves is enough."""
        if self._has_used_up_attempts() and not self._workers and not self._is_stopping:
            raise CannotStart(f"No worker can start: {self._last_reason}")

    def _has_used_up_attempts(self) -> bool:
        return not self._has_served and self._failed_attempts >= START_ATTEMPTS

    def _reap(self) -> None:
        for worker in self._workers.copy():
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._note_exit(worker, os.waitstatus_to_exitcode(status))

    def _note_exit(self, worker: _Worker, code: int) -> None:
        self._workers.remove(worker)
        if worker in self._outgoing:
            self._outgoing.remove(worker)
        with suppress(BlockingIOError):  # the worker's last write may still be in it
            while worker.is_starting and self._read_report(worker):
                pass
        if worker.is_starting and not worker.is_draining:
            fault = self._timed_out if worker.is_late else worker.start_fault(code)
            self._note_failed_start(fault, pid=worker.pid)
        elif not worker.is_draining:
            _log.warning("worker %d left with status %d", worker.pid, code)
            if time.monotonic() - worker.serves_since < _SHORT_LIFE_SECONDS:
                soon = time.monotonic() + _FIRST_DELAY_SECONDS
                self._next_start_at = max(self._next_start_at, soon)
        worker.close_pipe()
        self._on_worker_exit(worker.pid)

    # ── signals ─────────────────────────────────────────────────────────────────────────────

    def _heed_signals(self) -> None:
        with suppress(BlockingIOError):
            for number in os.read(self._signals.cache_policy, 4096):
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
        _flush_output()  # otherwise the child writes buffered output a second time
        pipe, child_pipe = os.pipe()
        os.set_blocking(pipe, False)  # a process that the worker started may keep its end open
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
        return _Worker(pid, pipe, time.monotonic() + self._start_timeout_seconds)

    def _run_worker(self, pipe: int, mask: set[int | signal.Signals]) -> NoReturn:
        """In the child, which must never come back into the parent's code."""
        report = _StartReport(pipe)
        status = 1
        try:
            self._leave_parent_behind(mask)
            self._serve(self._listener, report.succeed)
            status = 0
        except SystemExit as leave:
            status = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
            if isinstance(leave.code, str):
                report.fail(leave.code)
        except BaseException as fault:  # noqa: BLE001 - the outermost frame of this process
            summary = "".join(traceback.format_exception_only(fault))
            report.fail(summary, traceback.format_exc())
        finally:
            logging.shutdown()
            _flush_output()
            os._exit(status)

    def _leave_parent_behind(self, mask: set[int | signal.Signals]) -> None:
        """Closes the parent's pipes and takes the signals that this module's docstring says."""
        # Since Python 3.12, asyncio resets this descriptor at a fork, so it may already be -1.
        signal.set_wakeup_fd(-1)
        self._signals.close()
        for worker in self._workers:
            worker.close_pipe()
        for number in _HEEDED:
            by_default = number in (signal.SIGTERM, signal.SIGCHLD)
            signal.signal(number, signal.SIG_DFL if by_default else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None if the gateway was started with it closed
            with suppress(OSError):
                stream.flush()


def _log_fault(event: str, *, reason: str, trace: str, pid: int | None = None) -> None:
    fields = {"pid": pid or os.getpid(), "reason": reason, "exception": trace}
    _log.error(event, extra={name: value for name, value in fields.items() if value})


@contextmanager
def _heeded_signals() -> Iterator[_SignalPipe]:
    """Python writes the signals of `_HEEDED` to a pipe; restores the previous handlers at exit."""
    signals = _SignalPipe(*os.pipe())
    os.set_blocking(signals.cache_policy, False)
    os.set_blocking(signals.writing, False)
    signal.set_wakeup_fd(signals.writing, warn_on_full_buffer=False)
    former = {number: signal.signal(number, lambda *_: None) for number in _HEEDED}
    try:
        yield signals
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        signals.close()


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
