"""What only the embedded store has: its file, its processes, its clock, its time-outs."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import multiprocessing
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

import gateway.store
from gateway.errors import StoreFull, StoreUnavailable
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import (
    CLOSED_JOURNAL_SECONDS,
    WINDOW_GRACE_SECONDS,
    Consumption,
    Counter,
    Slot,
    Write,
)
from gateway.store.handshake import SCHEMA_VERSION, SchemaMismatch, StoreMissing
from gateway.store.protocol import Command, Store
from gateway.store.sqlite.connection import create_sqlite_schema
from gateway.store.sqlite.store import open_sqlite_store

PROCESSES = 4


@dataclass
class Clock:
    """A clock that a test turns by hand."""

    now: float = 1_767_225_540.0
    """A minute before the year 2026 (UTC)."""

    def __call__(self) -> float:
        return self.now


def write(name: str, value: bytes = b"v") -> commands.CompareAndSet:
    return commands.CompareAndSet((Write("s", name, value, None),))


class TestLayout:
    def test_the_layout_is_made_once_with_a_private_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "data" / "store.sqlite3"
        for _ in range(2):
            create_sqlite_schema(path)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        db.close()

    def test_making_the_layout_leaves_no_thread_behind(self, tmp_path: Path) -> None:
        before = threading.active_count()
        create_sqlite_schema(tmp_path / "store.sqlite3")
        assert threading.active_count() == before

    async def test_making_the_layout_again_keeps_what_is_stored(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            await execute(store, write("a"))
        await asyncio.to_thread(create_sqlite_schema, sqlite_path)
        async with open_sqlite_store(sqlite_path) as store:
            assert await execute(store, commands.Get("s", "a")) == b"v"

    async def test_another_layout_version_is_refused(self, sqlite_path: Path) -> None:
        with sqlite3.connect(sqlite_path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        message = f"The store at {sqlite_path} has layout version 99; .* reads version 2"
        with pytest.raises(SchemaMismatch, match=message):
            await asyncio.to_thread(create_sqlite_schema, sqlite_path)
        with pytest.raises(SchemaMismatch, match=message):
            async with open_sqlite_store(sqlite_path):
                pass

    async def test_an_absent_store_is_not_created_by_opening_it(self, tmp_path: Path) -> None:
        path = tmp_path / "absent.sqlite3"
        with pytest.raises(StoreMissing, match=f"There is no store at {path}"):
            async with open_sqlite_store(path):
                pass
        assert not path.exists()

    async def test_a_file_that_is_no_database_is_refused_and_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite3"
        path.write_bytes(b"this is not a database" * 100)
        with pytest.raises(StoreUnavailable, match="cannot be used: file is not a database"):
            await asyncio.to_thread(create_sqlite_schema, path)
        with pytest.raises(StoreUnavailable, match="cannot be used: file is not a database"):
            async with open_sqlite_store(path):
                pass
        gc.collect()  # since Python 3.13 a connection that was left open warns here, which fails

    async def test_its_name_says_where_it_is(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            assert store.name == f"embedded store (SQLite) at {sqlite_path}"


def test_no_statement_numbers_its_parameters() -> None:
    """Python 3.12.0 to 3.12.3 warn of `?1` as if it were a name (CPython issue 117995)."""
    folder = Path(gateway.store.__file__).parent
    numbered = [path.name for path in folder.glob("*.py") if re.search(r"\?\d", path.read_text())]
    assert numbered == []


class TestUpgrade:
    """A database that an older gateway left behind."""

    @pytest.fixture
    def old_path(self, tmp_path: Path) -> Path:
        path = tmp_path / "store.sqlite3"
        script = Path(__file__).with_name("layout-1.sql").read_text("utf-8")
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(script)
        return path

    async def test_it_is_not_opened_before_it_is_upgraded(self, old_path: Path) -> None:
        with pytest.raises(SchemaMismatch, match=r"layout version 1; .* reads version 2"):
            async with open_sqlite_store(old_path):
                pass

    async def test_it_keeps_what_it_has_and_can_do_what_is_new(self, old_path: Path) -> None:
        for _ in range(2):
            await asyncio.to_thread(create_sqlite_schema, old_path)
        async with open_sqlite_store(old_path) as store:
            assert await execute(store, commands.Get("keys", "k")) == b"record"
            assert (await execute(store, commands.ReadEntry("f"))).slots[0].data == b"data"
            assert [j.purchase for j in await execute(store, commands.OpenJournals())] == ["open"]
            records = await execute(store, commands.ReadLedger())
            assert [record for _, record in records] == [b"bought", b"hit"]
            await store.execute(
                [commands.SetValue("s", "n", b"v", 60), commands.AddToSet("s", "l", ("a",), 60)]
            )
            assert await execute(store, commands.Track("d", 10, 60, 100)) == []
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(1, 10)

    async def test_it_has_then_the_same_tables_as_a_new_one(
        self, old_path: Path, sqlite_path: Path
    ) -> None:
        await asyncio.to_thread(create_sqlite_schema, old_path)
        assert _tables(old_path) == _tables(sqlite_path)

    async def test_an_upgrade_that_fails_changes_nothing(self, old_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(old_path)) as db:
            db.execute("CREATE TABLE shelf_total (in_the_way)")
        before = _tables(old_path)
        with pytest.raises(StoreUnavailable, match="shelf_total already exists"):
            await asyncio.to_thread(create_sqlite_schema, old_path)
        assert _tables(old_path) == before


def _tables(path: Path) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()
        return [version, *db.execute("SELECT name, sql FROM sqlite_master ORDER BY name")]


class TestFailures:
    async def test_a_batch_that_fails_hurts_no_other(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            batches: list[list[Command[Any]]] = [[write(f"n{i}")] for i in range(10)]
            batches[4].append(commands.CompareAndSet((Write("s", "bad", object(), None),)))  # type: ignore[arg-type]
            results = await asyncio.gather(*map(store.execute, batches), return_exceptions=True)
            assert [r for i, r in enumerate(results) if i != 4] == [[None]] * 9
            assert isinstance(results[4], Exception)
            assert sorted(await execute(store, commands.ReadRecords("s"))) == sorted(
                f"n{i}" for i in range(10) if i != 4
            )

    @pytest.mark.timed
    async def test_nobody_waits_longer_than_two_seconds(self, sqlite_path: Path) -> None:
        lock = sqlite_path.with_name(f"{sqlite_path.name}-lock")
        async with open_sqlite_store(sqlite_path) as store:
            with lock.open("w") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                started = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await execute(store, write("late"))
                assert 1.8 < time.monotonic() - started < 2.6
                assert await execute(store, commands.Get("s", "late")) is None

            assert await execute(store, write("after")) is None

    async def test_a_broken_database_is_an_unavailable_store(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            with sqlite3.connect(sqlite_path) as db:
                db.execute("DROP TABLE records")
            db.close()
            with pytest.raises(StoreUnavailable) as caught:
                await execute(store, write("a"))
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            with pytest.raises(StoreUnavailable):
                await execute(store, commands.Get("s", "a"))

    async def test_a_full_disk_is_told_from_a_broken_one_and_can_be_emptied(
        self, sqlite_path: Path
    ) -> None:
        """SQLite's own limit of pages fails as a full disk does."""
        async with open_sqlite_store(sqlite_path) as store:
            await store.execute([write("a", b"x" * 100_000), commands.Track("d", 10, 60, 100)])
            writer = store._writer._db  # type: ignore[attr-defined]
            writer.execute("PRAGMA max_page_count = 1")  # that is: as many as there are
            full = [execute(store, write(f"b{i}", b"x" * 200_000)) for i in range(3)]
            for outcome in await asyncio.gather(*full, return_exceptions=True):
                assert isinstance(outcome, StoreFull)
            assert await execute(store, commands.EvictionCandidates(10)) == ["d"]
            await execute(store, commands.Untrack(("d",)))
            await execute(store, commands.CompareAndSet((Write("s", "a", None, b"x" * 100_000),)))
            assert await execute(store, write("c", b"x" * 50_000)) is None

    async def test_what_was_asked_before_leaving_is_still_done(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            asked = [asyncio.create_task(execute(store, write(f"n{i}"))) for i in range(50)]
            await asyncio.sleep(0)
        await asyncio.gather(*asked)
        async with open_sqlite_store(sqlite_path) as store:
            assert len(await execute(store, commands.ReadRecords("s"))) == 50

    async def test_leaving_ends_every_thread(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store, store.watch("a"):
            await execute(store, write("a"))
        assert [t for t in threading.enumerate() if t.name.startswith("sqlite")] == []

    @pytest.mark.timed
    def test_it_runs_on_uvloop(self, sqlite_path: Path) -> None:
        async def story() -> None:
            async with open_sqlite_store(sqlite_path) as store, store.watch("a") as watch:
                await execute(store, commands.Publish("a", "e", b"event", 60))
                started = time.monotonic()
                await watch.wait(5)
                assert time.monotonic() - started < 0.5

        uvloop.run(story())


class TestTime:
    """What takes days, on a clock that the test turns."""

    async def test_a_purchase_belongs_to_the_windows_of_its_reservation(
        self, sqlite_path: Path
    ) -> None:
        clock = Clock()
        counter = Counter("key:k", "images", "day", 10)
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.Reserve("p", "w", (Consumption(counter, 4),), b""))
            clock.now += 120
            (today,) = await execute(store, commands.PeekCounters((counter,)))
            assert (today.used, today.reserved) == (0, 0)
            assert (
                await execute(store, commands.Settle("p", {"images": 4}, None))
            ).status == "settled"
            (today,) = await execute(store, commands.PeekCounters((counter,)))
            assert (today.used, today.reserved) == (0, 0)
            clock.now -= 120
            (yesterday,) = await execute(store, commands.PeekCounters((counter,)))
            assert (yesterday.used, yesterday.reserved) == (4, 0)

    async def test_a_closed_journal_is_remembered_for_a_week(self, sqlite_path: Path) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await store.execute(
                [commands.Reserve("p", "w", (), b""), commands.Settle("p", {}, None)]
            )
            clock.now += CLOSED_JOURNAL_SECONDS - 1
            assert (await execute(store, commands.Settle("p", {}, None))).status == "already"
            clock.now += 1
            assert (await execute(store, commands.Settle("p", {}, None))).status == "unknown"

    async def test_a_bucket_refills_exactly(self, sqlite_path: Path) -> None:
        clock = Clock()
        take = Consumption(Counter("key:k", "requests", "minute", 3), 1)
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.CompareAndSet((Write("keys", "k", b"r", None),)))
            admit = commands.Admit("keys", "k", b"r", (take,))
            assert [(await execute(store, admit)).denied for _ in range(4)] == [
                None,
                None,
                None,
                0,
            ]
            refused = await execute(store, admit)
            assert refused.states[0].retry_in == 20.0
            clock.now += 19.5
            assert (await execute(store, admit)).states[0].retry_in == 0.5
            clock.now += 0.5
            assert (await execute(store, admit)).denied is None

    async def test_an_entry_is_gone_after_it_has_lingered(self, sqlite_path: Path) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.StoreImages("f", "a", {0: Slot("p", 0, b"d")}, 100, 50))
            clock.now += 149
            assert set((await execute(store, commands.ReadEntry("f"))).slots) == {0}
            clock.now += 1
            assert (await execute(store, commands.ReadEntry("f"))).slots == {}
            kept = await execute(
                store, commands.StoreImages("f", "b", {1: Slot("q", 0, b"d")}, 100, 50)
            )
            assert kept == {1: 1}
            assert set((await execute(store, commands.ReadEntry("f"))).slots) == {1}

    async def test_ledger_ids_grow_even_when_the_clock_goes_back(self, sqlite_path: Path) -> None:
        clock = Clock(now=1_767_225_700.0)
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.Append((b"new year",)))
            clock.now -= 86_400
            await execute(store, commands.Append((b"the day before",)))
            records = await execute(store, commands.ReadLedger())
        assert [record for _, record in records] == [b"new year", b"the day before"]
        assert [id_.split("/")[0] for id_, _ in records] == ["2026-01-01"] * 2

    async def test_a_sweep_removes_what_is_over_and_nothing_else(self, sqlite_path: Path) -> None:
        clock = Clock()
        counter = Counter("key:k", "images", "day")
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await store.execute(
                [
                    commands.StoreImages("old", "a", {0: Slot("p", 0, b"d")}, 10, 10),
                    commands.StoreImages("new", "a", {0: Slot("p", 0, b"d")}, 1e9, 10),
                    commands.AcquireLease("old", (1,), "a", 10),
                    commands.Publish("a", "e", b"event", 10),
                    commands.Reserve("p", "w", (Consumption(counter, 1),), b""),
                    commands.Settle("p", {"images": 1}, b"r"),
                    commands.Reserve("open", "w", (), b""),
                ]
            )
            clock.now += CLOSED_JOURNAL_SECONDS + WINDOW_GRACE_SECONDS + 86_400
            assert await execute(store, commands.Sweep(limit=2)) == 2
            assert await execute(store, commands.Sweep()) == 3
            assert await execute(store, commands.Sweep()) == 0
            assert set((await execute(store, commands.ReadEntry("new"))).slots) == {0}
            assert [j.purchase for j in await execute(store, commands.OpenJournals())] == ["open"]
            assert len(await execute(store, commands.ReadLedger())) == 1

    async def test_a_sweep_removes_small_things_in_small_steps(self, sqlite_path: Path) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await store.execute(
                [
                    commands.SetValue("s", "old", b"v", 10),
                    commands.SetValue("s", "new", b"v", None),
                    commands.AddToSet("s", "old", ("a", "b", "c"), 10),
                    commands.AddToSet("s", "new", ("a", "b"), 100),
                    commands.Track("old", 5, 10, 100),
                    commands.Track("new", 7, 100, 100),
                ]
            )
            clock.now += 50
            await execute(store, commands.AddToSet("s", "old", ("c", "d"), 100))
            sweeps = [await execute(store, commands.Sweep(limit=2)) for _ in range(4)]
            assert sweeps == [2, 2, 2, 0]  # a note, a digest; three members and their list
            assert await execute(store, commands.GetValue("s", "new")) == b"v"
            assert sorted(await execute(store, commands.GetSet("s", "old"))) == ["c", "d"]
            assert sorted(await execute(store, commands.GetSet("s", "new"))) == ["a", "b"]
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(1, 7)
            clock.now += 100
            assert await execute(store, commands.Sweep()) == 7
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(0, 0)

    async def test_use_is_told_apart_even_when_the_clock_goes_back(self, sqlite_path: Path) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.Track("a", 1, 1e6, 100))
            clock.now -= 5000
            await store.execute([commands.Track("b", 1, 1e6, 100), commands.Touch(("a",))])
            assert await execute(store, commands.EvictionCandidates(100)) == ["b", "a"]


Story = Callable[[Store, int], Any]


async def _claim_all(store: Store, number: int) -> list[int]:
    """The slots that this process won, over many fingerprints."""
    claims = [commands.AcquireLease(f"f{i}", (0, 1), f"flight{number}", 60) for i in range(50)]
    answers = await asyncio.gather(*(execute(store, claim) for claim in claims))
    return [i * 2 + slot for i, claimed in enumerate(answers) for slot in claimed.acquired]


async def _reserve_all(store: Store, number: int) -> int:
    """How many reservations of 7 from one budget of 100 were granted to this process."""
    take = Consumption(Counter("key:k", "usd_micros", "month", 100), 7)
    asked = [commands.Reserve(f"p{number}-{i}", "w", (take,), b"") for i in range(25)]
    answers = await asyncio.gather(*(execute(store, command) for command in asked))
    return [answer.denied for answer in answers].count(None)


async def _follow(store: Store, number: int) -> bool:
    """Process 0 publishes to all others, each of which says that it is ready first."""
    if number == 0:
        async with store.watch("ready") as watch:
            while len(await execute(store, commands.ReadEvents("ready"))) < PROCESSES - 1:
                await watch.wait(1)
        await execute(store, commands.Publish("a", "e", b"event", 60))
        return True
    async with store.watch("a") as watch:
        await execute(store, commands.Publish("ready", str(number), b"", 60))
        await watch.wait(20)
        return list(await execute(store, commands.ReadEvents("a"))) == [b"event"]


def _in_process(path: Path, story: Story, number: int) -> Any:
    async def opened() -> Any:
        async with open_sqlite_store(path) as store:
            return await story(store, number)

    return asyncio.run(opened())


def test_several_processes_share_one_database(sqlite_path: Path) -> None:
    """Each slot is claimed once, a budget is never passed, a publication reaches everybody."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:

        def together(story: Story) -> list[Any]:
            asked = [pool.submit(_in_process, sqlite_path, story, i) for i in range(PROCESSES)]
            return [future.result(timeout=30) for future in asked]

        won = together(_claim_all)
        assert sorted(slot for slots in won for slot in slots) == list(range(100))
        assert sum(together(_reserve_all)) == 14
        assert together(_follow) == [True] * PROCESSES
