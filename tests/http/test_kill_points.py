"""`kill -9` at every step of a purchase: other workers continue from every state it leaves.

The victim, a gateway of one worker with fail points, shares a store with a survivor. Clients of
both follow a purchase of the victim. Once it has stopped at a point, one more client follows. Then
the victim is killed. Its supervisor replaces it, so the next test kills the replacement: every test
has prompts and keys of its own.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
from asyncio import Task, TaskGroup
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from _pytest.mark import ParameterSet

from gateway.api.admin.images import MAX_LISTED
from gateway.cache import flight_ends, flights
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import AcquireLease, Counter, OpenJournals, PeekCounters
from tests.failpoints import (
    FOLDER_VARIABLE,
    MORTAL_LEASE_SECONDS,
    KillPoint,
    Strings,
    When,
)
from tests.gateways import (
    Client,
    InProcess,
    Reply,
    Upstream,
    leases_at,
    make_settings,
    read_spent,
    run_gateway,
    run_processes,
    run_upstream,
)
from tests.redis_cluster import run_redis_cluster
from tests.redis_server import run_redis_server
from tests.sentinel_servers import run_sentinel_servers
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually

LOOKED_UP = ("Admit", "ReadEntry")
OPENED = (*LOOKED_UP, "AcquireLease", "Reserve", "RenewLease")
COMPLETED = ("Receive", "StoreImages", "Settle", "Publish")


pytestmark = [
    # Every death starts a new process.
    usually_on("redis", fixture="arena_url", more=TOPOLOGIES),
    pytest.mark.asyncio(loop_scope="module"),
]


@dataclass(frozen=True)
class Story:
    """A purchase to interrupt, and all its steps if nothing interrupts it."""

    steps: tuple[str, ...]
    prompt: str = "an otter"
    body: dict[str, Any] = field(default_factory=dict)
    leader_body: dict[str, Any] = field(default_factory=dict)
    """Further parameters of the leader's request; followers do not send them."""
    partial_images: int = 0
    """The partial images that are published before the end."""
    status: int = 200
    is_shared: bool = True
    """Whether other requests can follow it, and find its images later."""
    sent_after: int = len(OPENED)
    """The number of steps before the request is sent to upstream."""

    @property
    def images(self) -> int:
        return int(self.body.get("n", 1))


STORIES = {
    "one": Story((*OPENED, "PutBlob", *COMPLETED)),
    "four": Story((*OPENED, *["PutBlob"] * 4, *COMPLETED), body={"n": 4}),
    "streamed": Story(
        (*OPENED, "Publish", "Publish", "PutBlob", *COMPLETED),
        leader_body={"stream": True, "partial_images": 1},
        partial_images=2,
    ),
    "failing": Story(
        (*OPENED, "ReleaseLease", "Publish", "Settle"),
        prompt="[[sim:status=500]] an otter",
        status=500,
    ),
    "undelivered": Story(
        (*OPENED, "ReleaseLease", "Publish", "Settle"),
        prompt="[[sim:tiny-png]] an otter",
        status=502,
    ),
    "links": Story(
        (*OPENED, "PutBlob", *COMPLETED),
        prompt="an otter with a link",
        body={"model": "dall-e-2", "response_format": "url"},
    ),
}


def kill_points(*names: str, both_sides: bool) -> list[ParameterSet]:
    """Every step of these stories."""
    return [point for name in names for point in kill_points_of(name, both_sides=both_sides)]


def kill_points_of(
    name: str, *, both_sides: bool, of: Mapping[str, Story] = STORIES
) -> Iterator[ParameterSet]:
    """Before each step, and with `both_sides` also after it.

    Always after the last step before upstream and after the very last one: elsewhere, after a step
    is the same state as before the next.
    """
    story = of[name]
    for number, step in enumerate(story.steps, start=1):
        is_another = number in (story.sent_after, len(story.steps))
        sides: list[When] = ["before", "after"] if both_sides or is_another else ["before"]
        for when in sides:
            point = KillPoint(when, number)
            yield pytest.param(story, point, id=f"{name}-{when}-{number}-{step}")


# ── two gateways on one store ───────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Arena:
    """Two gateways on one store: the victim and the survivor."""

    strings: Strings
    upstream: Upstream
    survivor: InProcess
    victim: Client
    """Alice's key at the victim."""
    alice: Client
    """Alice's key at the survivor."""
    bob: Client
    number: int
    """Of the test, among those of this arena."""
    listed_before: Sequence[ListedImage]

    async def ask(self, client: Client, story: Story, **body: Any) -> Reply:
        """Sends the story's request, with a prompt that no other test has sent."""
        return await client.ask(f"{story.prompt} {self.number}", **story.body, **body)

    async def records(self) -> list[Record]:
        """The ledger's records of this test."""
        keys = {self.alice.key_id, self.bob.key_id}
        return [record for record in await self.survivor.ledger() if record.key_id in keys]

    async def interrupt(self, story: Story, point: KillPoint) -> Outcome:
        """Stops a purchase of the victim at a point, with followers, and kills the victim."""
        self.strings.arm(point)
        async with self.upstream.hold(), asyncio.TaskGroup() as tasks:
            cut_off = tasks.create_task(self._expect_cut_off(story))
            requests = await self._start_followers(story, tasks)
            self.strings.kill()
            await cut_off
            await self._recover_victim()
        await eventually(self._has_no_open_journal)
        return Outcome(
            story, point, self.strings.steps(), [request.result() for request in requests]
        )

    async def _start_followers(self, story: Story, tasks: TaskGroup) -> list[Task[Reply]]:
        """Two once the victim has the lease or has stopped, one more once it has stopped."""
        early, leases = [self.bob, self.alice] if story.is_shared else [], leases_at(self.survivor)
        await eventually(lambda: self.strings.is_held() or "AcquireLease" in self.strings.steps())
        requests = [tasks.create_task(self.ask(client, story)) for client in early]
        await leases.until(len(early))
        if not self.strings.is_held():
            self.upstream.gate.open()
            await eventually(self.strings.is_held)
        requests += [tasks.create_task(self.ask(client, story)) for client in early[:1]]
        await eventually(
            lambda: leases.count >= len(requests) or all(request.done() for request in requests)
        )
        self.upstream.gate.open()
        return requests

    async def _expect_cut_off(self, story: Story) -> None:
        with pytest.raises(aiohttp.ClientError):
            await self.ask(self.victim, story, **story.leader_body)

    async def _recover_victim(self) -> None:
        """Recovers the victim's purchases, as the survivor does once the victim has expired."""
        gateway = self.survivor.gateway
        journals = await execute(gateway.store, OpenJournals())
        for worker in {journal.worker for journal in journals} - {gateway.worker}:
            await gateway.recovery.recover(worker)

    async def _has_no_open_journal(self) -> bool:
        return not await execute(self.survivor.gateway.store, OpenJournals())

    async def counted(self) -> Counted:
        """The counters of both keys together."""
        total = collections.Counter[str]()
        for client in (self.alice, self.bob):
            total.update(vars(await self._counted_for(client)))
        return Counted(**total)

    async def _counted_for(self, client: Client) -> Counted:
        spent = await read_spent(self.survivor.settings, client.key_id)
        open_purchases = Counter(f"key:{client.key_id}", "purchases", "concurrency")
        (shown,) = await execute(self.survivor.gateway.store, PeekCounters((open_purchases,)))
        return Counted(
            usd_micros=spent.usd_micros,
            images=spent.images,
            reserved=spent.reserved_micros + spent.reserved_images + shown.reserved,
        )


@dataclass(frozen=True)
class Counted:
    """Counters of both keys together."""

    usd_micros: int
    images: int
    reserved: int = 0
    """Money, images and open purchases, summed."""


@dataclass(frozen=True)
class Outcome:
    """The steps that the victim has finished, and the survivor's replies."""

    story: Story
    point: KillPoint
    done: list[str]
    replies: Sequence[Reply]

    @property
    def has_reserved(self) -> bool:
        return "Reserve" in self.done

    @property
    def has_received(self) -> bool:
        return "Receive" in self.done

    @property
    def must_be_presumed(self) -> bool:
        """The victim may have sent the request, and no journal has its result."""
        return self.has_reserved and not self.has_received and "Settle" not in self.done

    @property
    def has_sent(self) -> bool:
        """Whether the victim has sent its request, which happens between two steps."""
        is_just_sent = len(self.done) == self.story.sent_after and self.point.when == "before"
        return is_just_sent or len(self.done) > self.story.sent_after


@dataclass(frozen=True)
class Gateways:
    """Two gateways on one store, for all tests of a module."""

    strings: Strings
    upstream: Upstream
    survivor: InProcess
    victim: Client
    numbers: Iterator[int] = field(default_factory=itertools.count)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def arena_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str | None]:
    """The store: the embedded one, or a Redis that no other test empties."""
    if request.param == "sqlite":
        yield None
    elif request.param == "cluster":
        with run_redis_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
            yield cluster.url
    elif request.param == "sentinel":
        with run_sentinel_servers(tmp_path_factory.mktemp("sentinel")) as servers:
            yield servers.url
    else:
        with run_redis_server(tmp_path_factory.mktemp("redis")) as url:
            yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways(
    arena_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Gateways]:
    """Without a circuit breaker: failures of one test do not affect the next."""
    folder = tmp_path_factory.mktemp("arena")
    strings, options = Strings(folder / "strings"), {"upstream": {"breaker": {"failures": 0}}}
    strings.folder.mkdir()
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(run_upstream())
        settings = make_settings(folder / "data", upstream.base_url, arena_url, **options)
        survivor = await stack.enter_async_context(run_gateway(settings))
        _, victim = await stack.enter_async_context(
            run_processes(
                folder,
                upstream.base_url,
                workers=1,
                redis_url=arena_url,
                options=options,
                module="tests.failing_gateway",
                environ={FOLDER_VARIABLE: str(strings.folder)},
            )
        )
        yield Gateways(strings, upstream, survivor, victim)


@pytest_asyncio.fixture(loop_scope="module")
async def arena(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Arena]:
    monkeypatch.setattr(flights, "LEASE_SECONDS", MORTAL_LEASE_SECONDS)
    monkeypatch.setattr(flight_ends, "MAX_SILENCE_SECONDS", 0.6)
    monkeypatch.setattr(flight_ends, "RECHECK_SECONDS", 0.1)
    survivor, number = gateways.survivor, next(gateways.numbers)
    alice, bob = [await survivor.client.with_key(f"{each}-{number}") for each in ("alice", "bob")]
    await gateways.upstream.forget()
    yield Arena(
        gateways.strings,
        gateways.upstream,
        survivor,
        replace(gateways.victim, secret=alice.secret, key_id=alice.key_id),
        alice=alice,
        bob=bob,
        number=number,
        listed_before=await newest_images(alice),
    )
    gateways.strings.kill()  # a test that has failed may have left it at its point


ListedImage: TypeAlias = tuple[str, int, str]
"""Fingerprint, slot and id."""


async def newest_images(client: Client) -> list[ListedImage]:
    """Many more than a test stores."""
    reply = await client.admin("GET", f"/admin/images?limit={MAX_LISTED}")
    return [(i["fingerprint"], i["slot"], i["id"]) for i in reply.json["data"]]


# ── invariants after each kill ──────────────────────────────────────────────────────────────


async def assert_books_agree(arena: Arena, outcome: Outcome) -> None:
    """One record for each request and for the victim's reservation; counters are their sums."""
    records = await arena.records()
    recorded = collections.Counter(record.request_id for record in records)
    answered = {reply.headers["x-request-id"] for reply in outcome.replies}
    assert recorded.keys() >= answered
    assert len(recorded) == len(answered) + outcome.has_reserved
    assert set(recorded.values()) <= {1}
    assert len({record.id for record in records}) == len(records)
    assert sum("presumed" in record.flags for record in records) == outcome.must_be_presumed
    assert await arena.counted() == Counted(
        usd_micros=sum(record.cost_micros for record in records),
        images=sum(record.images for record in records),
    )


async def assert_nothing_is_leased_or_reserved(arena: Arena, outcome: Outcome) -> None:
    """No lease and no reservation is left; every slot has an image or is free."""
    store = arena.survivor.gateway.store
    assert await execute(store, OpenJournals()) == []
    records = await arena.records()
    for fingerprint in {record.fingerprint for record in records if record.fingerprint}:
        slots = tuple(range(outcome.story.images))
        acquire = AcquireLease(fingerprint, slots, "a-probe", 0.001)

        async def is_free(acquire: AcquireLease = acquire) -> bool:
            return (await execute(store, acquire)).leased == {}

        # A lease that was handed to a purchase which has ended is released a moment later.
        await eventually(is_free)
        probe = await execute(store, acquire)
        is_filled = outcome.story.is_shared and outcome.story.status == 200
        assert tuple(probe.cached) == (slots if is_filled else ())


async def assert_each_image_is_listed_once(arena: Arena) -> None:
    """The list of images has those of all entries, and nothing new that was not stored."""
    cache = arena.survivor.gateway.cache.image_cache
    records = await arena.records()
    stored = []
    for fingerprint in {record.fingerprint for record in records if record.fingerprint}:
        entry = await cache.entry(fingerprint)
        stored += [(fingerprint, n, slot.image_id) for n, slot in entry.slots.items()]
    listed = [i for i in await newest_images(arena.alice) if i not in arena.listed_before]
    assert sorted(listed) == sorted(stored)


async def assert_bought_at_most_once_more(arena: Arena, outcome: Outcome) -> None:
    """One follower buys if the victim neither received an image nor published its end.

    After a failure has released the lease, a new request may buy too.
    """
    has_published_end = outcome.done.count("Publish") > outcome.story.partial_images
    is_replaced = outcome.story.is_shared and not outcome.has_received and not has_published_end
    may_buy_again = outcome.story.is_shared and "ReleaseLease" in outcome.done
    sent = len(await arena.upstream.bodies())
    assert outcome.has_sent <= sent <= outcome.has_sent + is_replaced + may_buy_again


def shown_by(reply: Reply) -> tuple[str, ...]:
    """The images of an answer, or the paths of their links, which are the same at any gateway."""
    elements = reply.json["data"]
    return tuple(e.get("b64_json") or urlsplit(e["url"]).path for e in elements)


def assert_all_are_answered(outcome: Outcome) -> None:
    """All requests to the survivor, with the same images."""
    assert {reply.status for reply in outcome.replies} <= {outcome.story.status}
    if outcome.story.status == 200:
        assert len({shown_by(reply) for reply in outcome.replies}) <= 1


async def assert_next_request_is_a_hit(arena: Arena, outcome: Outcome) -> None:
    """At the survivor, and at the worker that replaced the victim."""
    if not outcome.story.is_shared or outcome.story.status != 200:
        return
    for client in (arena.bob, arena.victim):
        hit = await arena.ask(client, outcome.story)
        assert hit.cache_status.startswith("hit")
        assert shown_by(hit) == shown_by(outcome.replies[0])


async def assert_all_holds(arena: Arena, story: Story, point: KillPoint) -> None:
    outcome = await arena.interrupt(story, point)

    is_after = point.when == "after"
    assert outcome.done == list(story.steps[: point.step - 1 + is_after])
    assert_all_are_answered(outcome)
    await assert_bought_at_most_once_more(arena, outcome)
    await assert_nothing_is_leased_or_reserved(arena, outcome)
    await assert_each_image_is_listed_once(arena)
    await assert_books_agree(arena, outcome)
    await assert_next_request_is_a_hit(arena, outcome)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
async def test_the_steps_of_a_story_are_all_steps_of_its_purchase(
    arena: Arena, story: Story
) -> None:
    """A point after the last step kills no process, so the purchase takes all its steps."""
    arena.strings.arm(KillPoint("before", len(story.steps) + 1))
    reply = await arena.ask(arena.victim, story, **story.leader_body)

    assert reply.status == story.status
    assert arena.strings.steps() == list(story.steps)
    assert not arena.strings.is_held()


@pytest.mark.parametrize(("story", "point"), kill_points("one", both_sides=False))
async def test_a_kill_at_any_step_of_a_purchase_loses_and_duplicates_nothing(
    arena: Arena, story: Story, point: KillPoint
) -> None:
    await assert_all_holds(arena, story, point)


@pytest.mark.long
@pytest.mark.parametrize(("story", "point"), kill_points(*STORIES, both_sides=True))
async def test_a_kill_before_or_after_any_step_of_any_purchase_loses_and_duplicates_nothing(
    arena: Arena, story: Story, point: KillPoint
) -> None:
    await assert_all_holds(arena, story, point)
