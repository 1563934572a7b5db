"""Purchases whose images all differ, so that the store gets new bytes each time.

Their upstream (`holding`) is slower than nginx, so only processor time counts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

from tests.bench import nginx
from tests.bench.cells import GATEWAY, SIZES, Cell
from tests.bench.load import Target, measure_in_turn
from tests.bench.processes import run_process
from tests.bench.results import Part
from tests.bench.servers import LIMITS, Setup, run_gateway
from tests.ports import free_port

CONNECTIONS = 16


def distinct(folder: Path, redis_url: str, *, seconds: int, rounds: int) -> Iterator[Part]:
    """A cell of each size."""
    for size, size_bytes in SIZES.items():
        cell = Cell("bought", size, CONNECTIONS)
        name = f"{cell.name}, every image another"
        print(f"{name} …", file=sys.stderr)  # noqa: T201
        with run_distinct(folder / f"distinct-{size_bytes}", redis_url, size) as gateway:
            yield Part({name: measure_in_turn([gateway], cell, seconds=seconds, rounds=rounds)})
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()  # gigabytes


@contextmanager
def run_distinct(
    folder: Path,
    redis_url: str,
    size: str,
    *,
    workers: int = 1,
    limits: Mapping[str, int] = LIMITS,
) -> Iterator[Target]:
    """A gateway in front of an upstream whose images all differ."""
    folder.mkdir()
    answer, port = folder / "answer.json", free_port()
    answer.write_bytes(nginx.answer_of(SIZES[size]))
    command = [sys.executable, "-m", "tests.bench.holding", str(port), str(answer), "open"]
    with run_process("upstream", command, port=port, folder=folder) as pid:
        base_url = f"http://127.0.0.1:{port}/v1"
        setup = Setup(folder, size, base_url, redis_url, upstream_pid=pid)
        with run_gateway(setup, GATEWAY, redis_url, workers=workers, limits=limits) as target:
            yield target
