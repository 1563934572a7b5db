"""`Idempotency-Key`: whatever happens to a purchase, the key is charged once.

A worker is killed at each step, the store does not answer, a worker drains, locks expire.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio import TaskGroup
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gateway.cache import idempotency_keys, idempotent_purchases
from gateway.cache.idempotency_keys import SPACE, IdempotencyKeys
from gateway.cache.idempotency_results import IdempotentRequest, encode_lock
from gateway.cache.idempotent_purchases import keep_for_purchase
from gateway.errors import StoreUnavailable
from gateway.store.batch import Batch, execute
from gateway.store.commands import GetValue, Settle, SetValue
from gateway.store.protocol import Command, Store
from tests.gateways import Client, InProcess, Reply, Upstream, open_to_each, run_processes
from tests.http.conftest import OpenGateway
from tests.http.test_idempotency import FRESH, KEY, REPLAYED, elsewhere, fingerprint_of, purge
from tests.http.test_kill_points import (
    OPENED,
    STORIES,
    Arena,
    KillPoint,
    Story,
    arena,
    arena_url,
    gateways,
    kill_points_of,
)
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually, generous

__all__ = ["arena", "arena_url", "gateways"]

UNSHARED = ("Admit", "ReadEntry", "Reserve")
"""The steps before upstream of a request with `no-cache`."""

in_arena = pytest.mark.asyncio(loop_scope="module")
arena_usually_on_sqlite = usually_on("sqlite", fixture="arena_url", more=TOPOLOGIES)
"""Every death starts a new process."""


def keyed(name: str) -> Story:
    """A story of a purchase for an idempotency key, which nobody follows."""
    story = STORIES[name]
    return replace(
        story,
        steps=(*UNSHARED, *story.steps[len(OPENED) :]),
        leader_body={**story.leader_body, "headers": FRESH},
        is_shared=False,
        sent_after=len(UNSHARED),
    )


KEYED = {name: keyed(name) for name in ("one", "four", "undelivered")}


def kill_points(*names: str, both_sides: bool) -> list[Any]:
    return [p for name in names for p in kill_points_of(name, both_sides=both_sides, of=KEYED)]


async def repeat_beside_a_death(arena: Arena, story: Story, point: KillPoint) -> list[Reply]:
    """Kills the victim at a point, and repeats its request at the survivor: before and after."""

    async def repeat() -> Reply:
        return await arena.ask(arena.alice, story, headers=FRESH)

    arena.strings.arm(point)
    async with arena.upstream.hold() as gate, TaskGroup() as tasks:
        cut_off = tasks.create_task(arena._expect_cut_off(story))
        await eventually(lambda: arena.strings.is_held() or gate.arrived)
        gate.open()
        await eventually(arena.strings.is_held)
        waiting = tasks.create_task(repeat())
        arena.strings.kill()
        await cut_off
        await arena._recover_victim()
    return [waiting.result(), await repeat()]


async def assert_charged_once(arena: Arena, story: Story, point: KillPoint) -> None:
    replies = await repeat_beside_a_death(arena, story, point)

    done = arena.strings.steps()
    records = [r for r in await arena.records() if r.outcome in ("bought", "failed")]
    assert len(await arena.upstream.bodies()) <= 1
    assert [r.cost_micros > 0 for r in records] == [True]
    assert "Reserve" not in done or [REPLAYED in r.headers for r in replies] == [True, True]
    assert REPLAYED in replies[1].headers
    assert replies[0].status == replies[1].status
    if replies[0].status == 200:
        assert replies[0].images == replies[1].images
        assert len(replies[0].images) == story.images
    else:
        assert replies[0].error == replies[1].error
    if "Receive" in done:
        assert replies[0].status == 200
    assert (await arena.counted()).reserved == 0


@in_arena
@arena_usually_on_sqlite
@pytest.mark.parametrize(("story", "point"), kill_points("one", both_sides=False))
async def test_a_kill_at_any_step_charges_an_idempotency_key_once(
    arena: Arena, story: Story, point: KillPoint
) -> None:
    await assert_charged_once(arena, story, point)


@pytest.mark.long
@in_arena
@arena_usually_on_sqlite
@pytest.mark.parametrize(("story", "point"), kill_points(*KEYED, both_sides=True))
async def test_a_kill_before_or_after_any_step_charges_an_idempotency_key_once(
    arena: Arena, story: Story, point: KillPoint
) -> None:
    await assert_charged_once(arena, story, point)


# ── the store does not answer ───────────────────────────────────────────────────────────────


class SilentSettlements:
    """A store that does not take settlements until it is opened."""

    def __init__(self, gateway: InProcess, patch: pytest.MonkeyPatch) -> None:
        settlements = gateway.gateway.recovery._settlements
        store: Store = settlements._store
        self.name, self.watch, self._execute = store.name, store.watch, store.execute
        self.refused = 0
        self.is_open = False
        patch.setattr(settlements, "_store", self)

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if not self.is_open and any(isinstance(command, Settle) for command in commands):
            self.refused += 1
            raise StoreUnavailable
        return await self._execute(commands)


@usually_on("sqlite", more=TOPOLOGIES)
@pytest.mark.parametrize(
    "prompt",
    ["an otter", "[[sim:status=502;times=1]] an otter", "[[sim:tiny-png;times=1]] an otter"],
)
async def test_a_charge_that_the_store_does_not_take_yet_is_not_made_again(
    open_gateway: OpenGateway, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """The request is answered, its lock would have expired, and both gateways are asked again."""
    monkeypatch.setattr(idempotency_keys, "LOCK_SECONDS", 1.0)
    monkeypatch.setattr(idempotency_keys, "RECHECK_SECONDS", 0.05)
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        settlements = SilentSettlements(here, monkeypatch)
        first = await alice.ask(prompt, headers=FRESH)
        asking = asyncio.create_task(elsewhere(there, alice).ask(prompt, headers=FRESH))
        again = await alice.ask(prompt, headers=FRESH)
        await asyncio.wait({asking}, timeout=1.5)
        was_waiting = not asking.done()
        settlements.is_open = True
        async with generous():
            other = await asking
        after = await alice.ask(prompt, headers=FRESH)

    assert was_waiting
    assert settlements.refused
    for reply in (again, other, after):
        assert reply.status == first.status
        assert reply.headers[REPLAYED] == "true"
        assert reply.json.get("data") == first.json.get("data")
    assert len(await upstream.bodies()) == 1


@usually_on("sqlite", more=TOPOLOGIES)
async def test_an_answer_that_fails_after_its_purchase_leaves_the_result(
    gateway: InProcess, alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = gateway.gateway.services.proxy._images

    async def fail(*given: Any, **more: Any) -> Any:
        raise StoreUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(images, "serve", fail)
        failed = await alice.ask(headers=FRESH)
    again = await alice.ask(headers=FRESH)

    assert failed.status == 503
    assert (again.status, again.headers[REPLAYED]) == (200, "true")
    assert len(await upstream.bodies()) == 1


@usually_on("sqlite", more=TOPOLOGIES)
async def test_a_request_whose_lock_was_taken_by_another_one_buys_nothing(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    """Its lock expires before its reservation, as in a pause of the store."""
    store = gateway.gateway.store
    plain = await alice.ask()
    request = (fingerprint_of(plain), 1, False, "b64_json")
    other = IdempotentRequest.of(alice.key_id, KEY["Idempotency-Key"], request=request)
    purchases = gateway.gateway.services.proxy._images._purchases
    reserve = purchases._reserve

    async def steal_then_reserve(order: Any, *given: Any, **more: Any) -> Any:
        await execute(store, SetValue(SPACE, other.name, encode_lock(other), 60.0))
        return await reserve(order, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(purchases, "_reserve", steal_then_reserve)
        refused = await alice.ask(headers=FRESH)
    await eventually(lambda: not len(gateway.gateway.tasks))

    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    assert await execute(store, GetValue(SPACE, other.name)) == encode_lock(other)
    assert len(await upstream.bodies()) == 1
    assert [r.cost_micros > 0 for r in await gateway.ledger()] == [True, False]


# ── other requests' locks and results ───────────────────────────────────────────────────────


@usually_on("sqlite", more=TOPOLOGIES)
async def test_nothing_of_a_request_touches_the_lock_of_another(gateway: InProcess) -> None:
    """Neither release, renewal, result, settlement nor cancellation."""
    store, tasks = gateway.gateway.store, gateway.gateway.tasks
    keys = IdempotencyKeys(store, tasks)
    mine, other = (IdempotentRequest.of("key_1", "order-17", request=("otter",)) for _ in range(2))
    failure = idempotency_keys.worker_died()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(idempotency_keys, "RENEW_SECONDS", 0.01)
        for lock in (encode_lock(other), encode_lock(other, purchase="another")):
            await execute(store, SetValue(SPACE, other.name, lock, 60.0))
            async with keys.renewing(mine):
                await asyncio.sleep(0.1)
            await keys.store(mine, [], is_free=True)
            await keys.store(mine, [])
            await keys.store_failure(mine, failure, settling=())
            await keys.release(mine)
            assert not await keep_for_purchase(store, mine, "mine")
            batch = Batch(store)
            found = await idempotent_purchases.find_key(store, mine)
            idempotent_purchases.store_purchased(batch, mine, [], found=found)
            idempotent_purchases.store_failed(batch, mine, failure, found=found)
            idempotent_purchases.release_cancelled(batch, mine, "mine")
            await batch.execute()
            await eventually(lambda: not len(tasks))
            assert await execute(store, GetValue(SPACE, other.name)) == lock


@usually_on("sqlite", more=TOPOLOGIES)
async def test_a_late_call_of_a_cancelled_purchase_keeps_no_key(gateway: InProcess) -> None:
    store = gateway.gateway.store
    mine = IdempotentRequest.of("key_1", "order-17", request=("otter",))
    await execute(store, SetValue(SPACE, mine.name, encode_lock(mine), 60.0))
    batch = Batch(store)
    idempotent_purchases.release_cancelled(batch, mine, "mine")
    await batch.execute()

    assert not await keep_for_purchase(store, mine, "mine")
    assert await execute(store, GetValue(SPACE, mine.name)) is None


@usually_on("sqlite", more=TOPOLOGIES)
async def test_a_lock_of_a_purchase_that_the_store_has_lost_ends_as_a_presumed_failure(
    gateway: InProcess, alice: Client, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency_keys, "RECHECK_SECONDS", 0.05)
    plain = await alice.ask()
    request = (fingerprint_of(plain), 1, False, "b64_json")
    mine = IdempotentRequest.of(alice.key_id, KEY["Idempotency-Key"], request=request)
    lock = encode_lock(mine, purchase="lost")
    await execute(gateway.gateway.store, SetValue(SPACE, mine.name, lock, 3600.0))
    async with generous():
        reply = await alice.ask(headers=FRESH)

    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert reply.headers[REPLAYED] == "true"
    assert len(await upstream.bodies()) == 1


@usually_on("sqlite", more=TOPOLOGIES)
async def test_three_gateways_that_repeat_after_a_purge_buy_once(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    async with open_gateway() as a, open_gateway() as b, open_gateway() as c:
        alice = await a.client.with_key()
        clients = [elsewhere(gateway, alice) for gateway in (a, b, c)]
        first = await alice.ask(headers=FRESH)
        for repetition in range(10):
            await purge(alice, first)
            asking = (client.ask(headers=FRESH) for client in clients * 4)
            replies = await asyncio.gather(*asking)
            assert len(await upstream.bodies()) == repetition + 2
            assert len({reply.images[0] for reply in replies}) == 1
            first = replies[0]


# ── draining ────────────────────────────────────────────────────────────────────────────────


@usually_on("sqlite", more=TOPOLOGIES)
async def test_a_key_whose_client_has_left_a_draining_worker_is_charged_once(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        async with open_to_each(processes, alice, workers=2) as by_worker, upstream.hold() as gate:
            (drained, here), (_, there) = by_worker.items()
            first = asyncio.create_task(here.ask(headers=FRESH))
            await gate.until(1)
            os.kill(drained, signal.SIGUSR1)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            asking = asyncio.create_task(there.ask(headers=FRESH))
            gate.open()
            reply = await asking

    assert (reply.status, reply.headers[REPLAYED]) == (200, "true")
    assert len(await upstream.bodies()) == 1
