"""The ledger's writer: what a lost reply, an outage and a full store do to records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from gateway.billing import ledger as ledger_module
from gateway.billing.ledger import INSPECT_EVERY_SECONDS, Ledger, LedgerSettings
from gateway.errors import StoreFull, StoreUnavailable
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import LEDGER_END, WRITER_SECONDS, Append, Sweep
from gateway.store.protocol import Command, Store, Watch
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.store import open_sqlite_store
from tests.conftest import OpenStore
from tests.store.test_sqlite import Clock

HOUR = 3600.0


class FailingStore:
    """A store whose commands or replies are lost while a test says so."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.name, self.kept = store.name, store.kept
        self.error: StoreUnavailable | None = None
        self.loses_replies = False

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if self.error is not None:
            raise self.error
        results = await self._store.execute(commands)
        if self.loses_replies:
            raise StoreUnavailable
        return results

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        return self._store.watch(flight)


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[FailingStore]:
    async with open_store() as opened:
        yield FailingStore(opened)


def hit(number: int = 0) -> Record:
    name = f"req_{number}"
    return Record(
        id=name, request_id=name, time=1e9, key="alice", key_id="key_a", model="m", outcome="hit"
    )


def refusal(number: int = 0, *, error: str = "e", key_id: str = "key_a") -> Record:
    changes = {"error": error, "key_id": key_id, "user": "bob", "status": 400}
    return hit(number).but(outcome="refused", **changes)


async def read(ledger: Ledger) -> list[Record]:
    """All records; the refusals of this minute come last."""
    await ledger.append_refusals(ends_minute=True)
    return [record for _, record in await ledger.read(limit=10_000)]


async def fails(ledger: Ledger) -> None:
    with pytest.raises(StoreUnavailable):
        await ledger.write()


# ── exactly once ────────────────────────────────────────────────────────────────────────────


async def test_what_was_written_without_a_reply_is_not_written_again(store: FailingStore) -> None:
    ledger = Ledger(store)
    written = 0
    for loses_replies in (False, True, True, False, True, False):
        store.loses_replies = loses_replies
        ledger.add(hit(written))
        ledger.add_refusal(refusal(written))
        written += 1
        if loses_replies:
            await fails(ledger)
        else:
            await ledger.write()
    *hits, refused = await read(ledger)
    assert [record.id for record in hits] == [f"req_{i}" for i in range(written)]
    assert (refused.id, refused.count, refused.user) == ("req_0", written, None)


@pytest.mark.parametrize("hours", [0.5, 1.5, 23])
async def test_a_reply_lost_hours_ago_writes_nothing_twice(sqlite_path: Path, hours: float) -> None:
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as opened:
        store = FailingStore(opened)
        ledger = Ledger(store)
        ledger.add(hit(1))
        await ledger.write()
        ledger.add(hit(2))
        ledger.add_refusal(refusal(3))
        store.loses_replies = True
        await fails(ledger)
        clock.now += hours * HOUR
        await execute(opened, Sweep())
        store.loses_replies = False
        ledger.add(hit(4))
        await ledger.write()
        found = [(record.id, record.count) for record in await read(ledger)]
    assert found == [("req_1", None), ("req_2", None), ("req_4", None), ("req_3", 1)]


async def test_a_writer_that_was_idle_for_days_goes_on(sqlite_path: Path) -> None:
    """The store has forgotten it; nothing was sent meanwhile, so nothing is lost."""
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as store:
        ledger = Ledger(store)
        for i in range(4):
            ledger.add(hit(i))
            ledger.add_refusal(refusal(i))
            with capture_logs() as logs:
                await ledger.write()
            assert logs == []
            clock.now += 2 * WRITER_SECONDS
            await execute(store, Sweep())
        *hits, _, _, _, _ = await read(ledger)
    assert [record.id for record in hits] == ["req_0", "req_1", "req_2", "req_3"]


async def test_a_reply_lost_days_ago_loses_the_batch_but_doubles_nothing(
    sqlite_path: Path,
) -> None:
    """The store cannot know any more whether it was written. The loss is logged."""
    clock = Clock()
    async with open_sqlite_store(sqlite_path, clock=clock) as opened:
        store = FailingStore(opened)
        ledger = Ledger(store)
        ledger.add(hit(1))
        await ledger.write()
        for loses_replies in (True, False):  # the first is written, the second is not
            ledger.add(hit(2))
            ledger.add_refusal(refusal(2))
            store.loses_replies = loses_replies
            store.error = None if loses_replies else StoreUnavailable()
            await fails(ledger)
            store.loses_replies, store.error = False, None
            clock.now += 2 * WRITER_SECONDS
            ledger.add(hit(3))
            with capture_logs() as logs:
                await ledger.write()
            assert [(log["event"], log["records"]) for log in logs] == [
                ("ledger_records_dropped", 2)
            ]
        found = [record.id for record in await read(ledger) if record.count is None]
    assert found == ["req_1", "req_2", "req_3", "req_3"]


async def test_two_writes_at_a_time_write_each_record_once(store: FailingStore) -> None:
    """The background job and a worker that closes."""
    ledger = Ledger(store)
    for i in range(1200):
        ledger.add(hit(i))
        ledger.add_refusal(refusal(i, error=f"e{i % 7}"))
    await asyncio.gather(*(ledger.write() for _ in range(5)))
    found = await read(ledger)
    hits = [record.id for record in found if record.outcome == "hit"]
    assert sorted(hits) == sorted(f"req_{i}" for i in range(1200))
    assert sum(record.count or 0 for record in found) == 1200


# ── outages ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("error", [StoreUnavailable, StoreFull])
async def test_what_an_outage_drops_is_bounded_and_logged_once(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch, error: type[StoreUnavailable]
) -> None:
    monkeypatch.setattr(ledger_module, "MAX_PENDING", 100)
    monkeypatch.setattr(ledger_module, "MAX_PENDING_REFUSALS", 50)
    ledger = Ledger(store)
    store.error = error()
    with capture_logs() as logs:
        for i in range(300):
            ledger.add(hit(i))
            ledger.add_refusal(refusal(i, key_id=f"key_{i}"))
            ledger.add_refusal(refusal(i, key_id="key_0"))
            if i % 50 == 0:
                await fails(ledger)
        assert logs == []
        assert ledger.waiting == 3 * 300
        store.error = None
        await ledger.write()
    assert [(log["event"], log["records"]) for log in logs] == [
        ("ledger_records_dropped", 200 + 250)
    ]
    found = await read(ledger)
    assert [r.id for r in found if r.count is None] == [f"req_{i}" for i in range(200, 300)]
    assert sum(record.count or 0 for record in found) == 300 + 50
    assert ledger.waiting == 0


# ── retention ───────────────────────────────────────────────────────────────────────────────


async def test_free_records_may_have_an_eighth_of_maxmemory(redis_url: str) -> None:
    now = 1000.0
    async with open_redis_store(redis_url) as store:
        ledger = Ledger(store, clock=lambda: now)
        with redis.Redis.from_url(redis_url) as client:
            await execute(store, Append((b"r" * 936,) * 500))
            assert await ledger.trim(LEDGER_END) == 0
            await execute(store, Append((b"r" * 936,) * 500))
            client.config_set("maxmemory", 8 * 700 * 1000)
            now += INSPECT_EVERY_SECONDS
            try:
                assert await ledger.trim(LEDGER_END) == 300
            finally:
                client.config_set("maxmemory", 0)


async def test_records_removed_before_they_were_folded_are_logged(
    store: FailingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a minute, with their number. Unfolded ones go only above twice the bound."""
    monkeypatch.setattr(ledger_module, "MIN_UNFOLDED_BYTES", 0)
    now = 1000.0
    ledger = Ledger(store, LedgerSettings(free_records_bytes=100_000), clock=lambda: now)
    removed = []
    with capture_logs() as logs:
        for seconds in (0, 2, 59, 2):
            now += seconds
            await execute(store, Append((b"r" * 936,) * 150))
            removed.append(await ledger.trim(""))
    assert removed == [0, 100, 150, 150]
    assert [(log["event"], log["records"]) for log in logs] == [
        ("ledger_unfolded_records_removed", 100),
        ("ledger_unfolded_records_removed", 300),
    ]
    assert await ledger.trim(LEDGER_END) == 100


# ── what a record needs ─────────────────────────────────────────────────────────────────────


def test_a_stored_record_has_no_fields_that_decoding_adds() -> None:
    assert hit().encode() == (
        b'{"id":"req_0","time":1000000000.0,"key":"alice","key_id":"key_a","model":"m"'
        b',"outcome":"hit"}'
    )
    assert Record.decode(hit().encode()) == hit()


def test_a_record_survives_its_encoding() -> None:
    bought = hit().but(
        id="purchase",
        team="t",
        outcome="bought",
        flags=("presumed", "late"),
        tokens={"text_in": 3},
        cost_micros=-5,
        status=400,
        corrects="another",
        count=0,
    )
    assert Record.decode(bought.encode()) == bought
