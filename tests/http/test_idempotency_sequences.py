"""Any sequence of sends, kills, pauses, purges and drains charges an idempotency key once.

One key with one body, at two workers. Each purge may cost another purchase, because the images of
the result are lost; nothing else may.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from gateway.store.batch import execute
from gateway.store.commands import OpenJournals
from gateway.wiring.stores import DATABASE, open_store
from tests.gateways import Client, Processes, Reply, Upstream, run_processes
from tests.http.test_idempotency import FRESH, REPLAYED
from tests.processes import living_children
from tests.redis_server import run_durable_redis
from tests.waiting import eventually

QUICK = {"workers": {"heartbeat": "0.3s", "dead_after": "1.5s"}, "upstream": {"timeout": "20s"}}
STEPS = ("send", "send", "send", "send twice", "kill", "pause", "purge", "drain", "leave")
PROMPTS = (
    *("[[sim:slow=0.3]] an otter", "an otter", "[[sim:status=502]] an otter"),
    *("[[sim:slow=1]] [[sim:tiny-png]] an otter", "[[sim:one-bad]] otters"),
)
SEQUENCES = 6


class Play:
    """The workers, and the requests that are under way."""

    def __init__(
        self, processes: Processes, client: Client, pause: Callable[[bool], None], seed: int
    ) -> None:
        self.processes = processes
        self.client = client
        self.random = random.Random(seed)
        self.prompt = self.random.choice(PROMPTS)
        self.purges = 0
        self.done: list[str] = []
        self._pause = pause
        self._sending: list[asyncio.Task[Reply | None]] = []

    async def ask(self) -> Reply | None:
        connector = aiohttp.TCPConnector(force_close=True)
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession(connector=connector) as session:
                there = replace(self.client, session=session)
                return await there.ask(self.prompt, n=2, headers=FRESH)
        return None

    async def step(self) -> None:
        name = self.random.choice(STEPS)
        self.done.append(name)
        if name in ("send", "send twice"):
            count = 2 if name == "send twice" else 1
            self._sending += [asyncio.create_task(self.ask()) for _ in range(count)]
        elif name == "leave" and self._sending:
            self.random.choice(self._sending).cancel()
        elif name == "kill":
            workers = sorted(living_children(self.processes.process.pid))
            if workers:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(workers), signal.SIGKILL)
        elif name == "drain":
            self.processes.signal_parent(signal.SIGUSR2)
        elif name == "pause":
            self._pause(True)
            await asyncio.sleep(self.random.choice([0.5, 2.5, 5.0]))
            self._pause(False)
        elif name == "purge":
            reply = await self.client.admin("POST", "/admin/cache/purge", {"all": True})
            self.purges += reply.status == 200
        await asyncio.sleep(self.random.choice([0.0, 0.05, 0.3, 1.0]))

    async def finish(self) -> list[Reply]:
        """The answers to two more requests, once everything has ended."""
        await asyncio.gather(*self._sending, return_exceptions=True)
        await eventually(self._is_quiet)
        last: list[Reply] = []
        while len(last) < 2:
            reply = await self.ask()
            # A worker that has just started may still get 503.
            if reply is not None and reply.status != 503:
                last.append(reply)
        await eventually(self._is_quiet)
        return last

    async def _is_quiet(self) -> bool:
        async with open_store(self.processes.settings) as (store, _):
            return not await execute(store, OpenJournals())


@asynccontextmanager
async def on_redis(
    folder: Path, upstream: Upstream
) -> AsyncIterator[tuple[Processes, Client, Callable[[bool], None]]]:
    (folder / "redis").mkdir()
    with run_durable_redis(folder / "redis") as server:
        async with run_processes(
            folder / "gateway",
            upstream.base_url,
            workers=2,
            redis_url=server.url,
            options=QUICK,
        ) as (processes, client):
            yield processes, client, lambda paused: server.freeze() if paused else server.thaw()


@asynccontextmanager
async def on_sqlite(
    folder: Path, upstream: Upstream
) -> AsyncIterator[tuple[Processes, Client, Callable[[bool], None]]]:
    async with run_processes(folder / "gateway", upstream.base_url, workers=2, options=QUICK) as (
        processes,
        client,
    ):
        with (folder / "gateway" / "data" / f"{DATABASE}-lock").open("w") as lock:
            yield (
                processes,
                client,
                lambda paused: fcntl.flock(lock, fcntl.LOCK_EX if paused else fcntl.LOCK_UN),
            )


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(SEQUENCES))
@pytest.mark.parametrize("store", [on_sqlite, on_redis])
async def test_any_sequence_charges_an_idempotency_key_once(
    tmp_path: Path, upstream: Upstream, store: Callable[..., object], seed: int
) -> None:
    async with store(tmp_path, upstream) as (processes, client, pause):  # type: ignore[attr-defined]
        alice = await client.with_key("alice", limits={"usd_per_month": 1000})
        play = Play(processes, alice, pause, seed)
        for _ in range(14):
            await play.step()
        last = await play.finish()
        records = await processes.ledger()

    charged: Counter[str] = Counter()
    for record in records:
        charged[record.corrects or record.id] += record.cost_micros
    purchases = [name for name, cost in charged.items() if cost]
    story = f"{play.prompt}: {play.done}, {[r.to_dict() for r in records if r.cost_micros]}"
    assert 1 <= len(purchases) <= 1 + play.purges, story
    assert len(await upstream.bodies()) <= 1 + play.purges, story
    assert REPLAYED in last[1].headers, story
    assert last[0].status == last[1].status, story
