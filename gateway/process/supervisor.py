"""The parent process: forks the workers, replaces them, and handles signals.

It has no loop, no thread and no store, so that it can fork safely and little in it can break. What
a worker does is the `serve` function that it is given.

    SIGTERM, SIGINT   the first: SIGTERM to every worker, and wait until they have drained
                      the second: SIGKILL to every worker
    SIGHUP            sent on to every worker
    SIGUSR2           a rolling restart: start a worker, wait until it serves, send SIGUSR1 to an
                      old one, and so on; cancelled if a new worker fails to start

A worker drains at SIGTERM, when the whole gateway ends, and at SIGUSR1, when another worker serves
in its place: only then may it stop taking connections at once. It starts with these two at their
default and SIGINT, SIGHUP and SIGUSR2 ignored, because a Ctrl-C or a `kill` of the whole group
reaches workers too, and only the parent acts on it. A worker notices that its parent was killed by
another `os.getppid()`, or by a broken pipe when it reports that it serves.

A worker that cannot start sends its parent the reason (`start_reports`). The parent tries again,
with growing delays. If no worker has ever served, it gives up after `START_ATTEMPTS` attempts.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn

import structlog

from gateway.process.listener import Listeners
from gateway.process.signals import (
    HANDLED_SIGNALS,
    STOP_SIGNALS,
    SignalPipe,
    open_signal_pipe,
)
from gateway.process.start_reports import (
    READY,
    StartFailure,
    StartReporter,
    log_failure,
    read_failure,
)

Serve = Callable[[Listeners, Callable[[], None]], None]
"""`serve(listeners, ready)`: runs one worker until it has drained; calls `ready` once it serves.

A failure that needs no traceback is raised as `SystemExit(reason)`.
"""

START_TIMEOUT_SECONDS: Final = 60.0
"""A worker that does not serve by then is killed, and counts as one that cannot start."""

START_ATTEMPTS: Final = 4
"""If no worker has ever served, the gateway ends after this many failed attempts.

If each fails at once, they begin at 0, 0.5, 1.5 and 3.5 s.
"""

FIRST_DELAY_SECONDS: Final = 0.5
MAX_DELAY_SECONDS: Final = 30.0
SHORT_LIFE_SECONDS: Final = 2.0
"""If a worker served for less, its replacement is delayed, because it may crash as fast."""

log = structlog.get_logger(__name__)


class CannotStart(Exception):
    """No worker served in the first `START_ATTEMPTS` attempts; the message has the last reason."""


def supervise(
    *,
    listeners: Listeners,
    workers: int,
    serve: Serve,
    on_worker_exit: Callable[[int], None] | None = None,
    start_timeout_seconds: float = START_TIMEOUT_SECONDS,
) -> int:
    """Keeps `workers` processes serving on `listeners` until a signal stops it; returns a status.

    0 after all have drained, 128 + signal after a second signal cut that short. Raises
    `CannotStart` if no worker has ever served and all attempts failed. `on_worker_exit` gets the
    process id of each worker that has exited. To be called in the main thread of a process
    without others.
    """
    with open_signal_pipe() as signals:
        return _Supervisor(
            listeners,
            workers,
            serve,
            on_worker_exit=on_worker_exit or (lambda pid: None),
            start_timeout_seconds=start_timeout_seconds,
            signals=signals,
        ).run()


@dataclass(slots=True, eq=False)
class _Worker:
    """A child process, from its fork until the parent has waited for it."""

    pid: int
    pipe: int
    """The parent's end of the start report; −1 once the worker serves."""
    start_deadline: float
    ready_at: float = 0.0
    report: bytes = b""
    is_late: bool = False
    is_draining: bool = False

    @property
    def is_starting(self) -> bool:
        return self.pipe >= 0

    def send(self, number: int) -> None:
        # The process id is still its own: only the parent can reap it.
        os.kill(self.pid, number)

    def drain(self, number: int) -> None:
        """Sends the signal to drain, once."""
        if not self.is_draining:
            self.is_draining = True
            self.send(number)

    def close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1


class _Supervisor:
    def __init__(
        self,
        listeners: Listeners,
        wanted: int,
        serve: Serve,
        *,
        on_worker_exit: Callable[[int], None],
        start_timeout_seconds: float,
        signals: SignalPipe,
    ) -> None:
        self._listeners = listeners
        self._wanted = wanted
        self._serve = serve
        self._on_worker_exit = on_worker_exit
        self._start_timeout_seconds = start_timeout_seconds
        self._signals = signals
        self._workers: list[_Worker] = []
        self._to_replace: list[_Worker] = []  # by the rolling restart under way
        self._has_served = False
        self._failed_attempts = 0
        self._last_reason = ""  # of a failed start
        self._traced: set[tuple[str, ...]] = set()  # frames of tracebacks that have been logged
        self._delay_seconds = FIRST_DELAY_SECONDS  # after the next failed start
        self._next_start_at = 0.0
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        while self._workers or not self._is_stopping:
            self._start_missing()
            # While a worker is still starting, it may yet serve.
            if self._is_out_of_attempts() and not self._workers and not self._is_stopping:
                raise CannotStart(f"No worker can start: {self._last_reason}")
            self._replace_next()
            self._wait()
            for number in self._signals.numbers():
                self._handle(number)
            for worker in self._workers.copy():
                # By process id: `gateway demo` has another child, for which it waits itself.
                pid, status = os.waitpid(worker.pid, os.WNOHANG)
                if pid:
                    self._on_exit(worker, os.waitstatus_to_exitcode(status))
            self._kill_late()
        return self._status

    # ── starting and replacing ──────────────────────────────────────────────────────────────

    def _is_out_of_attempts(self) -> bool:
        return not self._has_served and self._failed_attempts >= START_ATTEMPTS

    def _missing(self) -> int:
        """How many workers to start: draining ones do not count, a rolling restart has one more."""
        if self._is_stopping or self._is_out_of_attempts():
            return 0
        staying = sum(not worker.is_draining for worker in self._workers)
        return self._wanted + bool(self._to_replace) - staying

    def _start_missing(self) -> None:
        if time.monotonic() < self._next_start_at:
            return
        try:
            for _ in range(self._missing()):
                self._workers.append(self._fork())
        except OSError as error:
            self._on_failed_start(StartFailure(f"cannot fork a worker: {error.strerror}"))

    def _replace_next(self) -> None:
        """The next step of a rolling restart, once one more worker serves than wanted."""
        serving = [w for w in self._workers if not w.is_draining and not w.is_starting]
        if self._to_replace and len(serving) > self._wanted:
            replaced = self._to_replace.pop(0)
            log.info("worker_replaced", pid=replaced.pid)
            replaced.drain(signal.SIGUSR1)

    def _on_failed_start(self, failure: StartFailure, *, pid: int | None = None) -> None:
        """Delays the next attempt and cancels a rolling restart: the old workers stay."""
        trace = "" if failure.frames in self._traced else failure.traceback
        log_failure(failure.event, pid=pid, reason=failure.reason, traceback=trace)
        self._last_reason = failure.reason
        self._traced.add(failure.frames)
        if self._to_replace:
            log.error("rolling_restart_cancelled", workers=len(self._to_replace))
            self._to_replace.clear()
        # Workers that fail at the same time are one attempt.
        if time.monotonic() < self._next_start_at:
            return
        self._failed_attempts += 1
        self._next_start_at = time.monotonic() + self._delay_seconds
        self._delay_seconds = min(2 * self._delay_seconds, MAX_DELAY_SECONDS)

    # ── waiting ─────────────────────────────────────────────────────────────────────────────

    def _wait(self) -> None:
        """Returns at a signal, at a start report, or when a start or a kill is due."""
        starting = {worker.pipe: worker for worker in self._workers if worker.is_starting}
        times = [worker.start_deadline for worker in starting.values()]
        if self._missing() > 0:
            times.append(self._next_start_at)
        seconds = max(0.0, min(times) - time.monotonic()) if times else None
        readable, _, _ = select.select([self._signals.read_end, *starting], [], [], seconds)
        for pipe in readable:
            if pipe in starting:
                self._read_report(starting[pipe])

    def _read_report(self, worker: _Worker) -> bool:
        """Reads the available part of a start report; False at its end."""
        chunk = os.read(worker.pipe, 65_536)
        worker.report += chunk
        if worker.report == READY:
            self._on_ready(worker)
        return bool(chunk)

    def _on_ready(self, worker: _Worker) -> None:
        worker.close_pipe()
        worker.ready_at = time.monotonic()
        self._has_served = True
        self._traced.clear()
        self._delay_seconds = FIRST_DELAY_SECONDS
        # Not at once: another worker may just have crashed soon after it served.
        self._next_start_at = min(self._next_start_at, worker.ready_at + FIRST_DELAY_SECONDS)
        log.info("worker_ready", pid=worker.pid)

    def _kill_late(self) -> None:
        for worker in self._workers:
            if worker.is_starting and time.monotonic() > worker.start_deadline:
                worker.is_late = True
                worker.send(signal.SIGKILL)

    def _on_exit(self, worker: _Worker, code: int) -> None:
        self._workers.remove(worker)
        if worker in self._to_replace:
            self._to_replace.remove(worker)
        with suppress(BlockingIOError):  # the worker's last write may not have been read yet
            while worker.is_starting and self._read_report(worker):
                pass
        if worker.is_starting and not worker.is_draining:
            failure = self._timeout() if worker.is_late else read_failure(worker.report, code)
            self._on_failed_start(failure, pid=worker.pid)
        elif not worker.is_draining:
            log.warning("worker_exited", pid=worker.pid, status=code)
            if time.monotonic() - worker.ready_at < SHORT_LIFE_SECONDS:
                soon = time.monotonic() + FIRST_DELAY_SECONDS
                self._next_start_at = max(self._next_start_at, soon)
        worker.close_pipe()
        self._on_worker_exit(worker.pid)

    def _timeout(self) -> StartFailure:
        return StartFailure(
            f"the worker did not serve within {self._start_timeout_seconds:g} s",
            event="worker_start_timeout",
        )

    # ── signals ─────────────────────────────────────────────────────────────────────────────

    def _handle(self, number: int) -> None:
        if number in STOP_SIGNALS and self._is_stopping:
            self._status = 128 + number
            self._send_all(signal.SIGKILL)
        elif number in STOP_SIGNALS:
            self._is_stopping = True
            self._listeners.close()  # a port closes when the workers have closed it too
            for worker in self._workers:
                worker.drain(signal.SIGTERM)
        elif number == signal.SIGHUP:
            self._send_all(signal.SIGHUP)
        elif number == signal.SIGUSR2:
            self._to_replace = [worker for worker in self._workers if not worker.is_draining]
            # A restart that the operator requests does not wait for the delay after a failed start.
            self._next_start_at = 0.0

    def _send_all(self, number: int) -> None:
        for worker in self._workers:
            worker.send(number)

    # ── forking ─────────────────────────────────────────────────────────────────────────────

    def _fork(self) -> _Worker:
        _flush_output()  # otherwise the child writes buffered output a second time
        pipe, child_pipe = os.pipe()
        os.set_blocking(pipe, False)  # a process that the worker started may keep its end open
        # Signals wait until the child has its own handlers; the parent's would write to this pipe.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                os.close(pipe)  # so that it breaks when the parent's end is closed
                self._run_worker(child_pipe, mask)
        except OSError:
            os.close(pipe)
            raise
        finally:
            # Only the parent comes here: `_run_worker` never returns.
            os.close(child_pipe)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return _Worker(pid, pipe, time.monotonic() + self._start_timeout_seconds)

    def _run_worker(self, pipe: int, mask: set[int | signal.Signals]) -> NoReturn:
        """Runs in the child, which must never return into the parent's code."""
        reporter = StartReporter(pipe)
        status = 1
        try:
            self._detach_from_parent(mask)
            self._serve(self._listeners, reporter.report_ready)
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
            if isinstance(exit_.code, str):
                reporter.report_failure(exit_.code)
        except BaseException as error:  # noqa: BLE001 - the outermost frame of this process
            summary = "".join(traceback.format_exception_only(error))
            reporter.report_failure(summary, traceback.format_exc())
        finally:
            # `os._exit` runs no exit handlers and flushes nothing.
            logging.shutdown()
            _flush_output()
            os._exit(status)

    def _detach_from_parent(self, mask: set[int | signal.Signals]) -> None:
        """Closes the parent's pipes and sets the signals as this module's docstring says."""
        # Since Python 3.12, asyncio resets this descriptor at a fork, so it may already be -1.
        signal.set_wakeup_fd(-1)
        self._signals.close()
        for worker in self._workers:
            worker.close_pipe()
        for number in HANDLED_SIGNALS:
            has_default = number in (signal.SIGTERM, signal.SIGCHLD)
            signal.signal(number, signal.SIG_DFL if has_default else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
