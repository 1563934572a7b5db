"""The ledger over HTTP: what keys can make it keep, and for how long."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
import redis

from gateway import maintenance
from gateway.billing.totals import Totals
from gateway.errors import StoreFull
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import MAX_REFUSAL_REASONS, Append, SetValue
from gateway.wiring.stores import DATABASE
from tests.gateways import InProcess, Upstream, make_settings, run_gateway
from tests.http.conftest import OpenGateway
from tests.redis_masters import open_masters
from tests.waiting import eventually

BOOKS = "igw:{books}:"
NO_REQUESTS = {"requests_per_minute": 0}


@pytest.fixture(autouse=True)
def quick_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jobs that remove and append records run every second."""
    monkeypatch.setattr(maintenance, "TRIM_LEDGER_SECONDS", 1.0)
    monkeypatch.setattr(maintenance, "REFUSALS_SECONDS", 1.0)


async def in_store(gateway: InProcess) -> list[Record]:
    """The records that are in the store now, without those that wait."""
    return [record for _, record in await gateway.gateway.ledger.read(limit=100_000)]


def counted_in_store(gateway: InProcess) -> int:
    """The refusals that the store has counted in this minute, without the ledger's records."""
    url = gateway.settings.store.redis_url
    if url is not None:
        with open_masters(url.get_secret_value()) as masters:
            counted = [
                master.hgetall(key)
                for master in masters
                for key in master.keys(f"{BOOKS}refusals")  # other nodes would redirect
            ]
        return sum(
            int(value)
            for node in counted
            for name, value in node.items()
            if name.startswith(b"count ")
        )
    db = sqlite3.connect(gateway.settings.store.data_dir / DATABASE)
    try:
        return int(db.execute("SELECT coalesce(sum(count), 0) FROM refusals").fetchone()[0])
    finally:
        db.close()


# ── refusals ────────────────────────────────────────────────────────────────────────────────


async def test_refusals_of_all_gateways_share_one_record_a_minute(
    open_gateway: OpenGateway,
) -> None:
    """With the first request's id, the count, and nothing that the client chose."""
    async with open_gateway() as here, open_gateway() as there:
        mallory = await here.client.with_key("mallory", limits=NO_REQUESTS)
        elsewhere = mallory.__class__(there.client.url, there.client.session, mallory.secret)
        first = await mallory.ask(user="bob")
        await here.gateway.ledger.write()
        replies = await asyncio.gather(*(elsewhere.ask(f"{i}", user="bob") for i in range(20)))
        await asyncio.gather(*(mallory.ask(f"{i}", user="bob") for i in range(20)))
        await here.gateway.ledger.write()
        await there.gateway.ledger.write()
        records = await there.ledger() + await here.ledger()

    assert {reply.status for reply in (first, *replies)} == {429}
    (record, same) = records
    assert record == same
    assert record.id == record.request_id == first.headers["x-request-id"]
    assert (record.outcome, record.status, record.count) == ("refused", 429, 41)
    assert (record.user, record.n, record.size, record.fingerprint) == (None,) * 4


async def test_the_store_counts_refusals_every_second(open_gateway: OpenGateway) -> None:
    """A gateway that is killed afterwards loses none: another one appends their record."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", limits=NO_REQUESTS)
        for _ in range(7):
            await alice.ask()
        # By the background job: a minute may end meanwhile.
        await eventually(lambda: _has_all(there, 7))
        (*_, last) = await there.ledger()
    assert last.key == "alice"


async def _has_all(gateway: InProcess, count: int) -> bool:
    appended = sum(record.count or 0 for record in await in_store(gateway))
    return appended + await asyncio.to_thread(counted_in_store, gateway) == count


async def test_a_minutes_record_is_appended_without_further_requests(
    gateway: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the background job of one worker, once the minute is over."""
    alice = await gateway.client.with_key("alice", limits=NO_REQUESTS)
    for _ in range(3):
        await alice.ask()
    await gateway.gateway.ledger.write()
    ends = gateway.gateway.ledger.append_refusals

    async def end_minute(**_: bool) -> None:
        await ends(ends_minute=True)

    monkeypatch.setattr(gateway.gateway.ledger, "append_refusals", end_minute)
    records = await eventually(lambda: in_store(gateway))
    assert [(record.key, record.count) for record in records] == [("alice", 3)]


async def test_a_client_cannot_multiply_reasons(gateway: InProcess) -> None:
    """Models that it invents, errors that it provokes, and any number of each."""
    alice = await gateway.client.with_key("alice")
    for i in range(30):
        await alice.ask(model=f"invented-{i}")
        await alice.ask(**{f"invented_{i}": i})
        await alice.ask(size=f"{i}x{i}", quality=f"q{i}")
        await alice.ask(n=-i)
        await alice.ask(headers={"X-Gateway-Variation": f"v{i}"})
        await alice.ask(headers={"Cache-Control": "only-if-cached"}, prompt=f"{i}")
        await alice.send("POST", "/v1/images/generations", data=f"{{{i}")
    records = await gateway.ledger()
    assert sum(record.count or 0 for record in records) == 7 * 30
    # Of at most two minutes.
    assert len(records) <= 2 * (MAX_REFUSAL_REASONS + 1)


# ── retention ───────────────────────────────────────────────────────────────────────────────


async def test_hits_reach_their_bound_in_bytes_and_purchases_stay(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway(billing={"free_records_bytes": "32KiB"}) as gateway:
        alice = await gateway.client.with_key("alice")
        refused = await gateway.client.with_key("mallory", limits=NO_REQUESTS)
        for i in range(5):
            await alice.ask(f"bought {i}")
        for _ in range(10):
            await asyncio.gather(*(alice.ask(f"bought {i % 5}") for i in range(30)))
            await refused.ask()
        await gateway.gateway.ledger.write()
        await eventually(lambda: _is_below(gateway, 32 << 10))
        outcomes = Counter(record.outcome for record in await gateway.ledger())
    assert outcomes["bought"] == 5
    assert 30 < outcomes["hit"] < 100


async def _is_below(gateway: InProcess, size: int) -> bool:
    free = [record for record in await in_store(gateway) if not record.cost_micros]
    return sum(len(record.encode()) for record in free) < size


async def test_records_go_after_their_time(open_gateway: OpenGateway) -> None:
    async with open_gateway(billing={"keep_free_records": "1s"}) as gateway:
        alice = await gateway.client.with_key("alice")
        await alice.ask()
        await alice.ask()
        await gateway.gateway.ledger.write()
        await eventually(lambda: _has(gateway, ["bought"]))
    async with open_gateway(billing={"keep_records": "1s"}) as gateway:
        await eventually(lambda: _has(gateway, []))


async def _has(gateway: InProcess, outcomes: list[str]) -> bool:
    return [record.outcome for record in await in_store(gateway)] == outcomes


async def test_a_failed_purchase_without_a_charge_is_a_free_record(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway(billing={"keep_free_records": "1s"}) as gateway:
        alice = await gateway.client.with_key("alice")
        failed = await alice.ask("[[sim:status=400]] an otter")
        await alice.ask("[[sim:no-usage]] an otter")
        assert failed.status == 400
        await eventually(lambda: _has(gateway, ["bought"]))


async def test_the_background_job_trims_a_full_redis(
    tmp_path: Path, upstream: Upstream, redis_url: str
) -> None:
    """Although it cannot take its turn there. What waited meanwhile is written once."""
    billing = {"free_records_bytes": "1KiB"}
    settings = make_settings(tmp_path, upstream.base_url, redis_url, billing=billing)
    async with run_gateway(settings) as gateway:
        store, totals = gateway.gateway.store, gateway.gateway.totals
        # Nothing is trimmed while another worker has the turn.
        await execute(store, SetValue("turns", "ledger_retention", b"another", 600.0))
        alice = await gateway.client.with_key("alice")
        first = await alice.ask()
        with redis.Redis.from_url(redis_url) as client:
            await execute(store, Append((_hit("old").encode(),) * 3000))
            (*_, (last, _)) = await gateway.gateway.ledger.read(limit=100_000)
            await eventually(lambda: _is_folded(totals, last))
            assert int(client.hget(f"{BOOKS}ledger", "free")) > 100_000
            client.config_set("maxmemory", 1)
            client.delete("igw:value:turns:ledger_retention")
            try:
                await eventually(lambda: int(client.hget(f"{BOOKS}ledger", "free")) <= 1024)
                for i in range(3):
                    gateway.gateway.ledger.add(_hit(f"req_{i}"))
                with pytest.raises(StoreFull):
                    await gateway.gateway.ledger.write()
            finally:
                client.config_set("maxmemory", 0)
        await gateway.gateway.ledger.write()
        found = [record.id for record in await in_store(gateway)]
    assert first.status == 200
    (_bought, *free) = [name for name in found if name != "old"]
    assert free == ["req_0", "req_1", "req_2"]


async def _is_folded(totals: Totals, position: str) -> bool:
    return await totals.folded_to() >= position


def _hit(name: str) -> Record:
    return Record(id=name, request_id=name, time=1e9, key="alice", key_id="k", outcome="hit")


@pytest.mark.timed
async def test_a_key_over_its_rate_fills_nothing(gateway: InProcess) -> None:
    """A minute's thousands of refusals are one record; then the next minute's."""
    mallory = await gateway.client.with_key("mallory", limits=NO_REQUESTS)
    for _ in range(40):
        await asyncio.gather(*(mallory.ask() for _ in range(50)))
    records = await gateway.ledger()
    assert sum(record.count or 0 for record in records) == 2000
    assert len(records) <= 3
