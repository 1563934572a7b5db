"""Kept reads of both stores: found without the store, and forgotten when anyone writes."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from gateway.store.batch import execute, execute_kept
from gateway.store.commands import (
    CompareAndSet,
    EmptySlots,
    Entry,
    Get,
    GetValue,
    ReadEntry,
    ScanRecords,
    SetValue,
    Slot,
    StoreImages,
    Write,
)
from gateway.store.kept_reads import ReadMemory
from gateway.store.protocol import Command, Store
from gateway.store.redis import tracking
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import connect, create_sqlite_schema
from gateway.store.sqlite.kept_reads import SqliteKeptReads
from gateway.store.sqlite.store import open_sqlite_store
from tests.conftest import OpenStore
from tests.waiting import eventually, generous

KEY = Get("keys", "alice")
VALUE = GetValue("takedowns", "version")
ENTRY = ReadEntry("f" * 64)
LIST = ScanRecords("upstream_switches")


def change(value: bytes, *, before: bytes | None, space: str = "keys") -> CompareAndSet:
    return CompareAndSet((Write(space, "alice", value, expected=before),))


def store_image(image_id: str) -> StoreImages:
    return StoreImages(
        ENTRY.fingerprint,
        "flight",
        slots={0: Slot(image_id, 0.0, b"data")},
        ttl_seconds=60.0,
        stale_if_error_seconds=60.0,
        displaces=False,
    )


async def kept(store: Store, *commands: Command[Any]) -> list[Any]:
    """Reads, and waits until the store keeps the results."""
    await store.execute(commands)

    def look() -> Sequence[Any] | None:
        store.kept.fill(commands)
        return store.kept.find(commands)

    return list(await eventually(look))


async def test_every_kind_of_write_of_another_process_is_seen(open_store: OpenStore) -> None:
    async with open_store() as here, open_store() as there:
        await execute(there, change(b"one", before=None))
        await execute(there, change(b"two", before=None, space=LIST.space))
        await execute(there, SetValue(VALUE.space, VALUE.name, b"1", None))
        await execute(there, store_image("first"))
        key, value, page, entry = await kept(here, KEY, VALUE, LIST, ENTRY)
        assert (key, value, page.records) == (b"one", b"1", {"alice": b"two"})
        assert entry.slots[0].image_id == "first"
        for write, read in (
            (change(b"three", before=b"one"), KEY),
            (SetValue(VALUE.space, VALUE.name, b"2", None), VALUE),
            (change(b"four", before=b"two", space=LIST.space), LIST),
            (EmptySlots(ENTRY.fingerprint, {0: "first"}), ENTRY),
            (store_image("second"), ENTRY),
        ):
            await kept(here, read)
            await execute(there, write)
            await eventually(lambda read=read: here.kept.find([read]) is None)
        assert await kept(here, KEY) == [b"three"]
        assert (await execute_kept(here, LIST)).records == {"alice": b"four"}
        (entry,) = await kept(here, ENTRY)
        assert entry.slots[0].image_id == "second"


async def test_a_write_of_this_process_is_seen_at_once(open_store: OpenStore) -> None:
    async with open_store() as store:
        before = None
        for value in (b"1", b"2", b"3", b"4", b"5"):
            await kept(store, KEY)
            await execute(store, change(value, before=before))
            assert store.kept.find([KEY]) in (None, [value])
            before = value


async def test_a_watch_tells_of_a_change_that_another_process_made(open_store: OpenStore) -> None:
    async with open_store() as here, open_store() as there:
        changed = asyncio.Event()
        here.kept.watch(VALUE, changed.set)
        await kept(here, VALUE)
        changed.clear()
        await execute(there, SetValue(VALUE.space, VALUE.name, b"1", None))
        async with generous():
            await changed.wait()
        assert await execute_kept(here, VALUE) == b"1"


async def test_a_watch_tells_of_a_write_that_nothing_was_kept_of_yet(open_store: OpenStore) -> None:
    """Between a read and the one that is kept: Redis tells only of what was read to be kept."""
    async with open_store() as here, open_store() as there:
        changed = asyncio.Event()
        here.kept.watch(VALUE, changed.set)
        await kept(here, KEY)
        assert await execute(here, VALUE) is None
        await execute(there, SetValue(VALUE.space, VALUE.name, b"1", None))
        changed.clear()
        here.kept.fill([VALUE])
        async with generous():
            await changed.wait()
        assert await execute_kept(here, VALUE) == b"1"


async def test_an_absent_value_is_kept_until_it_is_written(open_store: OpenStore) -> None:
    async with open_store() as here, open_store() as there:
        assert (await kept(here, KEY)) == [None]
        (entry,) = await kept(here, ENTRY)
        assert not entry.slots
        await execute(there, change(b"one", before=None))
        await execute(there, store_image("first"))
        await eventually(lambda: here.kept.find([KEY]) is None)
        await eventually(lambda: here.kept.find([ENTRY]) is None)


async def test_reads_that_cross_writes_never_leave_an_old_result(open_store: OpenStore) -> None:
    """Another process counts up, while this one reads as fast as it can."""
    async with open_store() as here, open_store() as there:
        before, chance = None, random.Random(1)
        for number in range(150):
            value = b"%d" % number
            here.kept.fill([KEY])
            write = asyncio.ensure_future(execute(there, change(value, before=before)))
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
                here.kept.fill([KEY])
            assert await write is None
            before = value
            await eventually(lambda value=value: here.kept.find([KEY]) in (None, [value]))
        assert await kept(here, KEY) == [before]


# ── SQLite ──────────────────────────────────────────────────────────────────────────────────


class PolledWhenRead(deque[str | None]):
    """The names that the thread has found. It gets its turn when they are first looked at."""

    def __init__(self, poll: Callable[[], None]) -> None:
        super().__init__()
        self._poll: Callable[[], None] | None = poll

    def __bool__(self) -> bool:
        has_any = len(self) > 0
        if self._poll is not None:
            poll, self._poll = self._poll, None
            poll()
        return has_any


@pytest.mark.parametrize("late_seconds", [0.0, 10.0])
async def test_a_late_poll_while_a_result_is_found_makes_nothing_old_trusted(
    tmp_path: Path, late_seconds: float
) -> None:
    path = tmp_path / "store.db"
    create_sqlite_schema(path)
    async with open_sqlite_store(path) as store:
        await execute(store, change(b"old", before=None))
        memory, db = ReadMemory(), connect(path)
        no_reader: Any = None
        reads = SqliteKeptReads(
            memory, no_reader, clocks=lambda: (0.0, 0.0), start_polling=lambda: None
        )

        def poll(started_at: float) -> None:
            reads.poll(db, started_at=started_at, has_changed=True)

        poll(time.monotonic() - late_seconds)
        fill = memory.begin(KEY, reads)
        assert fill is not None
        memory.end(fill, b"old")
        await execute(store, change(b"new", before=b"old"))
        reads._written = PolledWhenRead(lambda: poll(time.monotonic()))
        # The poll before this one says how old the result may be.
        assert reads.find([KEY]) == (None if late_seconds else [b"old"])
        assert reads.find([KEY]) is None
        db.close()


# ── Redis ───────────────────────────────────────────────────────────────────────────────────


async def test_a_killed_connection_is_noticed_and_nothing_kept_survives(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only because no ping is answered any more."""
    monkeypatch.setattr(tracking, "TRUSTED_SECONDS", 3600.0)
    async with (
        open_redis_store(redis_url) as here,
        open_redis_store(redis_url) as there,
        redis.asyncio.Redis.from_url(redis_url) as admin,
    ):
        before: bytes | None = None
        for number in range(10):
            await kept(here, KEY)
            await kill_tracking(admin)
            value = b"%d" % number
            assert await execute(there, change(value, before=before)) is None
            before = value
            expected = (None, [value])
            await eventually(lambda expected=expected: here.kept.find([KEY]) in expected)


@pytest.mark.timed
async def test_a_silent_connection_is_trusted_for_two_seconds(redis_url: str) -> None:
    async with (
        open_redis_store(redis_url) as here,
        redis.asyncio.Redis.from_url(redis_url) as admin,
    ):
        await kept(here, KEY)
        await admin.execute_command("CLIENT", "PAUSE", 6000, "ALL")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await eventually(lambda: here.kept.find([KEY]) is None)
        assert 0.9 < loop.time() - began < 3


async def test_a_server_without_tracking_keeps_nothing_and_everything_works(
    redis_url: str,
) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as admin:
        rule = "reset on >right ~igw:* &igw:events:* +@all -client|tracking"
        await admin.execute_command("ACL", "SETUSER", "plain", *rule.split())
        async with open_redis_store(redis_url.replace("//", "//plain:right@")) as store:
            await execute(store, change(b"one", before=None))
            assert "client|tracking" in str(await store.kept.find_refusal())
            for _ in range(5):
                assert await execute_kept(store, KEY) == b"one"
                await asyncio.sleep(0.05)
                assert store.kept.find([KEY]) is None
            before = (await admin.info("stats"))["total_connections_received"]
            await asyncio.sleep(0.5)
            after = (await admin.info("stats"))["total_connections_received"]
            assert after == before  # the next attempt is a minute away


async def test_a_flushed_server_is_forgotten(redis_url: str) -> None:
    async with (
        open_redis_store(redis_url) as here,
        redis.asyncio.Redis.from_url(redis_url) as admin,
    ):
        await execute(here, change(b"one", before=None))
        assert await kept(here, KEY) == [b"one"]
        assert await here.kept.find_refusal() is None
        await admin.flushall()
        await eventually(lambda: here.kept.find([KEY]) is None)


async def kill_tracking(admin: Any) -> None:
    """Kills the connections that track."""
    for client in await admin.client_list():
        if "t" in client["flags"]:
            await admin.client_kill_filter(_id=client["id"])


@pytest.mark.parametrize("value", [Entry(0.0, {})])
def test_an_empty_entry_is_no_error(value: Entry) -> None:
    assert not value.slots
