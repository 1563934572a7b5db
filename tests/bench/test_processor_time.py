"""Processor time of processes, and what it comes to for a request."""

import os
import subprocess
import sys

import pytest

from tests.bench.processor_time import Processes, Spent, spent_by, used_seconds
from tests.bench.results import Measurement

BUSY = """
import sys, time
until = time.process_time() + 0.05
while time.process_time() < until:
    pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""
WITH_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"


def test_it_is_what_a_process_says_about_itself():
    with _running(BUSY) as process:
        own = float(process.stdout.readline())
        assert own <= used_seconds(process.pid) < own + 0.05


def test_a_living_child_counts():
    with _running(WITH_CHILD) as process:
        own = float(process.stdout.readline())
        assert used_seconds(process.pid) > own


def test_a_process_that_has_ended_has_used_none():
    with _running("") as process:
        process.wait()
    assert used_seconds(process.pid) == 0.0


def test_only_the_block_counts():
    _use(0.05)
    with spent_by(Processes((os.getpid(),), upstream=os.getpid())) as spent:
        _use(0.05)
    assert 0.05 <= spent.worker == pytest.approx(spent.upstream, abs=0.01)
    assert spent.worker < 0.09
    assert spent.redis is None


def test_time_is_divided_by_requests():
    spent = Spent(worker=2.0, redis=0.5)
    assert spent.for_each(1000, p50_ms=3.0) == Measurement(None, 3.0, 2.0, 0.5, None)
    assert spent.for_each(0) == Measurement()


def _use(seconds: float) -> None:
    until = used_seconds(os.getpid()) + seconds
    while used_seconds(os.getpid()) < until:
        pass


def _running(program: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
