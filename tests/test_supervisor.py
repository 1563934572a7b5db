"""The parent process: what becomes of its workers, with real processes and real signals."""

import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.supervisor import EX_CONFIG, CannotListen, PortInUse, bind_socket
from tests.processes import is_running, living_children

SERVER = Path(__file__).with_name("supervised_server.py")


@dataclass
class Parent:
    process: subprocess.Popen[str]
    port: int
    state: Path

    def ask(self, path: str = "/") -> int:
        """The process id of the worker that answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return int(connection.getresponse().read())
        finally:
            connection.close()

    def workers(self) -> set[int]:
        return living_children(self.process.pid)

    def served_by(self) -> set[int]:
        return {self.ask() for _ in range(12)}

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def send_to_group(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def become(self, mode: str) -> None:
        """How workers behave that start from now on."""
        (self.state / "mode").write_text(mode)


def until(holds: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@contextmanager
def supervised(state: Path, *, workers: int = 2, mode: str = "serve") -> Iterator[Parent]:
    (state / "mode").write_text(mode)
    with (state / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(workers), str(state)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
    assert process.stdout is not None
    with process:
        try:
            yield Parent(process, int(process.stdout.readline()), state)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def slow_request(parent: Parent) -> Iterator[list[int]]:
    """A request that a worker is busy with; the list has the answer once the block is left."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(parent.ask("/slow")))
    thread.start()
    time.sleep(0.3)
    yield answers
    thread.join(5)


def test_a_killed_worker_is_replaced(tmp_path: Path):
    with supervised(tmp_path) as parent:
        victim = parent.ask()
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in parent.workers() and len(parent.workers()) == 2)
        assert victim not in parent.served_by()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_workers_finish(tmp_path: Path, number: int):
    with supervised(tmp_path) as parent:
        parent.ask()
        with slow_request(parent) as answers:
            parent.send(number)
        assert len(answers) == 1
        assert parent.process.wait(5) == 0


@pytest.mark.timed
def test_the_second_signal_ends_everything_at_once(tmp_path: Path):
    with supervised(tmp_path, workers=1) as parent:
        worker = parent.ask()
        connection = http.client.HTTPConnection("127.0.0.1", parent.port, timeout=5)
        connection.request("GET", "/slow")
        time.sleep(0.2)
        started = time.monotonic()
        parent.send(signal.SIGTERM)
        time.sleep(0.1)
        parent.send(signal.SIGINT)
        assert parent.process.wait(5) == 128 + signal.SIGINT
        assert time.monotonic() - started < 0.6
        assert not is_running(worker)
        with pytest.raises(ConnectionError):
            connection.getresponse()
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_counts_once(tmp_path: Path, number: int):
    """As a terminal's Ctrl-C or a container's stop does; workers get SIGTERM twice then."""
    with supervised(tmp_path) as parent:
        parent.ask()
        with slow_request(parent) as answers:
            parent.send_to_group(number)
        assert len(answers) == 1
        assert parent.process.wait(5) == 0


def test_a_hangup_reaches_every_worker(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        workers = parent.workers()
        parent.send(signal.SIGHUP)
        hups = tmp_path / "hups"
        expected = {f"hup {pid}" for pid in workers}
        until(lambda: hups.exists() and set(hups.read_text().splitlines()) == expected)
        assert parent.workers() == workers


def test_a_roll_replaces_every_worker_and_no_request_fails(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        old = parent.workers()
        parent.send(signal.SIGUSR2)
        most = 0
        while parent.workers() & old:
            parent.ask()
            most = max(most, len(parent.workers()))
        until(lambda: len(parent.workers()) == 2)
        assert not parent.served_by() & old
        assert most >= 3


def test_a_roll_keeps_the_old_workers_when_new_ones_do_not_come_up(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        old = parent.workers()
        parent.become("config")
        parent.send(signal.SIGUSR2)
        until(lambda: "the old ones stay" in (tmp_path / "log").read_text())
        assert parent.workers() == old
        parent.become("serve")
        parent.send(signal.SIGUSR2)
        until(lambda: len(parent.workers()) == 2 and not parent.workers() & old)


def test_a_worker_that_cannot_start_leaves_the_others_alone(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        parent.become("crash")
        victim, other = parent.workers()
        os.kill(victim, signal.SIGKILL)
        until(lambda: "told to crash" in (tmp_path / "log").read_text())
        assert parent.served_by() == {other}
        parent.become("serve")
        until(lambda: len(parent.served_by()) == 2)


def test_attempts_to_start_come_slower_each_time(tmp_path: Path):
    with supervised(tmp_path, workers=1, mode="crash") as parent:
        time.sleep(2.5)
        attempts = (tmp_path / "log").read_text().count("RuntimeError: told to crash")
        assert 2 <= attempts <= 3  # at about 0, 0.5 and 1.5 s
        parent.send(signal.SIGTERM)
        assert parent.process.wait(5) == 0


def test_a_wrong_configuration_at_the_start_ends_it(tmp_path: Path):
    with supervised(tmp_path, mode="config") as parent:
        assert parent.process.wait(5) == EX_CONFIG


def test_workers_that_hang_at_the_start_can_be_ended(tmp_path: Path):
    with supervised(tmp_path, mode="hang") as parent:
        until(lambda: len(parent.workers()) == 2)
        parent.send(signal.SIGINT)
        parent.send(signal.SIGTERM)
        assert parent.process.wait(5) > 128


def test_every_exit_is_reported(tmp_path: Path):
    with supervised(tmp_path) as parent:
        until(lambda: len(parent.served_by()) == 2)
        workers = parent.workers()
        parent.send(signal.SIGTERM)
        assert parent.process.wait(5) == 0
        assert parent.process.stdout is not None
        lines = parent.process.stdout.read().split("\n")
        assert {f"exit {pid}" for pid in workers} <= set(lines)


def test_a_used_port_is_named_with_the_way_out():
    with bind_socket("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"Port {port} .* GATEWAY_LISTEN=127\.0\.0\.1:\d+"):
            bind_socket("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(CannotListen, match=r"Cannot listen on 192\.0\.2\.1:8080: .*GATEWAY_LISTEN"):
        bind_socket("192.0.2.1", 8080)
