"""Measures one worker and one Redis, in about three minutes.

A figure is processor time, a count or bytes, divided by the number of requests: these depend less
on other load of the machine than rates do. Every purchase brings a different image.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import redis

from tests.bench.bulk import measure_in_flight
from tests.bench.cells import SIZES, Cell, Kind
from tests.bench.distinct import run_distinct
from tests.bench.load import Failed, Target, run_wrk
from tests.bench.machine import processor_name, store_version
from tests.bench.processor_time import SETTLE_SECONDS, used_seconds
from tests.bench.servers import PURCHASE_LIMITS
from tests.bench.sizing.figures import Figures, Load
from tests.bench.sizing.recovery import measure_recovery
from tests.gateways import start_processes
from tests.processes import resident_bytes
from tests.redis_server import run_redis_server

SECONDS = 5
"""Of each load."""
IN_FLIGHT = 2_000
CONNECTIONS = 16
SLOWLOG = 200_000
"""Commands that are remembered with their time."""
_BATCH = 1_000

_KEY = re.compile(r"igw:(?:\{(\w+)\}|(\w+))")
_SLOTS = {
    "books": "books",
    "lru": "lru",
    "entry": "entries",
    "leases": "entries",
    "flight": "entries",
    "blob": "blobs",
}
"""The first part of a key, and the slots that it belongs to. Entries and blobs spread over all."""

_KINDS = {
    "igw:{books}:journal:": "journal",
    "igw:{books}:ledger:free:": "records of hits",
    "igw:{books}:ledger:": "record",
    "igw:{books}:": "other books",
    "igw:entry:": "entry",
    "igw:blob:": "blob",
    "igw:{lru}:": "LRU index",
    "igw:{ordered}:": "lists of images",
    "igw:value:images:": "image index",
    "igw:set:images_by_digest:": "image index",
    "igw:flight": "flight",
    "igw:leases:": "flight",
}
"""How keys begin, and what they hold."""


@dataclass(frozen=True)
class _Reading:
    """Totals since the start of the processes."""

    worker_seconds: float
    redis_seconds: float
    bytes: int


def measure(folder: Path) -> Figures:
    """Runs everything in `folder`. Raises `Failed` if a request fails."""
    redis_folder = folder / "redis"
    redis_folder.mkdir()
    with run_redis_server(redis_folder) as url, redis.Redis.from_url(url) as client:
        kept = _measure_kept_hit(folder, client, url)
        small = _measure_size(folder, client, url, "2 KB")
        large = _measure_size(folder, client, url, "2 MB")
        client.flushall()
        per_second, busy = _measure_two_workers(folder, client, url)
        client.flushall()
        in_flight = measure_in_flight(folder / "in-flight", url, IN_FLIGHT)
        client.flushall()
        start_seconds, idle_bytes = _measure_start(folder / "start", url)
        return Figures(
            date=time.strftime("%Y-%m-%d", time.gmtime()),
            machine=processor_name(),
            processors=os.cpu_count() or 1,
            versions=f"Python {platform.python_version()}, {store_version(client)}",
            image_bytes=SIZES["2 MB"],
            hit_kept=kept,
            hit_small=small.hit,
            hit_large=large.hit,
            purchase_small=small.purchase,
            purchase_large=large.purchase,
            hit_shares=small.hit_shares,
            purchase_shares=small.purchase_shares,
            purchase_memory=small.memory,
            free_record_bytes=small.free_record_bytes,
            in_flight_bytes=(in_flight.held_bytes - in_flight.idle_bytes) / IN_FLIGHT,
            idle_bytes=idle_bytes,
            start_seconds=start_seconds,
            both_per_second=per_second,
            both_redis_busy=busy,
            recovery_seconds=measure_recovery(folder / "recovery"),
        )


@dataclass(frozen=True)
class _Size:
    """What is measured with images of one size."""

    hit: Load
    purchase: Load
    hit_shares: dict[str, float]
    purchase_shares: dict[str, float]
    memory: dict[str, float]
    free_record_bytes: float


def _measure_size(folder: Path, client: redis.Redis, url: str, size: str) -> _Size:
    with run_distinct(folder / size.replace(" ", ""), url, size) as target:
        hit, hit_shares = _measure_load(target, client, "hit", size)
        # The records of hits, before purchases add theirs.
        records = sum(client.xlen(key) for key in client.scan_iter("igw:*ledger:free:*"))
        free_bytes = _memory_by_kind(client).get("records of hits", 0)
        purchase, shares = _measure_load(target, client, "bought", size)
        entries = sum(1 for _ in client.scan_iter("igw:entry:*", count=_BATCH))
        memory = {kind: total / entries for kind, total in _memory_by_kind(client).items()}
        memory.pop("records of hits", None)
        client.flushall()
    return _Size(hit, purchase, hit_shares, shares, memory, free_bytes / max(1, records))


def _measure_kept_hit(folder: Path, client: redis.Redis, url: str) -> Load:
    """A small hit of a key with all limits but the one that counts every request."""
    with run_distinct(folder / "kept", url, "2 KB", limits=PURCHASE_LIMITS) as target:
        load, _ = _measure_load(target, client, "hit", "2 KB")
    client.flushall()
    return load


# ── processor time and commands ─────────────────────────────────────────────────────────────


def _measure_load(
    target: Target, client: redis.Redis, kind: Kind, size: str
) -> tuple[Load, dict[str, float]]:
    """Requests of one kind, and the share of each group of slots in the time of its commands."""
    cell = Cell(kind, size, CONNECTIONS)
    print(f"{cell.name} …", file=sys.stderr)  # noqa: T201
    run_wrk(target, cell, seconds=1)  # caches and pools fill
    time.sleep(SETTLE_SECONDS)
    before = _read(target, client)
    speed = run_wrk(target, cell, seconds=SECONDS)
    time.sleep(SETTLE_SECONDS)  # counts and records are written afterwards
    after = _read(target, client)
    with _logged(client) as log:
        logged = run_wrk(target, cell, seconds=1)
        time.sleep(SETTLE_SECONDS)
    load = Load(
        per_second=speed.per_second,
        worker_ms=(after.worker_seconds - before.worker_seconds) / speed.requests * 1e3,
        redis_ms=(after.redis_seconds - before.redis_seconds) / speed.requests * 1e3,
        commands=len(log) / logged.requests,
        redis_bytes=(after.bytes - before.bytes) / speed.requests,
    )
    return load, _shares(log)


def _read(target: Target, client: redis.Redis) -> _Reading:
    info: dict[str, Any] = client.info()
    return _Reading(
        worker_seconds=sum(map(used_seconds, target.processes.workers)),
        redis_seconds=info["used_cpu_user"] + info["used_cpu_sys"],
        bytes=info["total_net_input_bytes"] + info["total_net_output_bytes"],
    )


@contextmanager
def _logged(client: redis.Redis) -> Iterator[list[tuple[str, int]]]:
    """Fills the list with all commands of the block: their first key, and their microseconds.

    A script is one command; the log's entries of what it calls have no client.
    """
    client.config_set("slowlog-max-len", SLOWLOG)
    client.config_set("slowlog-log-slower-than", 0)
    client.slowlog_reset()
    log: list[tuple[str, int]] = []
    try:
        yield log
    finally:
        client.config_set("slowlog-log-slower-than", -1)
        for entry in client.slowlog_get(SLOWLOG):
            command, address = entry["command"].decode(errors="replace"), entry["client_address"]
            if address != b"?:0" and not command.startswith(("CONFIG", "SLOWLOG", "config")):
                key = _KEY.search(command)
                log.append((key[1] or key[2] if key else "", entry["duration"]))
        client.slowlog_reset()


def _shares(log: Sequence[tuple[str, int]]) -> dict[str, float]:
    times: Counter[str] = Counter()
    for key, micros in log:
        times[_SLOTS.get(key, "others")] += micros
    return {group: times[group] / times.total() for group in sorted({*_SLOTS.values(), "others"})}


def _measure_two_workers(folder: Path, client: redis.Redis, url: str) -> tuple[float, float]:
    """Purchases a second of two workers, and the share of a processor that Redis used."""
    cell = Cell("bought", "2 KB", 2 * CONNECTIONS)
    with run_distinct(folder / "two", url, "2 KB", workers=2) as target:
        run_wrk(target, cell, seconds=1)
        before = _read(target, client)
        started = time.monotonic()
        speed = run_wrk(target, cell, seconds=SECONDS)
        after = _read(target, client)
        seconds = time.monotonic() - started
    return speed.per_second, (after.redis_seconds - before.redis_seconds) / seconds


# ── memory and start ────────────────────────────────────────────────────────────────────────


def _memory_by_kind(client: redis.Redis) -> dict[str, int]:
    """Bytes of all keys by what they hold. Of a blob only what it takes beyond its bytes."""
    found: Counter[str] = Counter()
    keys = list(client.scan_iter("igw:*", count=_BATCH))
    for start in range(0, len(keys), _BATCH):
        some = keys[start : start + _BATCH]
        with client.pipeline(transaction=False) as pipeline:
            for key in some:
                pipeline.memory_usage(key, samples=0)
            sizes = pipeline.execute()
        with client.pipeline(transaction=False) as pipeline:
            for key in some:
                pipeline.strlen(key) if _is_blob(key) else pipeline.echo("0")
            contents = pipeline.execute()
        for key, size, content in zip(some, sizes, contents, strict=True):
            found[_kind(key.decode())] += (size or 0) - int(content or 0)
    return dict(found)


def _is_blob(key: bytes) -> bool:
    return key.startswith(b"igw:blob:")


def _kind(key: str) -> str:
    return next((kind for start, kind in _KINDS.items() if key.startswith(start)), "others")


def _measure_start(folder: Path, url: str) -> tuple[float, int]:
    """Seconds until a gateway of one worker is healthy, and the worker's memory then."""
    print("start …", file=sys.stderr)  # noqa: T201
    started = time.monotonic()
    with start_processes(
        folder, "http://127.0.0.1:1/v1", workers=1, redis_url=url, may_fork=False
    ) as processes:
        with urllib.request.urlopen(f"{processes.url}/readyz") as answer:
            if answer.status != HTTPStatus.OK:
                raise Failed("the gateway is not ready")
        seconds = time.monotonic() - started
        time.sleep(SETTLE_SECONDS)
        (worker,) = processes.workers()
        return seconds, resident_bytes(worker)
