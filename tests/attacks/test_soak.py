"""All attacks at once beside honest traffic: hits stay fast, memory stays bounded, books agree."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.billing.ledger import Ledger
from gateway.configuration.settings import Settings
from gateway.images import Record
from gateway.wiring.stores import open_store
from tests.attacks.attackers import ATTACKS
from tests.bench.processes import run_process
from tests.gateways import Client, Processes, Spent, read_spent, run_processes
from tests.ports import free_port
from tests.processes import living_children, resident_bytes
from tests.waiting import eventually

MIB = 1 << 20
MAX_MEMORY_BYTES = 512 * MIB
MAX_HIT_SECONDS = 0.050
MAX_SLOWDOWN = {"redis": 10, "sqlite": 20}
"""Measured are 5 to 8 times on Redis, and 7 to 18 on the embedded store, whose thread shares the
interpreter's lock with the event loop: 5 to 9 ms become 45 to 130."""
ATTEMPTS = 3
"""The fastest attempt counts, because other load on the machine can slow any of them."""
HIT = "an honest image"
PURCHASE_EVERY_SECONDS = 0.5
PAGE = 10_000


@dataclass
class Honest:
    """What honest clients saw."""

    hit_seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    purchases: int = 0

    def percentile(self, share: float) -> float:
        """Of the times of hits, in seconds."""
        return sorted(self.hit_seconds)[int(len(self.hit_seconds) * share)]


@dataclass
class Arena:
    """A gateway with one worker, a hostile upstream behind it, and honest keys."""

    store: str
    """`redis` or `sqlite`."""
    processes: Processes
    client: Client
    alice: Client
    keys: dict[str, str]
    """The secrets of the attackers' keys, by name."""
    key_ids: dict[str, str]
    worker: int


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.long)])
async def arena(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Arena]:
    url = None if request.param == "sqlite" else request.getfixturevalue("redis_url")
    port = free_port()
    command = [sys.executable, "-m", "tests.attacks.hostile_upstream", str(port)]
    base_url = f"http://127.0.0.1:{port}/v1"
    options = {
        "server": {"admin_token": "${GATEWAY_ADMIN_TOKEN}", "read_timeout": "5s"},
        "cache": {"derive_formats": True},
        "upstream": {"breaker": {"failures": 0}},
    }
    with run_process("upstream", command, port=port, folder=tmp_path):
        async with run_processes(
            tmp_path / "gateway",
            base_url,
            workers=1,
            redis_url=url,
            options=options,
            may_fork=False,
        ) as (processes, client):
            alice = await client.with_key("alice")
            attackers = {
                "mallory": await client.with_key("mallory"),
                "muted": await client.with_key("muted", limits={"requests_per_minute": 0}),
                "poor": await client.with_key("poor", limits={"usd_per_day": 0.000001}),
            }
            (worker,) = living_children(processes.process.pid)
            yield Arena(
                request.param,
                processes,
                client,
                alice,
                {name: key.secret for name, key in attackers.items()},
                {name: key.key_id for name, key in {"alice": alice, **attackers}.items()},
                worker,
            )


# ── honest traffic ──────────────────────────────────────────────────────────────────────────


async def serve_honestly(arena: Arena, seconds: float, *, start: int = 0) -> Honest:
    """Two clients that hit and one that buys, for so long."""
    honest = Honest()
    until = time.monotonic() + seconds

    async def hit() -> None:
        while time.monotonic() < until:
            started = time.perf_counter()
            reply = await arena.alice.ask(HIT)
            honest.hit_seconds.append(time.perf_counter() - started)
            honest.statuses.append(reply.status)
            await asyncio.sleep(0.005)

    async def buy() -> None:
        while time.monotonic() < until:
            honest.purchases += 1
            prompt = f"honest image {start + honest.purchases}"
            reply = await arena.alice.ask(prompt)
            honest.statuses.append(reply.status)
            await asyncio.sleep(PURCHASE_EVERY_SECONDS)

    assert (await arena.alice.ask(HIT)).status == 200
    await asyncio.gather(hit(), hit(), buy())
    return honest


@contextmanager
def under_attack(arena: Arena) -> Iterator[dict[str, dict[str, int]]]:
    """Makes all attacks meanwhile; afterwards the dictionary has what each of them got."""
    got: dict[str, dict[str, int]] = {}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.attacks.attackers",
            arena.client.url,
            json.dumps(arena.keys),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        yield got
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=60)
        got.update(json.loads(printed))
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def watching_memory(pid: int) -> AsyncIterator[list[int]]:
    """Samples the memory of a process, in bytes."""
    samples: list[int] = []

    async def watch() -> None:
        while True:
            samples.append(resident_bytes(pid))
            await asyncio.sleep(0.1)

    task = asyncio.create_task(watch())
    try:
        yield samples
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ── afterwards ──────────────────────────────────────────────────────────────────────────────


async def read_records(settings: Settings) -> list[Record]:
    """All records of the ledger."""
    records: list[Record] = []
    async with open_store(settings) as (store, _):
        ledger, after = Ledger(store), ""
        while page := await ledger.read(after=after, limit=PAGE):
            records += [record for _, record in page]
            after = page[-1][0]
    return records


async def assert_books_agree(arena: Arena) -> None:
    """The counters of each key are the sums of its records, and nothing stays reserved."""
    settings = arena.processes.settings

    async def are_settled() -> bool:
        spent = [await read_spent(settings, key_id) for key_id in arena.key_ids.values()]
        return not any(each.reserved_micros or each.reserved_images for each in spent)

    await eventually(are_settled)
    records = await read_records(settings)
    for name, key_id in arena.key_ids.items():
        of_key = [record for record in records if record.key_id == key_id]
        assert await read_spent(settings, key_id) == Spent(
            sum(record.cost_micros for record in of_key),
            sum(record.images for record in of_key),
            reserved_micros=0,
            reserved_images=0,
        ), name


def report(line: str) -> None:
    """Shows a figure; pytest prints it with `-s`, or if the test fails."""
    sys.stdout.write(line + "\n")


async def attack(arena: Arena, seconds: float, *, start: int = 1_000_000) -> tuple[Honest, int]:
    """What honest clients saw under attack, and the most memory that the worker had."""
    async with watching_memory(arena.worker) as samples:
        with under_attack(arena) as got:
            honest = await serve_honestly(arena, seconds, start=start)
    report(json.dumps(got, indent=1))
    report(f"memory {max(samples) / MIB:.0f} MiB, p99 {honest.percentile(0.99):.4f} s")
    assert set(got) == set(ATTACKS), "an attack was never completed"
    assert all(got.values())
    assert set(honest.statuses) == {200}
    assert living_children(arena.processes.process.pid) == {arena.worker}
    await assert_books_agree(arena)
    return honest, max(samples)


@pytest.mark.timed
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_hits_under_attack_stay_fast_and_memory_bounded(arena: Arena) -> None:
    slowdowns: list[float] = []
    for attempt in range(ATTEMPTS):
        quiet = (await serve_honestly(arena, 4, start=1_000 * attempt)).percentile(0.99)
        report(f"p99 without an attack {quiet:.4f} s")
        honest, memory_bytes = await attack(arena, 10, start=1_000_000 * (attempt + 1))
        assert memory_bytes < MAX_MEMORY_BYTES
        slowdowns.append(honest.percentile(0.99) / quiet)
        if slowdowns[-1] <= MAX_SLOWDOWN[arena.store]:
            break

    assert min(slowdowns) <= MAX_SLOWDOWN[arena.store], slowdowns


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("arena", ["redis"], indirect=True)
async def test_the_gateway_withstands_ten_minutes_of_all_attacks(arena: Arena) -> None:
    honest, memory_bytes = await attack(arena, 600)

    assert memory_bytes < MAX_MEMORY_BYTES
    assert honest.percentile(0.99) < MAX_HIT_SECONDS
