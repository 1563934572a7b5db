"""The supervisor, with real processes and real signals."""

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.process.listener import CannotListen, PortInUse, bind_socket
from gateway.process.supervisor import START_ATTEMPTS
from tests.forks import Fork
from tests.processes import is_running, kill_group, living_children, serving
from tests.waiting import GENEROUS_SECONDS, until

SERVER = "tests.process.supervised_server"


@dataclass
class Parent:
    process: Fork
    port: int
    state: Path

    def request_pid(self, path: str = "/") -> int:
        """The process id of the worker that responded."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=GENEROUS_SECONDS)
        try:
            connection.request("GET", path)
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def workers(self) -> set[int]:
        return living_children(self.process.pid)

    def served_by(self) -> set[int]:
        return {self.request_pid() for _ in range(12)}

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def send_to_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def events(self) -> list[dict[str, Any]]:
        """The supervisor's log; lines that are not JSON are skipped."""
        lines = (self.state / "log").read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def log(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one event."""
        return [line for line in self.events() if line["event"] == event]

    def last_line(self) -> str:
        """The last line on standard error."""
        return (self.state / "log").read_text().splitlines()[-1]

    def set_mode(self, mode: str) -> None:
        """Changes the behaviour of workers that start from now on."""
        (self.state / "mode").write_text(mode)


@contextmanager
def supervised(
    state: Path, *, workers: int = 2, mode: str = "serve", start_timeout_seconds: float = 60
) -> Iterator[Parent]:
    (state / "mode").write_text(mode)
    with (state / "log").open("w") as log:
        words = (str(workers), str(state), str(start_timeout_seconds))
        process = Fork(*words, cwd=state, env=os.environ, stderr=log, module=SERVER)
    with process.stdout:
        try:
            yield Parent(process, int(process.stdout.readline()), state)
        finally:
            kill_group(process.pid)
            process.wait()


@contextmanager
def slow_request(parent: Parent) -> Iterator[list[int]]:
    """A request that takes a second; on exit, the list has its response."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(parent.request_pid("/slow")))
    thread.start()
    until((parent.state / "slow").exists)
    yield answers
    thread.join(GENEROUS_SECONDS)


def test_a_killed_worker_is_replaced(tmp_path: Path):
    with supervised(tmp_path) as parent:
        victim = parent.request_pid()
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in parent.workers() and len(parent.workers()) == 2)
        assert victim not in parent.served_by()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_workers_finish(tmp_path: Path, number: int):
    with supervised(tmp_path) as parent:
        parent.request_pid()
        with slow_request(parent) as answers:
            parent.send(number)
        assert len(answers) == 1
        assert parent.process.wait(GENEROUS_SECONDS) == 0


def test_the_second_signal_ends_all_workers_at_once(tmp_path: Path):
    """The request that the first one waits for would take a minute."""
    with supervised(tmp_path, workers=1) as parent:
        worker = parent.request_pid()
        connection = http.client.HTTPConnection("127.0.0.1", parent.port, timeout=GENEROUS_SECONDS)
        connection.request("GET", "/hang")
        until((tmp_path / "hang").exists)
        parent.send(signal.SIGTERM)
        until((tmp_path / "stopping").exists)
        parent.send(signal.SIGINT)
        assert parent.process.wait(GENEROUS_SECONDS) == 128 + signal.SIGINT
        assert not is_running(worker)
        with pytest.raises(ConnectionError):
            connection.getresponse()
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_counts_once(tmp_path: Path, number: int):
    """As Ctrl-C and a container's stop do: the workers get two signals."""
    with supervised(tmp_path) as parent:
        parent.request_pid()
        with slow_request(parent) as answers:
            parent.send_to_group(number)
        assert len(answers) == 1
        assert parent.process.wait(GENEROUS_SECONDS) == 0


def test_a_hangup_reaches_every_worker(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        workers = parent.workers()
        parent.send(signal.SIGHUP)
        hups = tmp_path / "hups"
        expected = {f"hup {pid}" for pid in workers}
        until(lambda: hups.exists() and set(hups.read_text().splitlines()) == expected)
        assert parent.workers() == workers


def test_a_rolling_restart_replaces_every_worker_and_no_request_fails(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        old = parent.workers()
        parent.send(signal.SIGUSR2)
        while parent.workers() & old:
            parent.request_pid()
        until(lambda: len(parent.workers()) == 2)
        assert not parent.served_by() & old
        counts = [len(workers) for workers in serving(parent.events())]
        assert max(counts) == 3
        assert min(counts[counts.index(2) :]) == 2


def test_a_rolling_restart_keeps_the_old_workers_if_new_ones_cannot_start(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        old = parent.workers()
        parent.set_mode("exit")
        parent.send(signal.SIGUSR2)
        until(lambda: parent.log("rolling_restart_cancelled") != [])
        assert parent.workers() == old
        parent.set_mode("serve")
        parent.send(signal.SIGUSR2)
        until(lambda: len(parent.workers()) == 2 and not parent.workers() & old)


def test_a_worker_that_cannot_start_does_not_affect_the_others(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        parent.set_mode("crash")
        victim, other = parent.workers()
        os.kill(victim, signal.SIGKILL)
        until(lambda: parent.log("worker_start_failed") != [])
        assert parent.served_by() == {other}
        parent.set_mode("serve")
        until(lambda: len(parent.served_by()) == 2)


@pytest.mark.timed
@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.long), 2])
def test_a_gateway_that_has_never_served_ends_with_the_reason_and_one_traceback(
    tmp_path: Path, workers: int
):
    """The message of each fault differs, and the traceback is still logged only once."""
    started = time.monotonic()
    with supervised(tmp_path, workers=workers, mode="crash") as parent:
        assert parent.process.wait(GENEROUS_SECONDS) == 1
        assert 3.5 <= time.monotonic() - started < 10
        attempts = parent.log("worker_start_failed")
        assert len(attempts) == workers * START_ATTEMPTS
        assert {line["reason"] for line in attempts} == {
            f"RuntimeError: told to crash in {line['pid']}" for line in attempts
        }
        (traced,) = [line for line in attempts if "exception" in line]
        assert traced["exception"].startswith("Traceback")
        assert parent.last_line() == f"No worker can start: {attempts[-1]['reason']}"


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("exit", "told to exit"),
        ("exit silently", "the worker exited with status 3 before it served"),
        ("kill", "signal 9 (Killed) ended the worker"),
        ("half a word", "signal 9 (Killed) ended the worker"),
    ],
)
def test_a_worker_without_a_traceback_has_a_reason_too(tmp_path: Path, mode: str, reason: str):
    seconds = 0.3 if mode == "hang" else GENEROUS_SECONDS
    with supervised(tmp_path, mode=mode, start_timeout_seconds=seconds) as parent:
        until(lambda: len(parent.log("worker_start_failed")) > 2)
        attempts = parent.log("worker_start_failed")
        assert {line["reason"] for line in attempts} == {reason}
        assert all("exception" not in line for line in attempts)


def test_a_worker_that_does_not_serve_in_time_is_killed_and_tried_again(tmp_path: Path):
    with supervised(tmp_path, mode="hang", start_timeout_seconds=0.3) as parent:
        until(lambda: len(parent.log("worker_start_timeout")) > 2)
        reasons = {line["reason"] for line in parent.log("worker_start_timeout")}
        assert reasons == {"the worker did not serve within 0.3 s"}
        assert parent.log("worker_start_failed") == []


def test_a_gateway_that_can_never_fork_ends_too(tmp_path: Path):
    with supervised(tmp_path, mode="no descriptors") as parent:
        assert parent.process.wait(GENEROUS_SECONDS) == 1
        assert len(parent.log("worker_start_failed")) == START_ATTEMPTS
        assert (
            parent.last_line() == "No worker can start: cannot fork a worker: Too many open files"
        )


def test_a_group_of_faults_has_its_traceback_once(tmp_path: Path):
    with supervised(tmp_path, mode="crash in a group") as parent:
        until(lambda: len(parent.log("worker_start_failed")) > 2)
        attempts = parent.log("worker_start_failed")
        (traced,) = [line for line in attempts if "exception" in line]
        assert "RuntimeError: told to crash" in traced["exception"]


def test_a_reason_is_one_line_of_printable_characters(tmp_path: Path):
    with supervised(tmp_path, mode="crash oddly") as parent:
        until(lambda: parent.log("worker_start_failed") != [])
        assert parent.log("worker_start_failed")[0]["reason"] == (
            "RuntimeError: told ?[2J to ? crash ?"
        )


def test_workers_that_die_soon_after_they_served_are_not_replaced_at_once(tmp_path: Path):
    started = time.monotonic()
    with supervised(tmp_path, workers=4, mode="serve briefly") as parent:
        until(lambda: (tmp_path / "log").read_text().count('"worker_ready"') >= 3 * 4)
        # each worker has started three times, 0.5 s apart
        assert time.monotonic() - started >= 2 * 0.5
        parent.send(signal.SIGTERM)
        assert parent.process.wait(GENEROUS_SECONDS) in (0, 128 + signal.SIGTERM)


def test_a_fault_longer_than_a_pipe_is_cut_and_logged_with_its_location(tmp_path: Path):
    with supervised(tmp_path, mode="long crash") as parent:
        until(lambda: len(parent.log("worker_start_failed")) > 2)
        attempts = parent.log("worker_start_failed")
        assert {len(line["reason"]) for line in attempts} == {1_000}
        (traced,) = [line for line in attempts if "exception" in line]
        assert ", in obey" in traced["exception"]
        assert len(traced["exception"]) == 30_000


def test_each_of_two_faults_has_its_traceback_once(tmp_path: Path):
    with supervised(tmp_path, mode="crash here or there") as parent:
        until(lambda: len(parent.log("worker_start_failed")) > 4)
        attempts = parent.log("worker_start_failed")
        traced = [line["reason"] for line in attempts if "exception" in line]
        assert sorted(traced) == [
            f"RuntimeError: told to crash {where}" for where in ("here", "there")
        ]


def test_a_process_left_by_a_failed_worker_delays_nothing(tmp_path: Path):
    """The child keeps the worker's end of the pipe open."""
    with supervised(tmp_path, mode="crash with a child") as parent:
        until(lambda: len(parent.log("worker_start_failed")) > 2)
        parent.send(signal.SIGTERM)
        assert parent.process.wait(GENEROUS_SECONDS) == 0


def test_the_supervisor_waits_for_a_worker_that_is_still_starting(tmp_path: Path):
    """By then the other worker has failed in every attempt; the parent starts it again."""
    with supervised(tmp_path, workers=2, mode="one starts slowly") as parent:
        assert parent.request_pid() in parent.workers()
        assert len(parent.log("worker_start_failed")) >= START_ATTEMPTS
        parent.set_mode("serve")
        until(lambda: len(parent.served_by()) == 2)


def test_a_gateway_that_has_served_retries_without_limit(tmp_path: Path):
    """It keeps trying although no worker is left."""
    with supervised(tmp_path, workers=1) as parent:
        victim = parent.request_pid()
        parent.set_mode("crash")
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(parent.log("worker_start_failed")) == START_ATTEMPTS)
        assert sum("exception" in line for line in parent.log("worker_start_failed")) == 1
        parent.set_mode("serve")
        parent.send(signal.SIGUSR2)
        assert parent.request_pid() != victim
        parent.send(signal.SIGTERM)
        assert parent.process.wait(GENEROUS_SECONDS) == 0


def test_a_worker_that_fails_after_it_served_is_logged_and_replaced(tmp_path: Path):
    with supervised(tmp_path, workers=1) as parent:
        victim = parent.request_pid("/fault")
        assert parent.request_pid() != victim
        (line,) = parent.log("worker_failed")
        assert line["reason"] == "RuntimeError: told to fail"
        assert line["exception"].startswith("Traceback")
        assert parent.log("worker_start_failed") == []


def test_workers_that_hang_at_the_start_can_be_stopped(tmp_path: Path):
    with supervised(tmp_path, mode="hang") as parent:
        until(lambda: len(parent.workers()) == 2)
        parent.send(signal.SIGINT)
        parent.send(signal.SIGTERM)
        assert parent.process.wait(GENEROUS_SECONDS) > 128


def test_every_exit_is_reported(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        workers = parent.workers()
        parent.send(signal.SIGTERM)
        assert parent.process.wait(GENEROUS_SECONDS) == 0
        lines = parent.process.stdout.read().decode().split("\n")
        assert {f"exit {pid}" for pid in workers} <= set(lines)


def test_the_message_of_a_used_port_suggests_another():
    with bind_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"Port {port} .* GATEWAY_LISTEN=127\.0\.0\.1:\d+"):
            bind_socket("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(CannotListen, match=r"Cannot listen on 192\.0\.2\.1:8080: .*GATEWAY_LISTEN"):
        bind_socket("192.0.2.1", 8080)
