"""Requests for images that all differ: purchases, and hits that are not in memory.

Their upstream (`holding`) is slower than nginx, so only processor time counts.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import redis

from tests.bench import nginx
from tests.bench.cells import BARE_REDIS, GATEWAY, HIT_COLD, NO_MEMORY_CACHE, SIZES, Cell
from tests.bench.goals import cell_figures
from tests.bench.load import Target, buy_known, measure_in_turn
from tests.bench.processes import run_process
from tests.bench.results import Part
from tests.bench.servers import (
    LIMITS,
    PURCHASE_LIMITS,
    Setup,
    open_targets,
    run_gateway,
    with_limits,
)
from tests.ports import free_port

CONNECTIONS = 16


def not_in_memory(folder: Path, redis_url: str, *, seconds: int, rounds: int) -> Iterator[Part]:
    """Hits whose bytes are read from Redis, beside a bare handler that reads as many."""
    print("not in memory …", file=sys.stderr)  # noqa: T201
    own_folder = folder / "not-in-memory"
    running = run_distinct(own_folder, redis_url, HIT_COLD.size, memory_bytes=0)
    setup = Setup(own_folder / "bare", HIT_COLD.size, "", redis_url)
    with running as gateway, open_targets(setup, {BARE_REDIS}) as bare:
        asyncio.run(buy_known(gateway, HIT_COLD.images))
        kept = with_limits(gateway, HIT_COLD.size, PURCHASE_LIMITS)
        targets = [replace(kept, name=NO_MEMORY_CACHE), bare["hit"][BARE_REDIS]]
        servers = measure_in_turn(targets, HIT_COLD, seconds=seconds, rounds=rounds)
        yield Part({HIT_COLD.name: servers}, tuple(cell_figures(HIT_COLD, servers)))


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
    memory_bytes: int | None = None,
) -> Iterator[Target]:
    """A gateway in front of an upstream whose images all differ."""
    folder.mkdir()
    answer, port = folder / "answer.json", free_port()
    answer.write_bytes(nginx.answer_of(SIZES[size]))
    command = [sys.executable, "-m", "tests.bench.holding", str(port), str(answer), "open"]
    with run_process("upstream", command, port=port, folder=folder) as pid:
        base_url = f"http://127.0.0.1:{port}/v1"
        setup = Setup(folder, size, base_url, redis_url, upstream_pid=pid)
        with run_gateway(
            setup, GATEWAY, redis_url, workers=workers, limits=limits, memory_bytes=memory_bytes
        ) as target:
            yield target
