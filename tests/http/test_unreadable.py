"""What the store has and no gateway can read: it is left out, logged once, and stops nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from gateway import stored
from gateway.access.key_spaces import KEYS
from gateway.cache.entries import REFUSALS
from gateway.cache.idempotency_keys import SPACE as IDEMPOTENCY
from gateway.cache.idempotency_results import IdempotentRequest
from gateway.cache.image_index import IMAGES
from gateway.cli.main import cli
from gateway.configuration.settings import Settings
from gateway.purchasing.recovery import MAX_ATTEMPTS
from gateway.store.batch import execute
from gateway.store.commands import (
    Append,
    CompareAndSet,
    Get,
    OpenJournals,
    Publish,
    ReadEntry,
    Receive,
    SetValue,
    Slot,
    StoreImages,
    Write,
)
from gateway.store.redis.keys import DEFAULT_PREFIX, Keys
from gateway.wiring.stores import DATABASE, open_store
from tests.gateways import (
    Client,
    InProcess,
    Spent,
    Upstream,
    read_spent,
)
from tests.http.conftest import OpenGateway
from tests.http.test_idempotency import FRESH, fingerprint_of
from tests.http.test_recovery import SLOW, purchases_of
from tests.journals import OpenPurchase, leave_purchase
from tests.redis_masters import open_masters
from tests.stores import usually_on
from tests.test_month import write_config
from tests.waiting import generous

SECRET = "what the client sent"


@pytest.fixture(autouse=True)
def forget_what_was_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_logged", type(stored._logged)())


@pytest.fixture
async def slow_gateway(open_gateway: OpenGateway) -> AsyncIterator[InProcess]:
    """A gateway that recovers no purchase by itself during a test."""
    async with open_gateway(workers=SLOW) as opened:
        yield opened


# ── journals ────────────────────────────────────────────────────────────────────────────────


def edited(edit: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    """Changes the JSON of a payload."""

    def change(payload: bytes) -> bytes:
        data = orjson.loads(payload)
        changed = edit(data)
        return orjson.dumps(data if changed is None else changed)

    return change


def set_image(value: Any) -> Callable[[bytes], bytes]:
    return edited(lambda data: data["images"].update({"0": value}))


UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "no JSON": lambda payload: b"\x00\xff" + SECRET.encode(),
    "empty": lambda payload: b"",
    "cut": lambda payload: payload[: len(payload) // 2],
    "a list": edited(lambda data: [SECRET]),
    "null": edited(lambda data: 5),
    "without reserved": edited(lambda data: {"version": 3, "purchase": SECRET}),
    "reserved of another shape": edited(lambda data: {"reserved": [1, SECRET]}),
    "no estimate": edited(lambda data: data["reserved"].pop("estimate")),
    "an estimate of another shape": edited(lambda data: data["reserved"].update(estimate="much")),
    "a record of another shape": edited(lambda data: data["reserved"].update(record=[SECRET])),
    "a flight of another shape": edited(lambda data: data["reserved"].update(flight="f-1")),
    "a record without an id": edited(lambda data: data["reserved"]["record"].pop("id")),
}
UNREADABLE_RECEIVED: dict[str, Callable[[bytes], bytes]] = {
    **UNREADABLE,
    "an image of another shape": set_image([SECRET]),
    "an image without a digest": set_image({"id": SECRET}),
    "a slot that is no number": edited(lambda data: data.update(images={SECRET: {}})),
    "a charge of another shape": edited(lambda data: data.update(charge=[])),
}
CASES = [
    *[pytest.param(False, damage, id=f"reserved-{name}") for name, damage in UNREADABLE.items()],
    *[
        pytest.param(True, damage, id=f"received-{name}")
        for name, damage in UNREADABLE_RECEIVED.items()
    ],
]


async def damage_journal(
    gateway: InProcess, left: OpenPurchase, damage: Callable[[bytes], bytes]
) -> None:
    async with open_store(gateway.settings) as (store, _):
        found = await execute(store, OpenJournals())
        (journal,) = [one for one in found if one.purchase == left.purchase]
        # Any payload can be replaced by a received one, of which the store knows no more.
        await execute(store, Receive(left.purchase, damage(journal.payload)))


@usually_on("sqlite")
@pytest.mark.parametrize(("received", "damage"), CASES)
async def test_an_unreadable_journal_is_settled_as_it_was_reserved(
    slow_gateway: InProcess, received: bool, damage: Callable[[bytes], bytes]
) -> None:
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=received)
    await damage_journal(slow_gateway, left, damage)

    with capture_logs() as log:
        assert await slow_gateway.recover_expired() == 1
        assert await slow_gateway.recover_expired() == 0

    async with open_store(slow_gateway.settings) as (store, _):
        assert await execute(store, OpenJournals()) == []
    (record,) = purchases_of(await slow_gateway.ledger())
    assert (record.id, record.key_id) == (left.purchase, alice.key_id)
    assert (record.outcome, record.flags) == ("failed", ("presumed", "unreadable"))
    assert record.cost_micros == left.estimate.usd_micros
    assert record.images == left.estimate.images
    assert sum(record.tokens.values()) == left.estimate.tokens
    assert record.costs == {"estimated": record.cost_micros}
    spent = await read_spent(slow_gateway.settings, alice.key_id)
    assert spent == Spent(left.estimate.usd_micros, left.estimate.images, 0, 0)
    (line,) = [one for one in log if one["event"] == "journal_unreadable"]
    assert (line["purchase"], line["worker"]) == (left.purchase, "a-dead-worker")
    assert not any("exc_info" in one for one in log)
    assert SECRET not in repr(log)


async def test_a_purchase_whose_fault_repeats_is_settled_as_it_was_reserved(
    slow_gateway: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault may pass, so it is tried some times; others are finished meanwhile."""
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=True)
    other = await leave_purchase(slow_gateway.settings, alice.secret, "a pond", received=True)
    recovery = slow_gateway.gateway.recovery
    finish = recovery._finish

    async def fail(journal: Any, *, attempt: str) -> None:
        if journal.purchase == left.purchase:
            raise RuntimeError("of another kind")
        await finish(journal, attempt=attempt)

    monkeypatch.setattr(recovery, "_finish", fail)
    with capture_logs() as log:
        closed = [await recovery.recover("a-dead-worker") for _ in range(MAX_ATTEMPTS + 1)]

    assert closed == [1, *[0] * (MAX_ATTEMPTS - 2), 1, 0]
    records = {record.id: record for record in purchases_of(await slow_gateway.ledger())}
    assert records[left.purchase].flags == ("presumed", "unfinished")
    assert records[left.purchase].cost_micros == left.estimate.usd_micros
    assert records[other.purchase].outcome == "bought"
    assert sum("exc_info" in line for line in log) == 1
    assert (await read_spent(slow_gateway.settings, alice.key_id)).reserved_micros == 0


async def test_followers_of_an_unreadable_purchase_need_not_wait_for_its_lease(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    """If the journal still says which flight it was."""
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=True)
    await damage_journal(slow_gateway, left, set_image([SECRET]))
    following = asyncio.create_task(alice.ask("an otter"))
    await slow_gateway.until_leased(1)
    await slow_gateway.recover_expired()
    async with generous():
        reply = await following

    assert reply.status == 200
    assert len(await upstream.bodies()) == 1


async def test_a_received_purchase_whose_bytes_are_gone_is_settled_and_bought_anew(
    slow_gateway: InProcess, upstream: Upstream
) -> None:
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(slow_gateway.settings, alice.secret, "an otter", received=True)
    async with open_store(slow_gateway.settings) as (store, blobs):
        (journal,) = await execute(store, OpenJournals())
        (image,) = json.loads(journal.payload)["images"].values()
        await blobs.delete(image["digest"])

    assert await slow_gateway.recover_expired() == 1

    (record,) = purchases_of(await slow_gateway.ledger())
    assert record.cost_micros == left.charge.usd_micros
    again = await alice.ask("an otter")
    assert (again.status, again.cache_status) == (200, "fwd=miss; stored")
    assert len(await upstream.bodies()) == 1


# ── the commands ────────────────────────────────────────────────────────────────────────────


@usually_on("redis")
async def test_repair_lists_and_closes_the_unreadable_journals_of_dead_workers(
    tmp_path: Path, slow_gateway: InProcess
) -> None:
    settings = slow_gateway.settings
    alice = await slow_gateway.client.with_key()
    left = await leave_purchase(settings, alice.secret, "an otter", received=False)
    alive = await leave_purchase(
        settings, alice.secret, "a pond", received=False, worker="a-living-worker"
    )
    readable = await leave_purchase(settings, alice.secret, "a lake", received=False)
    async with open_store(settings) as (store, _):
        for purchase in (left.purchase, alive.purchase):
            await execute(store, Receive(purchase, SECRET.encode()))
    command = partial(asyncio.to_thread, run_command, write_config(tmp_path, settings))
    doctor = await command("doctor", "--format", "json")
    dry = await command("ledger", "repair", "--dry-run", "--format", "json")
    reserved = (await read_spent(settings, alice.key_id)).reserved_micros
    make_silent(settings, "a-dead-worker")
    closed = await command("ledger", "repair", "--format", "json")
    nothing = await command("ledger", "repair", "--format", "csv")

    assert {row["result"] for row in json.loads(dry.stdout)} == {"worker is alive"}
    found = {row["check"]: row for row in json.loads(doctor.stdout)}["open purchases"]
    assert (found["level"], "gateway ledger repair" in found["finding"]) == ("warning", True)
    assert "2 open purchases" in found["finding"]
    rows = {row["purchase"]: row for row in json.loads(closed.stdout)}
    assert rows.keys() == {left.purchase, alive.purchase}
    assert rows[left.purchase] == {
        "purchase": left.purchase,
        "worker": "a-dead-worker",
        "state": "received",
        "age_seconds": rows[left.purchase]["age_seconds"],
        "key_id": alice.key_id,
        "images": 1,
        "tokens": left.estimate.tokens,
        "usd": f"{left.estimate.usd_micros / 1e6:.6f}",
        "result": "closed",
    }
    assert rows[alive.purchase]["result"] == "worker is alive"
    assert reserved == sum(each.estimate.usd_micros for each in (left, alive, readable))
    for result in (dry, closed, nothing):
        assert result.exit_code == 0
        assert result.stderr.startswith("Store: ")
        assert SECRET not in result.stdout + result.stderr
    assert left.purchase not in nothing.stdout


def run_command(config: Path, *words: str) -> Result:
    """What a command of an operator prints."""
    with capture_logs():  # a process would log to another stream
        return CliRunner().invoke(cli, [*words, "--config", str(config)])


def make_silent(settings: Settings, worker: str) -> None:
    """Its last heartbeat was in 1970."""
    if settings.store.redis_url is not None:
        with open_masters(settings.store.redis_url.get_secret_value()) as masters:
            for master in masters:
                for key in master.keys(f"{Keys(DEFAULT_PREFIX).books}workers"):
                    master.zadd(key, {worker: 1})
        return
    with sqlite3.connect(settings.store.data_dir / DATABASE) as database:
        database.execute("UPDATE workers SET heartbeat_at = 1 WHERE worker = ?", (worker,))
    database.close()


# ── everything else ─────────────────────────────────────────────────────────────────────────


GARBAGE = [b"\x00\xff" + SECRET.encode(), b"[]", b"{}", b"null", b'"text"', b'{"images": 5}']


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_unreadable_record_is_left_out_of_the_ledger(
    gateway: InProcess, alice: Client, garbage: bytes
) -> None:
    await alice.ask("before")
    await gateway.ledger()
    await execute(gateway.gateway.store, Append((garbage,) * 3))
    await alice.ask("after")

    assert [record.outcome for record in await gateway.ledger()] == ["bought", "bought"]
    pages, after = [], ""
    while page := await gateway.gateway.ledger.read(after=after, limit=1):
        pages += page
        after = page[-1][0]
    assert len(pages) == 2


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_unreadable_slot_is_an_image_that_is_lost(
    gateway: InProcess, alice: Client, upstream: Upstream, garbage: bytes
) -> None:
    first = await alice.ask(n=2)
    fingerprint = fingerprint_of(first)
    store = gateway.gateway.store
    entry = await execute(store, ReadEntry(fingerprint))
    bad = Slot(entry.slots[0].image_id, 0.0, garbage)
    await alice.admin("POST", "/admin/cache/purge", {"fingerprint": fingerprint})
    slots = {0: bad, 1: Slot(entry.slots[1].image_id, 0.0, entry.slots[1].data)}
    await execute(store, StoreImages(fingerprint, "", slots, 3600.0, 3600.0, displaces=True))

    again = await alice.ask(n=2)
    hit = await alice.ask(n=2)

    assert (again.status, again.images[1]) == (200, first.images[1])
    assert again.cache_status == "fwd=partial; stored"
    assert hit.images == again.images
    assert len(await upstream.bodies()) == 2
    purged = await alice.admin("POST", "/admin/cache/purge", {"model": "gpt-image-2"})
    assert purged.status == 200


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_unreadable_refusal_idempotency_result_image_or_event_stops_nothing(
    gateway: InProcess, alice: Client, upstream: Upstream, garbage: bytes
) -> None:
    store = gateway.gateway.store
    first = await alice.ask(headers=FRESH)
    image = first.headers["x-gateway-image-ids"]
    name = IdempotentRequest.of(alice.key_id, "order-17", request=()).name
    await execute(store, SetValue(REFUSALS, fingerprint_of(first), garbage, 60.0))
    await execute(store, SetValue(IDEMPOTENCY, name, garbage, 60.0))
    await execute(store, SetValue(IMAGES, image, garbage, 60.0))
    await execute(store, Publish("a-flight", "1", garbage, 60.0))

    again = await alice.ask(headers=FRESH)
    repeated = await alice.ask(headers=FRESH)

    assert (again.status, again.cache_status) == (200, "fwd=request; stored")
    assert repeated.images == again.images
    assert await gateway.gateway.cache.image_index.find(image) is None
    assert len(await upstream.bodies()) == 2


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_unreadable_key_is_unknown_and_no_other_key_notices(
    gateway: InProcess, alice: Client, garbage: bytes
) -> None:
    bob = await gateway.client.with_key("bob")
    store = gateway.gateway.store
    record = await execute(store, Get(KEYS, bob.key_id))
    await execute(store, CompareAndSet((Write(KEYS, bob.key_id, garbage, expected=record),)))

    refused = [await bob.ask() for _ in range(2)]
    listed = await gateway.client.admin("GET", "/admin/keys")

    assert [reply.status for reply in refused] == [401, 401]
    assert (await alice.ask()).status == 200
    assert listed.status == 200
    assert b"alice" in listed.body
    assert b"bob" not in listed.body


async def test_each_unreadable_value_is_logged_once_without_its_content(
    gateway: InProcess, alice: Client
) -> None:
    await execute(gateway.gateway.store, Append((SECRET.encode(), b"[]")))
    with capture_logs() as log:
        await gateway.ledger()
        await gateway.ledger()

    assert [line["event"] for line in log] == ["record_unreadable"] * 2
    assert SECRET not in repr(log)
