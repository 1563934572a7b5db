"""While the store is unavailable: the answer to each kind of key and request, its time and cost.

Both stores are killed, and hung. Redis is killed by `kill -9` and hung by a stop signal. To kill
the embedded store its folder is moved away; to hang it the test holds the writers' lock, as another
process could.
"""

from __future__ import annotations

import asyncio
import fcntl
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.access.keys import TRUST_SECONDS
from gateway.cache import flight_ends
from gateway.cache.flight_result import FlightResult
from gateway.images import Record
from gateway.wiring.stores import DATABASE
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
"""The longest wait for one command of the store."""

SLACK_SECONDS = 1.5
"""For all else, with all requests at once; less than the wait for a second command."""

Outage = Callable[[], AbstractContextManager[None]]
"""A context in which the store is unavailable."""


# ── outages ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def folder_missing(folder: Path) -> Iterator[None]:
    """As if its volume were unmounted for a while."""
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
    """Two gateways on a store that a test can make unavailable."""

    upstream: Upstream
    here: InProcess
    there: InProcess
    """Ignores limits while the store is unavailable."""
    outage: Outage
    is_hung: bool
    can_read: bool
    """The embedded store can still read keys, but not confirm that they are unchanged."""

    def longest_seconds(self, *, usual_seconds: float) -> float:
        """The longest time to answer a request that needs upstream at most once.

        On a busy machine that follows from what as many purchases take with the store.
        """
        slack_seconds = max(SLACK_SECONDS, 3 * usual_seconds)
        return (CALL_SECONDS if self.is_hung else 0.0) + slack_seconds

    async def calls(self, prompt: str) -> int:
        return sum(body["prompt"] == prompt for body in await self.upstream.bodies())

    async def settle(self) -> None:
        """Waits until all purchases of the outage are recorded and counted."""
        async with generous():
            await asyncio.gather(*(g.gateway.tasks.drain() for g in (self.here, self.there)))

    async def ask_together(self, *requests: Coroutine[Any, Any, Reply]) -> list[Reply]:
        """Sends requests; upstream answers once all of them lead or follow without the store."""
        flights_here, begun = self.here.gateway.flights, Counter[str]()
        run_offline = flights_here.run_offline

        def counted(fingerprint: str, *given: Any, **more: Any) -> Awaitable[FlightResult]:
            begun[fingerprint] += 1
            return run_offline(fingerprint, *given, **more)

        async with self.upstream.hold():
            flights_here.run_offline = counted
            asking = [asyncio.create_task(ask) for ask in requests]
            await eventually(lambda: begun.total() == len(requests))
            del flights_here.run_offline
        return await asyncio.gather(*asking)

    async def records(self) -> list[Record]:
        await self.there.ledger()
        return await self.here.ledger()


@pytest.fixture(
    params=[
        *("sqlite killed", "redis killed", "redis hung"),
        # Each call waits for two seconds, so one hung store is enough for each change.
        pytest.param("sqlite hung", marks=pytest.mark.long),
    ]
)
async def arena(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream
) -> AsyncIterator[Arena]:
    """Each store, killed and hung."""
    store, failure = request.param.split()
    opened = sqlite_arena if store == "sqlite" else redis_arena
    async with opened(tmp_path, upstream, is_hung=failure == "hung") as found:
        yield found


without_the_hung = pytest.mark.parametrize(
    "arena",
    [
        *("sqlite killed", "redis killed"),
        *(pytest.param(f"{store} hung", marks=pytest.mark.long) for store in ("sqlite", "redis")),
    ],
    indirect=True,
)
"""For tests that would wait two seconds for each of many requests: what a hung store changes is
tested by the others."""


@asynccontextmanager
async def sqlite_arena(folder: Path, upstream: Upstream, *, is_hung: bool) -> AsyncIterator[Arena]:
    data = folder / "data"
    async with two_gateways(data, upstream, None) as (here, there):
        outage = held_lock if is_hung else folder_missing
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


@pytest.mark.timed
async def test_the_overview_says_that_the_store_is_down(arena: Arena) -> None:
    client = arena.here.client
    assert (await client.admin("GET", "/admin/overview")).json["health"]["store"]["state"] == "ok"
    with arena.outage():
        # A command that writes finds it out.
        await client.admin("POST", "/admin/keys", {"name": "nobody"})
        started = time.monotonic()
        reply = await client.admin("GET", "/admin/overview")
        assert reply.status == 200
        assert time.monotonic() - started < 3
        found = reply.json
        assert found["health"]["store"]["state"] == "fault"
        assert found["attention"][0]["title"] == "The store is unavailable"
        if not arena.can_read:
            parts = ("spend", "days", "top", "hit_ratio", "cache")
            assert [found[part] for part in parts] == [None] * 5
    found = await eventually(lambda: overview_with_days(client))
    assert len(found["days"]) == 30


async def overview_with_days(client: Client) -> Any:
    found = (await client.admin("GET", "/admin/overview")).json
    return found if found["days"] is not None else None


# ── one request of each kind ────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Row:
    """One request while the store is unavailable."""

    by: str
    status: int
    code: str | None = None
    cache_status: str = "fwd=miss"
    """Of an answer with images."""
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""
    is_sent: bool = True
    """Upstream receives one request; otherwise none."""
    is_charged: bool = True
    outcome: str = "bought"
    is_stored: bool = True
    """After the outage, the same request is a hit."""


def refused(by: str, **given: Any) -> Row:
    """503, at no cost and without a request to upstream."""
    given = {
        "outcome": "refused",
        "is_sent": False,
        "is_charged": False,
        "is_stored": False,
    } | given
    return Row(by, 503, "store_unavailable", **given)


ROWS: dict[str, Row] = {
    "a key without limits buys": Row("alice", 200),
    "with all its images": Row("alice", 200, body={"n": 2}),
    "in events": Row("alice", 200, body={"stream": True, "partial_images": 2}),
    "although one is in the cache, which cannot be read": Row("alice", 200),
    "max-age": Row("alice", 200, headers={"Cache-Control": "max-age=60"}),
    "no-cache": Row(
        "alice", 200, cache_status="fwd=request", headers={"Cache-Control": "no-cache"}
    ),
    "no-store": Row(
        "alice",
        200,
        cache_status="fwd=bypass",
        headers={"Cache-Control": "no-store"},
        is_stored=False,
    ),
    "a bound of cost is kept": Row(
        "alice",
        400,
        "max_cost_exceeded",
        headers={"X-Gateway-Max-Cost-USD": "0"},
        is_sent=False,
        is_charged=False,
        outcome="refused",
        is_stored=False,
    ),
    "an invalid request is refused as ever": Row(
        "alice",
        400,
        "invalid_value",
        body={"quality": "ultra"},
        is_sent=False,
        is_charged=False,
        outcome="refused",
        is_stored=False,
    ),
    "a failure that cost nothing": Row(
        "alice", 500, None, fault="status=500", is_charged=False, outcome="failed", is_stored=False
    ),
    "a failure that may have been charged": Row(
        "alice", 502, "upstream_error", fault="reset", outcome="failed", is_stored=False
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
CACHED = "although one is in the cache, which cannot be read"


def prompt_of(name: str) -> str:
    fault = ROWS[name].fault
    return f"[[sim:{fault};times=1]] {name}" if fault else name


async def create_clients(arena: Arena) -> dict[str, Client]:
    """Clients by name. Their worker has seen their key, except `unseen` and `alice there`."""
    here, there = arena.here.client, arena.there.client
    alice = await here.with_key("alice")
    budget = await here.with_key("budget", limits={"usd_per_day": 100})
    clients = {
        "alice": alice,
        "budget": budget,
        "rate": await here.with_key("rate", limits={"requests_per_minute": 100}),
        "old": await here.with_key("old"),
        "alice there": Client(there.url, there.session, alice.secret, alice.key_id),
        "budget there": Client(there.url, there.session, budget.secret, budget.key_id),
    }
    for name in clients.keys() - {"alice there"}:
        assert (await clients[name].ask("seen")).status == 200
    confirmed, old = arena.here.gateway.services.keys._confirmed, clients["old"].key_id
    confirmed[old] = confirmed[old]._replace(at=confirmed[old].at - TRUST_SECONDS - 1)
    return {**clients, "unseen": await here.with_key("unseen")}


@dataclass(frozen=True)
class Answer:
    """The answer to a row, and the time that it took."""

    reply: Reply
    seconds: float

    @property
    def cost_micros(self) -> int:
        """The charge; for a live stream the estimate, because its headers precede the charge."""
        headers = self.reply.headers
        usd = headers.get("x-gateway-cost-usd") or headers.get("x-gateway-reserved-usd", "0")
        return int(float(usd) * 1e6 + 0.5)


async def ask(clients: Mapping[str, Client], name: str) -> Answer:
    row, started = ROWS[name], time.monotonic()
    reply = await clients[row.by].ask(prompt_of(name), headers=row.headers, **row.body)
    return Answer(reply, time.monotonic() - started)


async def buy_at_once(client: Client) -> float:
    """How many seconds as many purchases as there are rows take, all at once."""
    started = time.monotonic()
    replies = await asyncio.gather(*(client.ask(f"at once {n}") for n in range(len(ROWS))))
    assert {reply.status for reply in replies} == {200}
    return time.monotonic() - started


def shown(answer: Answer) -> tuple[int, str | None]:
    is_error = answer.reply.status >= 400
    return answer.reply.status, answer.reply.error["code"] if is_error else None


def images_of(reply: Reply) -> list[str]:
    if is_stream(reply):
        last_event = reply.body.decode().rpartition("event: ")[2]
        return [last_event.partition('"b64_json":"')[2].partition('"')[0]]
    return reply.images


def is_stream(reply: Reply) -> bool:
    return reply.headers["Content-Type"].startswith("text/event-stream")


@pytest.mark.timed
async def test_every_kind_of_request_is_answered_as_its_row_says(arena: Arena) -> None:
    """All rows at once, so that each is measured while the others wait."""
    clients = await create_clients(arena)
    cached = await clients["alice"].ask(CACHED)
    usual_seconds = await buy_at_once(clients["alice"])
    arena.here.gateway.flights._unstored.forget_confirmed()  # as after CONFIRMED_SECONDS
    before = len(await arena.records())
    with arena.outage():
        answered = await asyncio.gather(*(ask(clients, name) for name in ROWS))
        ready = await arena.here.client.send("GET", "/readyz")
        calls = {name: await arena.calls(prompt_of(name)) for name in ROWS}
    answers = dict(zip(ROWS, answered, strict=True))
    await arena.settle()

    assert {name: shown(answer) for name, answer in answers.items()} == {
        name: (row.status, row.code) for name, row in ROWS.items()
    }
    assert calls == {name: row.is_sent + (name == CACHED) for name, row in ROWS.items()}
    longest = arena.longest_seconds(usual_seconds=usual_seconds)
    slow = {name: a.seconds for name, a in answers.items() if a.seconds > longest}
    assert slow == {}
    assert ready.status == 200
    assert ready.json["degraded"][0] == "store"  # perhaps upstream too: some rows make it fail
    for name, row in ROWS.items():
        headers = answers[name].reply.headers
        assert row.status != 200 or answers[name].reply.cache_status == row.cache_status, name
        assert (answers[name].cost_micros > 0) == row.is_charged, (name, headers)
    await assert_books(arena, clients, answers, after=before)
    await assert_stored(clients, answers, cached)


async def assert_books(
    arena: Arena, clients: Mapping[str, Client], answers: Mapping[str, Answer], *, after: int
) -> None:
    """One record with the charge for each row; counters match, and nothing stays reserved."""
    records = await arena.records()
    found: Counter[tuple[str, int]] = Counter()
    for record in records[after:]:
        found[record.outcome, record.cost_micros] += record.count or 1  # refusals share a record
    wanted = Counter(
        (row.outcome, answers[name].cost_micros)
        for name, row in ROWS.items()
        if leaves_record(arena, row) and not is_stream(answers[name].reply)
    )
    ((outcome, cost),) = found - wanted  # the stream: its headers precede its cost
    assert wanted < found
    assert (outcome, cost > 0) == ("bought", True)
    for name in ("alice", "budget"):
        key_id = clients[name].key_id
        of_key = [record for record in records if record.key_id == key_id]
        spent = await read_spent(arena.here.settings, key_id)
        assert spent == Spent(
            sum(record.cost_micros for record in of_key),
            sum(record.images for record in of_key),
            reserved_micros=0,
            reserved_images=0,
        )


def leaves_record(arena: Arena, row: Row) -> bool:
    """Whether the ledger has a record of it: for requests of known keys, except dry runs."""
    is_known = arena.can_read or row.by not in ("unseen", "alice there")
    return is_known and "Prefer" not in row.headers


async def assert_stored(
    clients: Mapping[str, Client], answers: Mapping[str, Answer], cached: Reply
) -> None:
    """After the outage, requests find the images that were bought during it."""
    for name, row in ROWS.items():
        if name != CACHED:
            again = await clients[row.by].ask(
                prompt_of(name), headers={"Cache-Control": "only-if-cached"}, **row.body
            )
            assert (again.status == 200) == row.is_stored, name
            if row.is_stored:
                assert images_of(again) == images_of(answers[name].reply), name
    both = await clients["alice"].ask(CACHED, n=2)
    assert both.images == [*cached.images, *answers[CACHED].reply.images]


# ── identical requests ──────────────────────────────────────────────────────────────────────


async def test_identical_requests_to_a_worker_share_one_purchase(arena: Arena) -> None:
    alice, bob = [await arena.here.client.with_key(name) for name in ("alice", "bob")]
    for client in (alice, bob):
        await client.ask("seen")
    prompt, no_cache = "shared", {"Cache-Control": "no-cache"}
    with arena.outage():
        replies = await arena.ask_together(*(c.ask(prompt) for c in (alice, bob, alice, bob)))
        alone = await asyncio.gather(*(c.ask("alone", headers=no_cache) for c in (alice, bob)))
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


@without_the_hung
async def test_a_worker_buys_an_image_once_however_often_it_is_asked_for(arena: Arena) -> None:
    """It serves what it bought from memory, as hits, which are recorded later."""
    alice, bob = [await arena.here.client.with_key(name) for name in ("alice", "bob")]
    for client in (alice, bob):
        await client.ask("seen")
    before = len(await arena.records())
    with arena.outage():
        bought = await alice.ask("an otter")
        again = await bob.ask("an otter")
        four = await alice.ask("an otter", n=2)
        both = await alice.ask("an otter", n=2, headers={"Cache-Control": "max-age=600"})
        variation = await bob.ask("an otter", headers={"X-Gateway-Variation": "1"})
        only = await bob.ask("an otter", headers={"Cache-Control": "only-if-cached"})
        streamed = await bob.ask("an otter", stream=True)
        link = await alice.ask("an otter", model="dall-e-2")
        calls = await arena.calls("an otter")
    await arena.settle()
    records = (await arena.records())[before:]
    hit = await alice.ask("an otter", n=2)

    assert (bought.cache_status, four.cache_status) == ("fwd=miss", "fwd=partial")
    hits = [again, both, variation, only]
    assert [reply.cache_status.partition(";")[0] for reply in (*hits, streamed)] == ["hit"] * 5
    assert calls == 2
    assert [four.images[0], again.images[0], only.images[0]] == [bought.images[0]] * 3
    assert [both.images, hit.images] == [four.images] * 2
    assert variation.images == four.images[1:]
    assert images_of(streamed) == bought.images
    assert link.status == 503
    assert again.headers["x-gateway-saved-usd"] == bought.headers["x-gateway-cost-usd"]
    assert again.headers["x-gateway-cost-usd"] == "0.000000"
    outcomes = Counter(record.outcome for record in records)
    assert (outcomes["bought"], outcomes["partial"], outcomes["hit"]) == (1, 1, 5)
    saved = [record.saved_micros for record in records if record.outcome == "hit"]
    assert min(saved) > 0
    (partial,) = [record for record in records if record.outcome == "partial"]
    assert (partial.images, partial.images_served) == (1, 1)
    assert hit.cache_status.startswith("hit")


@without_the_hung
async def test_requests_that_refuse_cached_images_buy_although_one_is_in_memory(
    arena: Arena,
) -> None:
    alice = await arena.here.client.with_key("alice")
    await alice.ask("seen")
    with arena.outage():
        first = await alice.ask("an otter")
        stored_nowhere = await alice.ask("an otter", headers={"Cache-Control": "no-store"})
        newer = await alice.ask("an otter", headers={"Cache-Control": "no-cache"})
        after = await alice.ask("an otter")
        calls = await arena.calls("an otter")
    await arena.settle()

    assert len({reply.images[0] for reply in (first, stored_nowhere, newer)}) == calls == 3
    assert after.images == newer.images


async def test_overlapping_requests_buy_each_slot_once(arena: Arena) -> None:
    """One for two images and one for the first of them, while the store is unavailable."""
    alice = await arena.here.client.with_key("alice")
    await alice.ask("seen")
    with arena.outage():
        one, two = await arena.ask_together(alice.ask("an otter"), alice.ask("an otter", n=2))
    await arena.settle()

    assert (one.status, two.status) == (200, 200)
    assert one.images[0] in two.images
    bodies = [body for body in await arena.upstream.bodies() if body["prompt"] == "an otter"]
    assert sum(body.get("n", 1) for body in bodies) == 2


async def test_a_running_purchase_is_followed_when_the_store_goes_away(arena: Arena) -> None:
    """By requests to the same worker, which cannot read its lease any more."""
    alice = await arena.here.client.with_key("alice")
    await alice.ask("seen")
    async with arena.upstream.hold() as gate:
        leader = asyncio.create_task(alice.ask("an otter"))
        await gate.until(1)
        with arena.outage():
            follower = await arena_follower(arena, alice)
            gate.open()
            replies = await asyncio.gather(leader, follower)
            calls = await arena.calls("an otter")
    await arena.settle()

    assert [reply.cache_status for reply in replies] == ["fwd=miss", "fwd=miss; collapsed"]
    assert replies[0].images == replies[1].images
    assert calls == 1


async def arena_follower(arena: Arena, client: Client) -> asyncio.Task[Reply]:
    """A request that follows a purchase of `here`, without the store."""
    flights_here, begun = arena.here.gateway.flights, asyncio.Event()
    run_offline = flights_here.run_offline

    def noted(*given: Any, **more: Any) -> Awaitable[FlightResult]:
        begun.set()
        return run_offline(*given, **more)

    flights_here.run_offline = noted
    asking = asyncio.create_task(client.ask("an otter"))
    await begun.wait()
    del flights_here.run_offline
    return asking


async def test_a_failure_reaches_all_followers(arena: Arena) -> None:
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


async def test_the_gateway_serves_normally_once_the_store_is_back(arena: Arena) -> None:
    """Refused keys work again, unknown keys get 401 again, and nothing is degraded."""
    limited = await arena.here.client.with_key("limited", limits={"usd_per_day": 5})
    await limited.ask("seen")
    with arena.outage():
        during = await limited.ask("another")

    async def is_back() -> bool:
        return (await limited.ask("another")).status == 200

    await eventually(is_back)
    unknown = await Client(limited.url, limited.session, "gk-nobody-knows-this-key").ask()
    ready = await limited.send("GET", "/readyz")

    assert (during.status, during.headers["Retry-After"]) == (503, "2")
    assert unknown.status == 401
    assert ready.json == {"status": "ready", "degraded": []}


async def test_purchases_beyond_an_ignored_limit_are_recorded_and_counted(arena: Arena) -> None:
    """The store learns of the purchase too late to deny it."""
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
async def test_a_stream_that_loses_its_leader_with_the_store_continues(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It buys by itself, and sends no partial image twice."""
    monkeypatch.setattr(flight_ends, "RECHECK_SECONDS", 0.05)
    alice = await arena.here.client.with_key("alice")
    there = arena.there.client
    elsewhere = Client(there.url, there.session, alice.secret, alice.key_id)
    await elsewhere.ask("seen")
    prompt = "an otter"
    with hold_streams(after=1) as go_on:
        async with (
            open_stream(alice, prompt) as leader,
            open_stream(elsewhere, prompt) as follower,
        ):
            await follower.until(1)
            with arena.outage():
                await arena.upstream.until_sent(3)  # the follower buys by itself
                go_on.open()
                events = await follower.to_the_end()
            bought = await leader.to_the_end()
    await arena.settle()

    assert await arena.calls(prompt) == 2
    assert indices_of(events) == indices_of(bought) == [0, 1, 2]
    assert names_of(events) == names_of(bought) == [PARTIAL] * 3 + [COMPLETED]


async def test_an_image_that_arrives_while_its_folder_is_missing_is_stored_there_afterwards(
    tmp_path: Path, upstream: Upstream
) -> None:
    """The gateway creates no new folder, which would collide with the volume."""
    data, prompt = tmp_path / "data", "an otter"
    async with two_gateways(data, upstream, None) as (here, there):
        alice = await here.client.with_key("alice")
        with hold_streams(after=1) as go_on:
            async with open_stream(alice, prompt) as stream:
                await stream.until(1)
                with folder_missing(data):
                    go_on.open()
                    events = await stream.to_the_end()
                    assert not await asyncio.to_thread(data.exists)
        async with generous():
            await here.gateway.tasks.drain()
        elsewhere = Client(there.client.url, there.client.session, alice.secret, alice.key_id)
        cached = await elsewhere.ask(prompt, headers={"Cache-Control": "only-if-cached"})

    assert names_of(events) == [PARTIAL] * 3 + [COMPLETED]
    assert (cached.status, cached.images) == (200, [events[-1].image])


async def test_an_outage_is_logged_when_it_begins_and_when_it_ends(arena: Arena) -> None:
    """By each of the two gateways and for each of its stores, however many calls fail."""
    alice = await arena.here.client.with_key("alice")
    await alice.ask("before")
    with capture_logs() as logs:
        with arena.outage():
            await asyncio.gather(*(alice.ask(f"during {number}") for number in range(5)))
            await asyncio.gather(*(alice.ask(f"during {number}") for number in range(5)))
        await arena.settle()

        def ended() -> bool:
            return len(named(logs, "store_available")) >= len({*named(logs, "store_unavailable")})

        await eventually(ended)
    for begun_by in Counter(named(logs, "store_unavailable")).values():
        assert begun_by <= 4  # two gateways, each with a second reason at most
    for line in logs:
        if line["event"] == "store_available":
            assert line["failed_calls"] >= 1
            assert line["lasted_seconds"] >= 0
        assert line["event"] != "store_unavailable" or line["reason"], line


def named(logs: Iterable[Any], event: str) -> list[str]:
    """The stores of the lines of an event."""
    return [line["store"] for line in logs if line["event"] == event]
