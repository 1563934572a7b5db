"""Chaos: workers are killed, the store pauses, upstream fails; afterwards the books agree.

Random clients send every kind of request to several workers meanwhile. Then all is quiet, and the
books, the cache and what upstream received are compared (`chaos_findings`). A run is repeated with

    CHAOS_SEED=… CHAOS_SECONDS=300 pytest -m long tests/attacks/test_chaos.py

though not exactly: the seed decides who asks for what and what breaks, not when it is scheduled.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.cache.flights import LEASE_SECONDS
from gateway.store.batch import execute
from gateway.store.commands import OpenJournals
from gateway.wiring.stores import DATABASE, open_store
from tests.attacks.chaos_findings import SHARED, Ask, Chaos, Sent, find_all
from tests.gateways import Client, Processes, Upstream, run_processes, run_upstream
from tests.processes import living_children
from tests.redis_server import run_durable_redis

SECONDS = float(os.environ.get("CHAOS_SECONDS", "300"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1_000_000))
WORKERS = 3
CLIENTS = 24
QUIET_SECONDS = 240.0
"""Longer than any recovery, lease or purchase."""

ASK_SECONDS = 120.0
PAUSES = (1, 2, 4, 8, 15, 30, 60)
PAUSE_WEIGHTS = (60, 50, 40, 30, 15, 8, 4)
FAULTS = (
    *("status=500", "status=502", "reset", "reset;after=half", "truncate", "malformed-json"),
    *("html", "bad-base64", "tiny-png", "one-bad", "fewer", "no-usage", "moderation", "slow=3"),
    "slow=20",
)
"""None that the gateway answers by trying again, so that a purchase is one call."""

OPTIONS = {
    "workers": {"heartbeat": "1s", "dead_after": "5s"},
    "upstream": {"timeout": "60s", "breaker": {"failures": 0}},
}
KEYS: dict[str, dict[str, Any]] = {
    "alice": {"usd_per_month": 100_000},
    "bob": {"usd_per_day": 100_000, "concurrent_requests": 500},
    "carol": {"images_per_minute": 120},
    "dave": {},
}
"""Names and limits. Only a key without limits buys while the store is unavailable."""

KINDS = {
    "plain": 30,
    "hit": 30,
    "variation": 5,
    "stream": 8,
    "no-cache": 6,
    "keyed": 10,
    "keyed-fresh": 10,
}


class Traffic:
    """Random requests; each prompt and each idempotency key always comes with the same body."""

    def __init__(self, chaos: Chaos, clients: dict[str, Client]) -> None:
        self._random = random.Random(SEED)
        self._chaos = chaos
        self._clients = clients
        self._asks: list[Ask] = []
        self._orders: list[tuple[str, Ask]] = []

    async def run(self, until: float) -> None:
        """One client until then."""
        while time.monotonic() < until:
            key, ask = self._choose()
            await self._send(key, ask)
            await asyncio.sleep(self._random.uniform(0.0, 0.6))

    async def _send(self, key: str, ask: Ask) -> None:
        client = self._clients[key]
        sent = self._chaos.start(key, ask)
        connector = aiohttp.TCPConnector(force_close=True)
        # A client that leaves in the middle of every thirtieth request.
        patience = self._random.uniform(0.05, 1.5) if self._random.random() < 0.03 else ASK_SECONDS
        with suppress(aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(patience), aiohttp.ClientSession(connector=connector) as own:
                there = replace(client, session=own)
                reply = await there.ask(**ask.body, user=sent.user, headers=ask.headers)
                sent.received(reply)
        sent.ended_at = time.time()

    def _choose(self) -> tuple[str, Ask]:
        rng = self._random
        key = rng.choice(list(KEYS))
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind in ("hit", "variation", "stream") and not self._asks:
            kind = "plain"
        if kind.startswith("keyed"):
            return self._choose_order(key, kind)
        if kind == "hit":
            return key, replace(rng.choice(self._asks[-60:]), kind="hit")
        if kind == "variation":
            ask = replace(rng.choice(self._asks[-60:]), kind="variation")
            variation = rng.randrange(1, 4)
            return key, replace(
                ask, variation=variation, headers={"X-Gateway-Variation": str(variation)}
            )
        ask = Ask(kind, self._body(kind), self._headers(kind))
        if kind in SHARED and not ask.body.get("stream"):
            self._asks.append(ask)
        return key, ask

    def _choose_order(self, key: str, kind: str) -> tuple[str, Ask]:
        rng = self._random
        if self._orders and rng.random() < 0.7:
            return rng.choice(self._orders[-12:])
        name = f"order-{len(self._orders)}"
        headers = {"Idempotency-Key": name, **self._headers(kind)}
        order = key, Ask(kind, self._body(kind), headers, order=f"{key} {name}")
        self._orders.append(order)
        return order

    def _headers(self, kind: str) -> dict[str, str]:
        return {"Cache-Control": "no-cache"} if kind in ("no-cache", "keyed-fresh") else {}

    def _body(self, kind: str) -> dict[str, Any]:
        rng = self._random
        fault = f"[[sim:{rng.choice(FAULTS)};times=1]] " if rng.random() < 0.3 else ""
        prompt = f"{fault}{kind} {rng.randrange(1 << 40):x}"
        if kind == "stream":
            model = {"model": "gpt-image-2", "quality": "low", "stream": True, "partial_images": 1}
            return {"prompt": prompt, **model}
        if rng.random() < 0.25:
            return {"prompt": prompt, "model": "dall-e-2", "n": rng.randint(1, 3)}
        model = {"model": rng.choice(["gpt-image-2", "gpt-image-2-2026-04-21"]), "quality": "low"}
        return {"prompt": prompt, **model, "n": rng.choice([1, 1, 1, 2, 4])}


# ── what breaks ─────────────────────────────────────────────────────────────────────────────


async def break_things(chaos: Chaos, world: World, until: float) -> None:
    """Kills workers and pauses the store, one after the other and sometimes at once."""
    rng = random.Random(SEED + 1)
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(left, rng.uniform(3, 10)))
        if rng.random() < 0.55:
            kill_worker(chaos, world, rng)
            continue
        seconds = rng.choices(PAUSES, PAUSE_WEIGHTS)[0]
        world.freeze()
        chaos.pause_begins(seconds)
        try:
            await asyncio.sleep(seconds / 2)
            if rng.random() < 0.25:
                kill_worker(chaos, world, rng)
            await asyncio.sleep(seconds / 2)
        finally:
            world.thaw()
            chaos.pause_ends()


def kill_worker(chaos: Chaos, world: World, rng: random.Random) -> None:
    workers = sorted(living_children(world.processes.process.pid))
    if workers:
        pid = rng.choice(workers)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        chaos.killed(pid)


class World:
    """Workers on a store that can be paused."""

    def __init__(
        self,
        processes: Processes,
        client: Client,
        freeze: Callable[[], None],
        thaw: Callable[[], None],
    ) -> None:
        self.processes = processes
        self.client = client
        self.freeze = freeze
        self.thaw = thaw


@asynccontextmanager
async def redis_world(folder: Path, upstream: Upstream) -> AsyncIterator[World]:
    (folder / "redis").mkdir()
    with run_durable_redis(folder / "redis") as server:
        async with run_processes(
            folder / "gateway",
            upstream.base_url,
            workers=WORKERS,
            redis_url=server.url,
            options=OPTIONS,
        ) as (processes, client):
            yield World(processes, client, server.freeze, server.thaw)


@asynccontextmanager
async def sqlite_world(folder: Path, upstream: Upstream) -> AsyncIterator[World]:
    """Holds the writers' lock, as a worker does that the kernel has stopped."""
    async with run_processes(
        folder / "gateway", upstream.base_url, workers=WORKERS, options=OPTIONS
    ) as (processes, client):
        with (folder / "gateway" / "data" / f"{DATABASE}-lock").open("w") as lock:

            def freeze() -> None:
                # The writer holds it for milliseconds at a time.
                fcntl.flock(lock, fcntl.LOCK_EX)

            yield World(processes, client, freeze, lambda: fcntl.flock(lock, fcntl.LOCK_UN))


WORLDS = {"sqlite": sqlite_world, "redis": redis_world}


async def wait_for_quiet(world: World, chaos: Chaos) -> None:
    """Returns when no purchase is open, twice in a row, or after `QUIET_SECONDS`."""
    quiet, give_up_at = 0, time.monotonic() + QUIET_SECONDS
    async with open_store(world.processes.settings) as (store, _):
        while quiet < 3 and time.monotonic() < give_up_at:
            await asyncio.sleep(2.0)
            quiet = 0 if await execute(store, OpenJournals()) else quiet + 1
    # A request for a lease that timed out may have run all the same; such a lease expires.
    await asyncio.sleep(LEASE_SECONDS)
    chaos.note("quiet")


async def probe(client: Client, sent: Sent) -> int:
    """The status of a request that must be a hit."""
    headers = {**sent.ask.headers, "Cache-Control": "only-if-cached"}
    headers.pop("Idempotency-Key", None)
    return (await client.ask(**sent.ask.body, headers=headers)).status


@pytest.mark.long
@pytest.mark.timeout(SECONDS + QUIET_SECONDS + 600)
@pytest.mark.parametrize("store", WORLDS)
async def test_the_books_agree_after_chaos(tmp_path: Path, store: str) -> None:
    sys.stdout.write(f"CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g}\n")
    async with (
        run_upstream(latency_scale=0.02) as upstream,
        WORLDS[store](tmp_path, upstream) as world,
    ):
        clients = {
            name: await world.client.with_key(name, limits=limits) for name, limits in KEYS.items()
        }
        chaos, until = Chaos(), time.monotonic() + SECONDS
        traffic = Traffic(chaos, clients)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(CLIENTS):
                tasks.create_task(traffic.run(until))
            tasks.create_task(break_things(chaos, world, until))
        await wait_for_quiet(world, chaos)
        probed = await chaos.probe_hits(lambda sent: probe(clients["dave"], sent))
        findings = await find_all(chaos, world.processes, upstream, clients, probed=probed)
    sys.stdout.write(f"{chaos.summary()}\n")
    assert not findings, f"seed {SEED} on {store}:\n{chaos.history()}\n" + "\n".join(findings[:20])
