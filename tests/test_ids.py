"""Ids of requests and purchases: none is made twice, in any thread or process."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest

from gateway.ids import new_purchase_id, new_request_id, time_of

IDS: Final = 1_000
"""Several times as many as are drawn at once."""

MAKERS: Final = pytest.mark.parametrize("make", [new_request_id, new_purchase_id])


@pytest.fixture(autouse=True)
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ids differ only by their random digits."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)


def in_child(make: Callable[[], str], count: int) -> list[str]:
    """Ids that a forked process makes first."""
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            with os.fdopen(write_end, "w") as pipe:
                pipe.writelines(f"{make()}\n" for _ in range(count))
            status = 0
        finally:
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        found = pipe.read().split()
    assert os.waitpid(pid, 0)[1] == 0
    return found


@MAKERS
def test_forked_processes_make_other_ids_than_their_parent(make: Callable[[], str]) -> None:
    first = make()  # so that digits are drawn that no id has yet
    children = [in_child(make, IDS) for _ in range(2)]
    grandchildren = in_child(lambda: in_child(make, 1)[0], 2)
    made = [first, *(each for child in children for each in child), *grandchildren]
    made += [make() for _ in range(IDS)]
    assert len(set(made)) == len(made) == 3 * IDS + 3


@MAKERS
def test_threads_make_different_ids(make: Callable[[], str]) -> None:
    threads = 8
    start = threading.Barrier(threads)

    def make_many(_: int) -> list[str]:
        start.wait()
        return [make() for _ in range(IDS)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: so threads stop in the middle of their work
    try:
        with ThreadPoolExecutor(threads) as pool:
            made = [each for found in pool.map(make_many, range(threads)) for each in found]
    finally:
        sys.setswitchinterval(interval)
    assert len(set(made)) == len(made) == threads * IDS


def test_ids_have_their_form_and_their_time() -> None:
    now = time.time()
    for _ in range(IDS):
        request, purchase = new_request_id(), new_purchase_id()
        assert (len(request), len(purchase)) == (36, 28)
        assert time_of(request, now=now) == time_of(purchase, now=now) == pytest.approx(now, abs=60)
