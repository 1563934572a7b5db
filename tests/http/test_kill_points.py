"""`kill -9` at every step of a purchase: whatever state it leaves, the others go on from there.

A gateway of one worker, which has fail points, shares a store with one that survives. Callers of
both wait for a purchase of the first; it is held at a point, somebody else asks; then it is killed.
"""

from __future__ import annotations

import asyncio
import collections
from asyncio import Task, TaskGroup
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from _pytest.mark import ParameterSet

from gateway.cache import flight_ends, flights
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
    read_spent,
    run_processes,
)
from tests.http.conftest import OpenGateway
from tests.waiting import eventually

CODE = Path(__file__).parent.parent.parent

LOOKED_UP = ("Admit", "ReadEntry")
OPENED = (*LOOKED_UP, "AcquireLease", "Reserve", "RenewLease")
LANDED = ("Receive", "StoreImages", "Settle", "Publish")


@dataclass(frozen=True)
class Story:
    """A purchase that is to be interrupted, and every step that it takes when it is not."""

    steps: tuple[str, ...]
    prompt: str = "an otter"
    body: dict[str, Any] = field(default_factory=dict)
    victims_body: dict[str, Any] = field(default_factory=dict)
    """What the one who buys asks for beside that; those who wait do not."""
    partial_images: int = 0
    """How many times something is published before the end."""
    status: int = 200
    is_shared: bool = True
    """Whether others may wait for it, and find it afterwards."""
    sent_after: int = len(OPENED)
    """How many steps are done when the request goes out to upstream."""

    @property
    def images(self) -> int:
        return int(self.body.get("n", 1))


STORIES = {
    "one": Story((*OPENED, "PutBlob", *LANDED)),
    "four": Story((*OPENED, *["PutBlob"] * 4, *LANDED), body={"n": 4}),
    "streamed": Story(
        (*OPENED, "Publish", "Publish", "PutBlob", *LANDED),
        victims_body={"stream": True, "partial_images": 1},
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
        (*OPENED, "PutBlob", *LANDED),
        prompt="an otter with a link",
        body={"model": "dall-e-2", "response_format": "url"},
    ),
}


def kill_points(*names: str, both_sides: bool) -> list[ParameterSet]:
    """Every step of these stories."""
    return [point for name in names for point in kill_points_of(name, both_sides=both_sides)]


def kill_points_of(name: str, *, both_sides: bool) -> Iterator[ParameterSet]:
    """Before each step; after it too if asked, or if that is not the same as before the next one:

    around the sending, and at the very end.
    """
    story = STORIES[name]
    for number, step in enumerate(story.steps, start=1):
        is_another = number in (story.sent_after, len(story.steps))
        sides: list[When] = ["before", "after"] if both_sides or is_another else ["before"]
        for when in sides:
            point = KillPoint(when, number)
            yield pytest.param(story, point, id=f"{name}-{when}-{number}-{step}")


# ── the place ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Arena:
    """Two gateways on one store, one of which is going to die."""

    strings: Strings
    upstream: Upstream
    survivor: InProcess
    victim: Client
    """Alice, at the gateway that dies."""
    alice: Client
    """Alice, at the one that survives."""
    bob: Client

    async def interrupt(self, story: Story, point: KillPoint) -> Told:
        """Has Alice buy and others wait for it, holds her at the point, has one more ask, kills."""
        self.strings.arm(point)
        async with self.upstream.hold(), asyncio.TaskGroup() as callers:
            ended = callers.create_task(self._is_cut_off(story))
            asks = await self._others_ask(story, callers)
            self.strings.kill()
            await ended
            await self._recover_victim()
        await eventually(self._is_closed)
        return Told(story, point, self.strings.steps(), [asked.result() for asked in asks])

    async def _others_ask(self, story: Story, callers: TaskGroup) -> list[Task[Reply]]:
        """Two as soon as there is something to wait for, one more when the victim stands still."""
        early, leases = [self.bob, self.alice] if story.is_shared else [], leases_at(self.survivor)
        await eventually(lambda: self.strings.is_held() or "AcquireLease" in self.strings.steps())
        asks = [callers.create_task(self._ask(client, story)) for client in early]
        await leases.until(len(early))
        if not self.strings.is_held():
            self.upstream.gate.open()
            await eventually(self.strings.is_held)
        asks += [callers.create_task(self._ask(client, story)) for client in early[:1]]
        await eventually(lambda: leases.count >= len(asks) or all(asked.done() for asked in asks))
        self.upstream.gate.open()
        return asks

    async def _is_cut_off(self, story: Story) -> None:
        with pytest.raises(aiohttp.ClientError):
            await self.victim.ask(story.prompt, **story.body, **story.victims_body)

    async def _ask(self, client: Client, story: Story) -> Reply:
        return await client.ask(story.prompt, **story.body)

    async def _recover_victim(self) -> None:
        """What the survivor does once the victim has been silent for long enough."""
        gateway = self.survivor.gateway
        journals = await execute(gateway.store, OpenJournals())
        for worker in {journal.worker for journal in journals} - {gateway.worker}:
            await gateway.recovery.recover(worker)

    async def _is_closed(self) -> bool:
        """Whether nobody has an open journal any more."""
        return not await execute(self.survivor.gateway.store, OpenJournals())

    async def counted(self) -> Counted:
        """What the counters of both keys show together."""
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
    """Of anything: money, images, open purchases."""


@dataclass(frozen=True)
class Told:
    """How it went: what the victim had done, and what the survivor's callers were answered."""

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
        """It may have been bought, and nobody knows any more."""
        return self.has_reserved and not self.has_received and "Settle" not in self.done

    @property
    def has_sent(self) -> bool:
        """The victim asks upstream between two steps."""
        is_just_sent = len(self.done) == self.story.sent_after and self.point.when == "before"
        return is_just_sent or len(self.done) > self.story.sent_after


@pytest.fixture
async def arena(
    tmp_path: Path,
    upstream: Upstream,
    store_url: str | None,
    open_gateway: OpenGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Arena]:
    monkeypatch.setattr(flights, "LEASE_SECONDS", MORTAL_LEASE_SECONDS)
    monkeypatch.setattr(flight_ends, "MAX_SILENCE_SECONDS", 0.6)
    monkeypatch.setattr(flight_ends, "RECHECK_SECONDS", 0.1)
    folder = tmp_path / "strings"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        survivor = await stack.enter_async_context(open_gateway())
        _, client = await stack.enter_async_context(
            run_processes(
                tmp_path,
                upstream.base_url,
                workers=1,
                redis_url=store_url,
                module="tests.failing_gateway",
                environ={FOLDER_VARIABLE: str(folder), "PYTHONPATH": str(CODE)},
            )
        )
        alice, bob = [await survivor.client.with_key(name) for name in ("alice", "bob")]
        victim = Client(client.url, client.session, alice.secret, alice.key_id)
        yield Arena(Strings(folder), upstream, survivor, victim, alice=alice, bob=bob)


# ── what must hold, wherever it died ────────────────────────────────────────────────────────


async def assert_books_agree(arena: Arena, told: Told) -> None:
    """One record for each request, one reservation or none, counters that show their sum."""
    records = await arena.survivor.ledger()
    recorded = collections.Counter(record.request_id for record in records)
    answered = {reply.headers["x-request-id"] for reply in told.replies}
    assert recorded.keys() >= answered
    assert len(recorded) == len(answered) + told.has_reserved
    assert set(recorded.values()) <= {1}
    assert len({record.id for record in records}) == len(records)
    assert sum("presumed" in record.flags for record in records) == told.must_be_presumed
    assert await arena.counted() == Counted(
        usd_micros=sum(record.cost_micros for record in records),
        images=sum(record.images for record in records),
    )


async def assert_nothing_is_held(arena: Arena, told: Told) -> None:
    """No claim is left, and no reservation; every slot holds an image or is free."""
    store = arena.survivor.gateway.store
    assert await execute(store, OpenJournals()) == []
    records = await arena.survivor.ledger()
    for place in {record.fingerprint for record in records if record.fingerprint}:
        slots = tuple(range(told.story.images))
        probe = await execute(store, AcquireLease(place, slots, "a-probe", 0.001))
        assert probe.leased == {}
        is_filled = told.story.is_shared and told.story.status == 200
        assert tuple(probe.cached) == (slots if is_filled else ())


async def assert_bought_at_most_once_more(arena: Arena, told: Told) -> None:
    """Nobody buys what was received, or failed, if the others could be told; else one does.

    Whoever asks after a failure, when the slots are free again, asks anew.
    """
    is_told = told.done.count("Publish") > told.story.partial_images
    is_replaced = told.story.is_shared and not told.has_received and not is_told
    requires_fresh = told.story.is_shared and "ReleaseLease" in told.done
    sent = len(await arena.upstream.bodies())
    assert told.has_sent <= sent <= told.has_sent + is_replaced + requires_fresh


def shown_by(reply: Reply) -> tuple[str, ...]:
    """The images of an answer, or what its links say of them at any gateway."""
    elements = reply.json["data"]
    return tuple(e.get("b64_json") or urlsplit(e["url"]).path for e in elements)


def assert_all_are_answered(told: Told) -> None:
    """Everyone who did not ask the victim, and with the same images."""
    assert {reply.status for reply in told.replies} <= {told.story.status}
    if told.story.status == 200:
        assert len({shown_by(reply) for reply in told.replies}) <= 1


async def assert_next_ask_is_a_hit(arena: Arena, told: Told) -> None:
    """At the survivor, and at the worker that replaced the dead one."""
    if not told.story.is_shared or told.story.status != 200:
        return
    for client in (arena.bob, arena.victim):
        hit = await client.ask(told.story.prompt, **told.story.body)
        assert hit.cache_status.startswith("hit")
        assert shown_by(hit) == shown_by(told.replies[0])


async def assert_all_holds(arena: Arena, story: Story, point: KillPoint) -> None:
    told = await arena.interrupt(story, point)

    is_after = point.when == "after"
    assert told.done == list(story.steps[: point.step - 1 + is_after])
    assert_all_are_answered(told)
    await assert_bought_at_most_once_more(arena, told)
    await assert_nothing_is_held(arena, told)
    await assert_books_agree(arena, told)
    await assert_next_ask_is_a_hit(arena, told)


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
async def test_the_kill_points_are_all_steps_of_a_purchase(arena: Arena, story: Story) -> None:
    """A point beyond the end kills nobody: the list of steps is the one that the tests go by."""
    arena.strings.arm(KillPoint("before", len(story.steps) + 1))
    reply = await arena.victim.ask(story.prompt, **story.body, **story.victims_body)

    assert reply.status == story.status
    assert arena.strings.steps() == list(story.steps)
    assert not arena.strings.is_held()


@pytest.mark.parametrize(("story", "point"), kill_points("one", both_sides=False))
async def test_a_kill_at_any_step_of_a_purchase_loses_and_doubles_nothing(
    arena: Arena, story: Story, point: KillPoint
) -> None:
    await assert_all_holds(arena, story, point)


@pytest.mark.long
@pytest.mark.parametrize(("story", "point"), kill_points(*STORIES, both_sides=True))
async def test_a_kill_before_or_after_any_step_of_any_purchase_loses_and_doubles_nothing(
    arena: Arena, story: Story, point: KillPoint
) -> None:
    await assert_all_holds(arena, story, point)
