"""The store is away: what each kind of key and request is answered, how soon, and what it costs.

On both stores, each killed and hung. A killed Redis is `kill -9`; a hung one is stopped by a
signal. A killed embedded store is a folder that is gone, a hung one another process that holds the
writers' lock and does not let go.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.access.keys import TRUST_SECONDS
from gateway.assembly import DATABASE
from gateway.cache import flight_ends
from gateway.cache.flight_result import FlightResult
from gateway.images import Record
from tests.gates import hold_streams
from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Spent,
    Upstream,
    make_settings,
    read_spent,
    run_gateway,
)
from tests.http.test_streams import COMPLETED, PARTIAL, indices_of, names_of, open_stream
from tests.redis_server import run_durable_redis
from tests.waiting import eventually, generous

CALL_SECONDS = 2.0
"""The longest that a call to the store is waited for."""

SLACK_SECONDS = 1.5
"""For all else, with everybody asking at once; less than a second call."""

Outage = Callable[[], AbstractContextManager[None]]
"""The store is away inside of it."""


# ── outages ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def folder_gone(folder: Path) -> Iterator[None]:
    """As when the volume that it lies on is lost for a while."""
    elsewhere = folder.with_name("elsewhere")
    folder.rename(elsewhere)
    try:
        yield
    finally:
        elsewhere.rename(folder)


@contextmanager
def held_lock(folder: Path) -> Iterator[None]:
    with (folder / f"{DATABASE}-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Arena:
    """Two gateways on a store that can go away, and what is known of them."""

    upstream: Upstream
    here: InProcess
    there: InProcess
    """Where limits are ignored while the store is away."""
    outage: Outage
    is_hung: bool
    can_read: bool
    """The embedded store still says whose key it is, but not that nothing has changed."""

    @property
    def longest_seconds(self) -> float:
        """In which every request is answered that needs upstream once, or not at all."""
        return (CALL_SECONDS if self.is_hung else 0.0) + SLACK_SECONDS

    async def calls(self, prompt: str) -> int:
        return sum(body["prompt"] == prompt for body in await self.upstream.bodies())

    async def settle(self) -> None:
        """Until all that was bought meanwhile is in the books."""
        async with generous():
            await asyncio.gather(*(g.gateway.tasks.drain() for g in (self.here, self.there)))

    async def ask_together(self, *asks: Coroutine[Any, Any, Reply]) -> list[Reply]:
        """Upstream answers when all of them lead or follow, without the store."""
        flights_here, begun = self.here.gateway.flights, Counter[str]()
        run_offline = flights_here.run_offline

        def counted(fingerprint: str, *given: Any, **more: Any) -> Awaitable[FlightResult]:
            begun[fingerprint] += 1
            return run_offline(fingerprint, *given, **more)

        async with self.upstream.hold():
            flights_here.run_offline = counted
            asking = [asyncio.create_task(ask) for ask in asks]
            await eventually(lambda: begun.total() == len(asks))
            del flights_here.run_offline
        return await asyncio.gather(*asking)

    async def records(self) -> list[Record]:
        await self.there.ledger()
        return await self.here.ledger()


@pytest.fixture(params=["sqlite killed", "sqlite hung", "redis killed", "redis hung"])
async def arena(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream
) -> AsyncIterator[Arena]:
    """Each store, each way to be away."""
    store, how = request.param.split()
    opened = sqlite_arena if store == "sqlite" else redis_arena
    async with opened(tmp_path, upstream, is_hung=how == "hung") as found:
        yield found


@asynccontextmanager
async def sqlite_arena(folder: Path, upstream: Upstream, *, is_hung: bool) -> AsyncIterator[Arena]:
    data = folder / "data"
    async with two_gateways(data, upstream, None) as (here, there):
        outage = held_lock if is_hung else folder_gone
        yield Arena(upstream, here, there, lambda: outage(data), is_hung, can_read=True)


@asynccontextmanager
async def redis_arena(folder: Path, upstream: Upstream, *, is_hung: bool) -> AsyncIterator[Arena]:
    with run_durable_redis(folder) as server:

        @contextmanager
        def outage() -> Iterator[None]:
            (server.freeze if is_hung else server.kill)()
            try:
                yield
            finally:
                (server.thaw if is_hung else server.start_again)()

        async with two_gateways(folder / "data", upstream, server.url) as (here, there):
            yield Arena(upstream, here, there, outage, is_hung, can_read=False)


@asynccontextmanager
async def two_gateways(
    data: Path, upstream: Upstream, redis_url: str | None
) -> AsyncIterator[tuple[InProcess, InProcess]]:
    usual = make_settings(data, upstream.base_url, redis_url, upstream={"breaker": {"failures": 0}})
    ignoring = make_settings(
        data, upstream.base_url, redis_url, store={"limits_when_unavailable": "ignore"}
    )
    async with run_gateway(usual) as here, run_gateway(ignoring) as there:
        yield here, there


# ── the table ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One request while the store is away."""

    by: str
    status: int
    code: str | None = None
    how: str = "fwd=miss; stored"
    """Its Cache-Status, where it brings images."""
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""
    is_sent: bool = True
    """Upstream is asked once; else not at all."""
    is_charged: bool = True
    outcome: str = "bought"
    is_kept: bool = True
    """Afterwards the same request is a hit."""


def refused(by: str, **given: Any) -> Row:
    """503, at no cost, and upstream hears nothing."""
    given = {"outcome": "refused", "is_sent": False, "is_charged": False, "is_kept": False} | given
    return Row(by, 503, "store_unavailable", **given)


ROWS: dict[str, Row] = {
    "a key without limits buys": Row("alice", 200),
    "with all its images": Row("alice", 200, body={"n": 2}),
    "in events": Row("alice", 200, body={"stream": True, "partial_images": 2}),
    "although one is in the cache, of which nobody knows": Row("alice", 200),
    "max-age": Row("alice", 200, headers={"Cache-Control": "max-age=60"}),
    "no-cache": Row("alice", 200, how="fwd=request; stored", headers={"Cache-Control": "no-cache"}),
    "no-store": Row(
        "alice", 200, how="fwd=bypass", headers={"Cache-Control": "no-store"}, is_kept=False
    ),
    "a bound of cost is kept": Row(
        "alice",
        400,
        "max_cost_exceeded",
        headers={"X-Gateway-Max-Cost-USD": "0"},
        is_sent=False,
        is_charged=False,
        outcome="refused",
        is_kept=False,
    ),
    "an invalid request is refused as ever": Row(
        "alice",
        400,
        "invalid_value",
        body={"quality": "ultra"},
        is_sent=False,
        is_charged=False,
        outcome="refused",
        is_kept=False,
    ),
    "a failure that cost nothing": Row(
        "alice", 500, None, fault="status=500", is_charged=False, outcome="failed", is_kept=False
    ),
    "a failure that may have been charged": Row(
        "alice", 502, "upstream_error", fault="reset", outcome="failed", is_kept=False
    ),
    "a key with a budget is refused": refused("budget"),
    "a key with a rate is refused": refused("rate"),
    "a key with limits buys where they are ignored": Row("budget there", 200),
    "a key that this worker has not seen is refused, not unknown": refused("unseen"),
    "a key that only another worker has seen is refused too": refused("alice there"),
    "a key that was not confirmed within the hour is refused": refused("old"),
    "a link is refused before it is bought": refused("alice", body={"model": "dall-e-2"}),
    "only-if-cached is refused": refused("alice", headers={"Cache-Control": "only-if-cached"}),
    "a dry run is refused": refused("alice", headers={"Prefer": "dry-run"}),
    "an Idempotency-Key is refused": refused("alice", headers={"Idempotency-Key": "order-17"}),
}
CACHED = "although one is in the cache, of which nobody knows"


def prompt_of(name: str) -> str:
    fault = ROWS[name].fault
    return f"[[sim:{fault};times=1]] {name}" if fault else name


async def callers_of(arena: Arena) -> dict[str, Client]:
    """Keys that their worker has seen, as far as their name does not say otherwise."""
    here, there = arena.here.client, arena.there.client
    alice = await here.with_key("alice")
    budget = await here.with_key("budget", limits={"usd_per_day": 100})
    callers = {
        "alice": alice,
        "budget": budget,
        "rate": await here.with_key("rate", limits={"requests_per_minute": 100}),
        "old": await here.with_key("old"),
        "alice there": Client(there.url, there.session, alice.secret, alice.key_id),
        "budget there": Client(there.url, there.session, budget.secret, budget.key_id),
    }
    for name in callers.keys() - {"alice there"}:
        assert (await callers[name].ask("seen")).status == 200
    arena.here.gateway.services.keys._confirmed_at[callers["old"].key_id] -= TRUST_SECONDS + 1
    return {**callers, "unseen": await here.with_key("unseen")}


@dataclass(frozen=True)
class Told:
    """What a row was answered, and how soon."""

    reply: Reply
    seconds: float

    @property
    def cost_micros(self) -> int:
        """Charged; on a live stream what was reserved, of which nothing else is known by then."""
        headers = self.reply.headers
        usd = headers.get("x-gateway-cost-usd") or headers.get("x-gateway-reserved-usd", "0")
        return int(float(usd) * 1e6 + 0.5)


async def ask(callers: Mapping[str, Client], name: str) -> Told:
    row, started = ROWS[name], time.monotonic()
    reply = await callers[row.by].ask(prompt_of(name), headers=row.headers, **row.body)
    return Told(reply, time.monotonic() - started)


def shown(told: Told) -> tuple[int, str | None]:
    is_error = told.reply.status >= 400
    return told.reply.status, told.reply.error["code"] if is_error else None


def images_of(reply: Reply) -> list[str]:
    if is_stream(reply):
        last_event = reply.body.decode().rpartition("event: ")[2]
        return [last_event.partition('"b64_json":"')[2].partition('"')[0]]
    return reply.images


def is_stream(reply: Reply) -> bool:
    return reply.headers["Content-Type"].startswith("text/event-stream")


@pytest.mark.timed
async def test_the_table(arena: Arena) -> None:
    """All rows at once, so that each is measured while the others wait too."""
    callers = await callers_of(arena)
    cached = await callers["alice"].ask(CACHED)
    before = len(await arena.records())
    with arena.outage():
        asked = await asyncio.gather(*(ask(callers, name) for name in ROWS))
        ready = await arena.here.client.send("GET", "/readyz")
        calls = {name: await arena.calls(prompt_of(name)) for name in ROWS}
    told = dict(zip(ROWS, asked, strict=True))
    await arena.settle()

    assert {name: shown(t) for name, t in told.items()} == {
        name: (row.status, row.code) for name, row in ROWS.items()
    }
    assert calls == {name: row.is_sent + (name == CACHED) for name, row in ROWS.items()}
    slow = {name: t.seconds for name, t in told.items() if t.seconds > arena.longest_seconds}
    assert slow == {}
    assert (ready.status, ready.json["degraded"]) == (200, ["store"])
    for name, row in ROWS.items():
        headers = told[name].reply.headers
        assert row.status != 200 or told[name].reply.cache_status == row.how, name
        assert (told[name].cost_micros > 0) == row.is_charged, (name, headers)
    await assert_books(arena, callers, told, after=before)
    await assert_kept(callers, told, cached)


async def assert_books(
    arena: Arena, callers: Mapping[str, Client], told: Mapping[str, Told], *, after: int
) -> None:
    """One record each, with what was charged; the counters say the same, and nothing is held."""
    records = await arena.records()
    found = Counter((r.outcome, r.cost_micros) for r in records[after:])
    wanted = Counter(
        (row.outcome, told[name].cost_micros)
        for name, row in ROWS.items()
        if leaves_record(arena, row) and not is_stream(told[name].reply)
    )
    ((outcome, cost),) = found - wanted  # that of the stream, whose headers came before its cost
    assert wanted < found
    assert (outcome, cost > 0) == ("bought", True)
    for name in ("alice", "budget"):
        key_id = callers[name].key_id
        of_key = [record for record in records if record.key_id == key_id]
        spent = await read_spent(arena.here.settings, key_id)
        assert spent == Spent(
            sum(record.cost_micros for record in of_key),
            sum(record.images for record in of_key),
            reserved_micros=0,
            reserved_images=0,
        )


def leaves_record(arena: Arena, row: Row) -> bool:
    """All that is not dry does, once it is known whose it is."""
    is_known = arena.can_read or row.by not in ("unseen", "alice there")
    return is_known and "Prefer" not in row.headers


async def assert_kept(
    callers: Mapping[str, Client], told: Mapping[str, Told], cached: Reply
) -> None:
    """The next who asks finds what was bought meanwhile."""
    for name, row in ROWS.items():
        if name != CACHED:
            again = await callers[row.by].ask(
                prompt_of(name), headers={"Cache-Control": "only-if-cached"}, **row.body
            )
            assert (again.status == 200) == row.is_kept, name
            if row.is_kept:
                assert images_of(again) == images_of(told[name].reply), name
    both = await callers["alice"].ask(CACHED, n=2)
    assert both.images == [*cached.images, *told[CACHED].reply.images]


# ── several who ask the same ────────────────────────────────────────────────────────────────


async def test_who_asks_the_same_of_a_worker_at_once_shares_one_purchase(arena: Arena) -> None:
    alice, bob = [await arena.here.client.with_key(name) for name in ("alice", "bob")]
    for client in (alice, bob):
        await client.ask("seen")
    prompt, anew = "shared", {"Cache-Control": "no-cache"}
    with arena.outage():
        replies = await arena.ask_together(*(c.ask(prompt) for c in (alice, bob, alice, bob)))
        alone = await asyncio.gather(*(c.ask("alone", headers=anew) for c in (alice, bob)))
        shared_calls, alone_calls = await arena.calls(prompt), await arena.calls("alone")
    await arena.settle()
    records = [r for r in await arena.records() if r.outcome in ("bought", "collapsed")]

    assert [reply.status for reply in (*replies, *alone)] == [200] * 6
    assert len({reply.images[0] for reply in replies}) == shared_calls == 1
    assert len({reply.images[0] for reply in alone}) == alone_calls == 2
    costs = sorted(float(reply.headers["x-gateway-cost-usd"]) for reply in replies)
    assert costs[:3] == [0, 0, 0] != costs[2:]
    assert sum(record.outcome == "collapsed" for record in records) == 3
    hit = await alice.ask(prompt)
    assert (hit.cache_status[:3], hit.images) == ("hit", replies[0].images)


async def test_a_failure_is_everybodys_who_waited(arena: Arena) -> None:
    alice = await arena.here.client.with_key()
    await alice.ask("seen")
    prompt = "[[sim:tiny-png]] shared"
    with arena.outage():
        replies = await arena.ask_together(*(alice.ask(prompt) for _ in range(3)))
    await arena.settle()
    records = [r for r in await arena.records() if r.status == 502]

    assert [(reply.status, reply.error["code"]) for reply in replies] == [
        (502, "upstream_error")
    ] * 3
    assert await arena.calls(prompt) == 1
    assert sorted((r.outcome, r.flags, r.cost_micros > 0) for r in records) == [
        ("collapsed", ("flight_failed",), False),
        ("collapsed", ("flight_failed",), False),
        ("failed", ("undelivered",), True),
    ]


async def test_once_the_store_is_back_all_is_as_before(arena: Arena) -> None:
    """Refused keys work again, unknown ones are unknown again, and nothing is degraded."""
    limited = await arena.here.client.with_key("limited", limits={"usd_per_day": 5})
    await limited.ask("seen")
    with arena.outage():
        away = await limited.ask("another")

    async def is_back() -> bool:
        return (await limited.ask("another")).status == 200

    await eventually(is_back)
    unknown = await Client(limited.url, limited.session, "gk-nobody-knows-this-key").ask()
    ready = await limited.send("GET", "/readyz")

    assert (away.status, away.headers["Retry-After"]) == (503, "2")
    assert unknown.status == 401
    assert ready.json == {"status": "ready", "degraded": []}


async def test_what_is_bought_beyond_a_limit_that_is_ignored_is_in_the_books(arena: Arena) -> None:
    """The store is told late, and then there is nothing left to refuse."""
    limited = await arena.there.client.with_key("limited", limits={"images_per_day": 1})
    await limited.ask("seen")
    with arena.outage():
        beyond = await limited.ask("beyond")
    await arena.settle()
    records = [r for r in await arena.records() if r.key == "limited"]
    spent = await read_spent(arena.here.settings, limited.key_id)

    assert beyond.status == 200
    assert [record.outcome for record in records] == ["bought", "bought"]
    assert spent.images == 2
    assert spent.reserved_images == 0
    over = await limited.ask("another")
    assert (over.status, over.error["code"]) == (429, "insufficient_quota")


@pytest.mark.parametrize("arena", ["redis killed"], indirect=True)
async def test_a_stream_that_loses_its_buyer_with_the_store_goes_on_where_it_was(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It buys for itself; what it was shown of the other purchase is not shown again."""
    monkeypatch.setattr(flight_ends, "RECHECK_SECONDS", 0.05)
    alice = await arena.here.client.with_key("alice")
    there = arena.there.client
    elsewhere = Client(there.url, there.session, alice.secret, alice.key_id)
    await elsewhere.ask("seen")
    prompt = "an otter"
    with hold_streams(after=1) as go_on:
        async with (
            open_stream(alice, prompt) as buyer,
            open_stream(elsewhere, prompt) as follower,
        ):
            await follower.until(1)
            with arena.outage():
                await arena.upstream.until_sent(3)  # it has bought for itself
                go_on.open()
                events = await follower.to_the_end()
            bought = await buyer.to_the_end()
    await arena.settle()

    assert await arena.calls(prompt) == 2
    assert indices_of(events) == indices_of(bought) == [0, 1, 2]
    assert names_of(events) == names_of(bought) == [PARTIAL] * 3 + [COMPLETED]


async def test_an_image_that_arrives_while_its_folder_is_missing_is_stored_in_it_afterwards(
    tmp_path: Path, upstream: Upstream
) -> None:
    """And not in a new one, which is hidden, or in the way, when the volume is back."""
    data, prompt = tmp_path / "data", "an otter"
    async with two_gateways(data, upstream, None) as (here, there):
        alice = await here.client.with_key("alice")
        with hold_streams(after=1) as go_on:
            async with open_stream(alice, prompt) as stream:
                await stream.until(1)
                with folder_gone(data):
                    go_on.open()
                    events = await stream.to_the_end()
                    assert not await asyncio.to_thread(data.exists)
        async with generous():
            await here.gateway.tasks.drain()
        elsewhere = Client(there.client.url, there.client.session, alice.secret, alice.key_id)
        cached = await elsewhere.ask(prompt, headers={"Cache-Control": "only-if-cached"})

    assert names_of(events) == [PARTIAL] * 3 + [COMPLETED]
    assert (cached.status, cached.images) == (200, [events[-1].image])
