"""Budgets of a key, its team and everyone on four workers, with random costs, failures and deaths.

At every moment what is spent and reserved stays within each budget, but for answers that cost more
than their estimate; and the records are the same money as the counters.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
import zlib
from collections import Counter as Multiset
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from aiohttp import web

from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import Counter, OpenJournals, PeekCounters, ReadRunningTotals
from gateway.store.protocol import Store
from gateway.wiring.stores import open_store
from tests.gateways import Client, Processes, Reply, open_connections, run_processes
from tests.journals import estimate
from tests.local_server import serve
from tests.pngs import write_png
from tests.scope_limits import set_limits
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually

PURCHASES = 200
LOW = {"quality": "low", "size": "1024x1024"}
PROMPT = "picture {:03}"
ESTIMATE = estimate(PROMPT.format(0), **LOW).usd_micros
BUDGETS = {"key": 20, "team": 15, "everyone": 50}
"""How many estimates each of them allows."""
QUICK = {"heartbeat": "0.2s", "dead_after": "0.8s"}
"""So that killed workers are found soon. On a busy machine, living ones are taken for dead too."""
SEED = 15

_PIXELS = zlib.compress(bytes(1024 * (1 + 3 * 1024)))
IMAGE = base64.b64encode(write_png(1024, 1024, _PIXELS)).decode()


@dataclass
class RandomUpstream:
    """Bills at random, also more than the gateway's estimate, and fails in every way."""

    random: random.Random = field(default_factory=lambda: random.Random(SEED))
    calls: list[str] = field(default_factory=list)
    """The `user` of each call."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[str]:
        app = web.Application(client_max_size=2**20)
        app.router.add_post("/v1/images/generations", self._answer)
        async with serve(app) as url:
            yield f"{url}/v1"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.calls.append((await request.json())["user"])
        await asyncio.sleep(self.random.uniform(0.0, 0.3))
        kinds = {"billed": 60, "no usage": 8, "500": 10, "400": 8, "damaged": 7, "cut": 7}
        kind = self.random.choices(list(kinds), list(kinds.values()))[0]
        if kind == "cut":
            assert request.transport is not None
            request.transport.abort()
        if kind in ("400", "500"):
            error = {"message": "It failed.", "type": "error", "param": None, "code": "failed"}
            return web.json_response({"error": error}, status=int(kind))
        tokens = self.random.randint(1, 340)
        usage = {"input_tokens": 5, "output_tokens": tokens, "total_tokens": 5 + tokens}
        image = "AAAA" if kind == "damaged" else IMAGE
        answer = {"created": 1, "data": [{"b64_json": image}]}
        return web.json_response(answer | ({} if kind == "no usage" else {"usage": usage}))


@dataclass
class Books:
    """The counters of key, team and everyone."""

    store: Store
    key_id: str
    samples: list[dict[str, int]] = field(default_factory=list)

    @property
    def subjects(self) -> dict[str, str]:
        return {"key": f"key:{self.key_id}", "team": "team:art", "everyone": "everyone"}

    async def read(self) -> Mapping[str, tuple[int, int]]:
        """Spent and reserved, of all three at one moment."""
        counters = tuple(Counter(s, "usd_micros", "day") for s in self.subjects.values())
        states = await execute(self.store, PeekCounters(counters))
        return {
            scope: (state.used, state.reserved)
            for scope, state in zip(self.subjects, states, strict=True)
        }

    async def sample(self) -> None:
        while True:
            now = await self.read()
            self.samples.append({scope: sum(amounts) for scope, amounts in now.items()})
            await asyncio.sleep(0.005)

    async def until_closed(self) -> None:
        """Waits until no purchase is open."""

        async def is_closed() -> bool:
            return not await execute(self.store, OpenJournals())

        await eventually(is_closed)

    async def charged(self) -> list[int]:
        """The running totals of the three."""
        totals = await execute(self.store, ReadRunningTotals(tuple(self.subjects.values())))
        return [total.charged - total.corrected for total in totals]


@dataclass
class Play:
    """Four workers with budgets, and a client."""

    processes: Processes
    alice: Client
    upstream: RandomUpstream
    books: Books

    async def buy_all(self) -> list[Reply | BaseException]:
        """All purchases at once, each with a `user` of its own."""
        sampling = asyncio.create_task(self.books.sample())
        async with open_connections(self.alice, PURCHASES) as connections:
            replies = await asyncio.gather(
                *(
                    each.ask(PROMPT.format(i), user=f"user-{i}", **LOW)
                    for i, each in enumerate(connections)
                ),
                return_exceptions=True,
            )
        await self.books.until_closed()
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
        return replies

    async def buying_workers(self) -> list[int]:
        """The process ids of the workers that are alive and have an open purchase."""
        journals = await execute(self.books.store, OpenJournals())
        owners = {int(journal.worker.rsplit("-", 2)[1]) for journal in journals}
        return sorted(owners & set(self.processes.workers()))

    async def purchases(self) -> list[Record]:
        """The records of purchases and corrections."""
        return [r for r in await self.processes.ledger() if r.outcome not in ("refused", "hit")]

    async def check_books(self, purchases: Sequence[Record]) -> None:
        """No budget was exceeded but by flagged answers; records and counters are the same."""
        first = {r.id: r.cost_micros for r in purchases if r.corrects is None}
        overrun = 0
        for record in purchases:
            # What a correction adds up to is what the purchase cost.
            before = 0 if record.corrects is None else first[record.corrects]
            excess = max(0, before + record.cost_micros - ESTIMATE)
            assert ("over_estimate" in record.flags) == (excess > 0), record
            overrun += excess
        assert len(self.books.samples) > 20
        for scope, budget in BUDGETS.items():
            most = max(sample[scope] for sample in self.books.samples)
            assert most <= budget * ESTIMATE + overrun, scope
        spent = sum(record.cost_micros for record in purchases)
        assert set((await self.books.read()).values()) == {(spent, 0)}
        assert set(await self.books.charged()) == {spent}


@asynccontextmanager
async def playing(
    folder: Path, store_url: str | None, *, workers: Mapping[str, str] | None = None
) -> AsyncIterator[Play]:
    """`workers` is that section of the settings."""
    upstream = RandomUpstream()
    limits = {scope: {"usd_per_day": n * ESTIMATE / 1e6} for scope, n in BUDGETS.items()}
    async with (
        upstream.run() as base_url,
        run_processes(
            folder,
            base_url,
            workers=4,
            redis_url=store_url,
            options={"workers": workers or {}, "upstream": {"breaker": {"failures": 0}}},
        ) as (processes, client),
    ):
        alice = await client.with_key("alice", team="art", limits=limits["key"])
        await set_limits(client, "team:art", limits["team"])
        await set_limits(client, "everyone", limits["everyone"])
        async with open_store(processes.settings) as (store, _):
            yield Play(processes, alice, upstream, Books(store, alice.key_id))


async def test_200_purchases_at_once_keep_within_the_budgets_of_all_scopes(
    tmp_path: Path, store_url: str | None
) -> None:
    async with playing(tmp_path, store_url) as play:
        replies = [r for r in await play.buy_all() if isinstance(r, Reply)]
        purchases = await play.purchases()
        await play.check_books(purchases)

    assert len(replies) == PURCHASES
    assert len(play.upstream.calls) == len(purchases) >= BUDGETS["team"]
    refused = [reply for reply in replies if reply.status == 429]
    assert len(refused) == PURCHASES - len(purchases)
    named = {r.error["message"].partition(" reached")[0] for r in refused}
    assert "Limit usd_per_day of team 'art'" in named  # the smallest of the three
    assert all(r.error["code"] == "insufficient_quota" for r in refused)
    assert {"bought", "failed"} == {record.outcome for record in purchases}


@usually_on("sqlite", more=TOPOLOGIES)
async def test_killed_workers_leave_nothing_reserved_and_one_record_for_each_call(
    tmp_path: Path, store_url: str | None
) -> None:
    async with playing(tmp_path, store_url, workers=QUICK) as play:
        buying = asyncio.create_task(play.buy_all())
        chance = random.Random(SEED)
        await eventually(lambda: len(play.upstream.calls) > 3)
        buyers = await play.buying_workers()
        for _ in range(3):
            if buyers:
                with suppress(ProcessLookupError):
                    os.kill(chance.choice(buyers), signal.SIGKILL)
            await asyncio.sleep(chance.uniform(0.05, 0.2))
            buyers = await play.buying_workers()
        replies = await buying
        purchases = await play.purchases()
        await play.check_books(purchases)
        verified = await play.processes.run("ledger", "verify")

    assert verified.returncode == 0, verified.stdout
    assert any(isinstance(reply, aiohttp.ClientError) for reply in replies)
    first = Multiset(r.user for r in purchases if r.corrects is None)
    calls = Multiset(play.upstream.calls)
    assert set(calls.values()) == set(first.values()) == {1}
    # A purchase that was killed before it was sent is presumed too.
    assert set(calls) <= set(first)
    unsent = [r for r in purchases if r.user not in calls]
    assert all("presumed" in record.flags for record in unsent)
