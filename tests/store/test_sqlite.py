"""Tests of the embedded store only: its file, its processes, its clock, its timeouts."""

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
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvloop

from gateway.errors import StoreFull, StoreUnavailable
from gateway.images import Expected
from gateway.store import commands, sqlite
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
from gateway.store.sqlite import change_poller, transaction_queue
from gateway.store.sqlite.commands import registry
from gateway.store.sqlite.connection import connect, create_sqlite_schema
from gateway.store.sqlite.store import open_sqlite_store
from tests.store.pages import read_set, read_space
from tests.waiting import GENEROUS_SECONDS

PROCESSES = 4


@dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 1_767_225_540.0
    """A minute before the year 2026 (UTC)."""

    def __call__(self) -> float:
        return self.now


def write(name: str, value: bytes = b"v") -> commands.CompareAndSet:
    return commands.CompareAndSet((Write("s", name, value, None),))


class TestSchema:
    def test_the_database_is_created_once_with_a_private_folder(self, tmp_path: Path) -> None:
        path = tmp_path / "data" / "store.sqlite3"
        for _ in range(2):
            create_sqlite_schema(path)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)

    def test_creating_it_leaves_no_thread_behind(self, tmp_path: Path) -> None:
        before = threading.active_count()
        create_sqlite_schema(tmp_path / "store.sqlite3")
        assert threading.active_count() == before

    async def test_creating_it_again_changes_nothing(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            await execute(store, write("a"))
        await asyncio.to_thread(create_sqlite_schema, sqlite_path)
        async with open_sqlite_store(sqlite_path) as store:
            assert await execute(store, commands.Get("s", "a")) == b"v"

    async def test_another_schema_version_is_refused(self, sqlite_path: Path) -> None:
        with contextlib.closing(sqlite3.connect(sqlite_path)) as db:
            db.execute("PRAGMA user_version = 99")
        message = rf"The store at {sqlite_path} has .* version 99; .* version {SCHEMA_VERSION}"
        with pytest.raises(SchemaMismatch, match=message):
            await asyncio.to_thread(create_sqlite_schema, sqlite_path)
        with pytest.raises(SchemaMismatch, match=message):
            async with open_sqlite_store(sqlite_path):
                pass

    async def test_a_failure_while_creating_it_changes_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite3"
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE lru_totals (in_the_way)")
        before = _tables(path)
        with pytest.raises(StoreUnavailable, match="lru_totals already exists"):
            await asyncio.to_thread(create_sqlite_schema, path)
        assert _tables(path) == before

    async def test_opening_a_missing_store_does_not_create_it(self, tmp_path: Path) -> None:
        path = tmp_path / "absent.sqlite3"
        with pytest.raises(StoreMissing, match=f"There is no store at {path}"):
            async with open_sqlite_store(path):
                pass
        assert not path.exists()

    async def test_a_file_that_is_no_database_is_refused_and_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite3"
        path.write_bytes(b"this is not a database" * 100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what other tests have left
            gc.collect()
        with pytest.raises(StoreUnavailable, match="cannot be used: file is not a database"):
            await asyncio.to_thread(create_sqlite_schema, path)
        with pytest.raises(StoreUnavailable, match="cannot be used: file is not a database"):
            async with open_sqlite_store(path):
                pass
        gc.collect()  # since Python 3.13 a connection that was left open warns here, which fails

    async def test_its_name_contains_the_path(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            assert store.name == f"embedded store (SQLite) at {sqlite_path}"


def _tables(path: Path) -> list[tuple[str, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        version = db.execute("PRAGMA user_version").fetchone()
        return [version, *db.execute("SELECT name, sql FROM sqlite_master ORDER BY name")]


class TestCommands:
    def test_every_command_is_registered(self) -> None:
        """Except `PutBlob`: the bytes of an embedded store are files."""
        names = vars(commands).values()
        every = {c for c in names if isinstance(c, type) and issubclass(c, Command)}
        assert every - set(registry._executors) == {commands.PutBlob}

    async def test_a_command_that_reads_cannot_write(self, sqlite_path: Path) -> None:
        """A command that is registered as reading by mistake fails in its first test."""
        async with open_sqlite_store(sqlite_path) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await store._reader.run(lambda tx: tx.execute("DELETE FROM records"))  # type: ignore[attr-defined]
        assert "readonly" in str(caught.value.__cause__)

    def test_no_statement_numbers_its_parameters(self) -> None:
        """Python 3.12.0 to 3.12.3 warn of `?1` as if it were a name (CPython issue 117995)."""
        modules = Path(sqlite.__file__).parent.rglob("*.py")
        assert [path.name for path in modules if re.search(r"\?\d", path.read_text())] == []


class TestFailures:
    async def test_a_failing_batch_does_not_affect_others(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            batches: list[list[Command[Any]]] = [[write(f"n{i}")] for i in range(10)]
            batches[4].append(commands.CompareAndSet((Write("s", "bad", object(), None),)))  # type: ignore[arg-type]
            results = await asyncio.gather(*map(store.execute, batches), return_exceptions=True)
            assert [r for i, r in enumerate(results) if i != 4] == [[None]] * 9
            assert isinstance(results[4], Exception)
            assert sorted(await read_space(store, "s")) == sorted(
                f"n{i}" for i in range(10) if i != 4
            )

    @pytest.mark.timed
    async def test_a_command_times_out_after_two_seconds(self, sqlite_path: Path) -> None:
        lock = sqlite_path.with_name(f"{sqlite_path.name}-lock")
        async with open_sqlite_store(sqlite_path) as store:
            with lock.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                started = time.monotonic()
                with pytest.raises(StoreUnavailable):
                    await execute(store, write("late"))
                assert 1.8 < time.monotonic() - started < 3.5
                assert await execute(store, commands.Get("s", "late")) is None

            assert await execute(store, write("after")) is None

    async def test_a_broken_database_makes_the_store_unavailable(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            with sqlite3.connect(sqlite_path) as db:
                db.execute("DROP TABLE records")
            db.close()
            with pytest.raises(StoreUnavailable) as caught:
                await execute(store, write("a"))
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            with pytest.raises(StoreUnavailable):
                await execute(store, commands.Get("s", "a"))

    async def test_a_full_disk_raises_store_full_and_can_be_emptied(
        self, sqlite_path: Path
    ) -> None:
        """Simulated with SQLite's own limit of pages, which fails as a full disk does."""
        async with open_sqlite_store(sqlite_path) as store:
            await store.execute([write("a", b"x" * 100_000), commands.Track("d", 10, 60, 100)])
            writer = store._writer._db  # type: ignore[attr-defined]
            writer.execute("PRAGMA max_page_count = 1")  # raised to the pages in use
            full = [execute(store, write(f"b{i}", b"x" * 200_000)) for i in range(3)]
            for outcome in await asyncio.gather(*full, return_exceptions=True):
                assert isinstance(outcome, StoreFull)
            assert await execute(store, commands.EvictionCandidates(10)) == {"d": 10}
            await execute(store, commands.Untrack(("d",)))
            await execute(store, commands.CompareAndSet((Write("s", "a", None, b"x" * 100_000),)))
            assert await execute(store, write("c", b"x" * 50_000)) is None

    async def test_closing_the_store_finishes_the_queued_commands(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store:
            writes = [asyncio.create_task(execute(store, write(f"n{i}"))) for i in range(50)]
            await asyncio.sleep(0)
        await asyncio.gather(*writes)
        async with open_sqlite_store(sqlite_path) as store:
            assert len(await read_space(store, "s")) == 50

    async def test_closing_the_store_ends_its_threads(self, sqlite_path: Path) -> None:
        async with open_sqlite_store(sqlite_path) as store, store.watch("a"):
            await execute(store, write("a"))
        assert [t for t in threading.enumerate() if t.name.startswith("sqlite")] == []

    @pytest.mark.parametrize("name", ["sqlite-writer", "sqlite-reader", "sqlite-poller"])
    async def test_if_a_thread_cannot_start_every_connection_is_closed(
        self, sqlite_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        start, connections = threading.Thread.start, list[sqlite3.Connection]()

        def failing_start(thread: threading.Thread) -> None:
            if thread.name == name:
                raise RuntimeError("can't start new thread")
            start(thread)

        def recording_connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
            connections.append(connect(path, read_only=read_only))
            return connections[-1]

        monkeypatch.setattr(threading.Thread, "start", failing_start)
        for module in (change_poller, transaction_queue):
            monkeypatch.setattr(module, "connect", recording_connect)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            async with open_sqlite_store(sqlite_path):
                pass
        assert connections
        for connection in connections:
            with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
                connection.execute("SELECT 1")

    @pytest.mark.timed
    def test_it_runs_on_uvloop(self, sqlite_path: Path) -> None:
        async def run() -> None:
            async with open_sqlite_store(sqlite_path) as store, store.watch("a") as watch:
                await execute(store, commands.Publish("a", "e", b"event", 60))
                started = time.monotonic()
                await watch.wait(5)
                assert time.monotonic() - started < 0.5

        uvloop.run(run())


class TestTime:
    """Behaviour over days, on a clock that the test sets."""

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

    async def test_a_settled_journal_is_kept_for_a_week(self, sqlite_path: Path) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            settle = commands.Settle("p", {"images": 1}, None)
            await store.execute([commands.Reserve("p", "w", (), b""), settle])
            clock.now += CLOSED_JOURNAL_SECONDS - 1
            assert (await execute(store, settle)).status == "already"
            clock.now += 1
            assert (await execute(store, settle)).status == "unknown"

    async def test_a_bucket_refills_exactly(self, sqlite_path: Path) -> None:
        clock = Clock()
        consumption = Consumption(Counter("key:k", "requests", "minute", 3), 1)
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.CompareAndSet((Write("keys", "k", b"r", None),)))
            admit = commands.Admit((Expected("keys", "k", b"r"),), (consumption,))
            denied = [(await execute(store, admit)).denied for _ in range(4)]
            assert denied == [None, None, None, 0]
            admission = await execute(store, admit)
            assert admission.states[0].retry_in == 20.0
            clock.now += 19.5
            assert (await execute(store, admit)).states[0].retry_in == 0.5
            clock.now += 0.5
            assert (await execute(store, admit)).denied is None

    async def test_an_entry_is_removed_after_the_stale_if_error_window(
        self, sqlite_path: Path
    ) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.StoreImages("f", "a", {0: Slot("p", 0, b"d")}, 100, 50))
            clock.now += 149
            assert set((await execute(store, commands.ReadEntry("f"))).slots) == {0}
            clock.now += 1
            assert (await execute(store, commands.ReadEntry("f"))).slots == {}
            stored = await execute(
                store, commands.StoreImages("f", "b", {1: Slot("q", 0, b"d")}, 100, 50)
            )
            assert stored == {1: 1}
            assert set((await execute(store, commands.ReadEntry("f"))).slots) == {1}

    async def test_ledger_ids_grow_even_if_the_clock_is_set_back(self, sqlite_path: Path) -> None:
        clock = Clock(now=1_767_225_700.0)
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.Append((b"new year",)))
            clock.now -= 86_400
            await execute(store, commands.Append((b"the day before",)))
            records = await execute(store, commands.ReadLedger())
        assert [record for _, record in records] == [b"new year", b"the day before"]
        assert [id_.split("/")[0] for id_, _ in records] == ["2026-01-01"] * 2

    async def test_a_sweep_removes_only_expired_rows(self, sqlite_path: Path) -> None:
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

    async def test_a_sweep_removes_at_most_its_limit(self, sqlite_path: Path) -> None:
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
            assert sweeps == [2, 2, 2, 0]  # a value, a digest; three members and their set
            assert await execute(store, commands.GetValue("s", "new")) == b"v"
            assert sorted(await read_set(store, "s", "old")) == ["c", "d"]
            assert sorted(await read_set(store, "s", "new")) == ["a", "b"]
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(1, 7)
            clock.now += 100
            assert await execute(store, commands.Sweep()) == 7
            assert await execute(store, commands.ReadLruTotals()) == commands.LruTotals(0, 0)

    async def test_uses_are_ordered_even_if_the_clock_is_set_back(self, sqlite_path: Path) -> None:
        clock = Clock()
        async with open_sqlite_store(sqlite_path, clock=clock) as store:
            await execute(store, commands.Track("a", 1, 1e6, 100))
            clock.now -= 5000
            await store.execute([commands.Track("b", 1, 1e6, 100), commands.Touch(("a",))])
            assert await execute(store, commands.EvictionCandidates(100)) == {
                "b": 1,
                "a": 1,
            }


Scenario = Callable[[Store, int], Any]
"""Runs in one process, with the number of that process."""


async def _acquire_all(store: Store, number: int) -> list[int]:
    """The slots whose lease this process acquires, over many fingerprints."""
    acquire = [commands.AcquireLease(f"f{i}", (0, 1), f"flight{number}", 60) for i in range(50)]
    results = await asyncio.gather(*(execute(store, command) for command in acquire))
    return [i * 2 + slot for i, result in enumerate(results) for slot in result.acquired]


async def _reserve_all(store: Store, number: int) -> int:
    """How many reservations of 7 from one budget of 100 succeed in this process."""
    consumption = Consumption(Counter("key:k", "usd_micros", "month", 100), 7)
    reserve = [commands.Reserve(f"p{number}-{i}", "w", (consumption,), b"") for i in range(25)]
    results = await asyncio.gather(*(execute(store, command) for command in reserve))
    return [result.denied for result in results].count(None)


async def _follow(store: Store, number: int) -> bool:
    """Process 0 publishes to all others, after each of them has published that it is ready."""
    if number == 0:
        async with store.watch("ready") as watch:
            while len(await execute(store, commands.ReadEvents("ready"))) < PROCESSES - 1:
                await watch.wait(1)
        await execute(store, commands.Publish("a", "e", b"event", 60))
        return True
    async with store.watch("a") as watch:
        await execute(store, commands.Publish("ready", str(number), b"", 60))
        await watch.wait(GENEROUS_SECONDS)
        return list(await execute(store, commands.ReadEvents("a"))) == [b"event"]


def _run_in_process(path: Path, scenario: Scenario, number: int) -> Any:
    async def run() -> Any:
        async with open_sqlite_store(path) as store:
            return await scenario(store, number)

    return asyncio.run(run())


async def test_only_reservations_and_keys_wait_for_the_disk(sqlite_path: Path) -> None:
    """A power cut loses neither them nor anything that was committed before."""
    async with open_sqlite_store(sqlite_path) as store:
        statements: list[str] = []
        store._writer._db.set_trace_callback(statements.append)

        async def levels(*commands_: Command[Any]) -> list[str]:
            statements.clear()
            await store.execute(commands_)
            return [found.split()[-1] for found in statements if "synchronous" in found]

        beat = commands.Heartbeat("w")
        assert await levels(beat) == []
        assert await levels(beat, commands.Reserve("p", "w", (), b"payload")) == ["FULL"]
        assert await levels(commands.Reserve("q", "w", (), b"payload")) == []
        assert await levels(beat) == ["NORMAL"]
        revoked = commands.CompareAndSet((commands.Write("keys", "k", b"record", None),))
        assert await levels(revoked) == ["FULL"]


def test_several_processes_share_one_database(sqlite_path: Path) -> None:
    """Each slot is leased once, no budget is exceeded, every process receives a publication."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context) as pool:

        def run_in_all(scenario: Scenario) -> list[Any]:
            futures = [
                pool.submit(_run_in_process, sqlite_path, scenario, i) for i in range(PROCESSES)
            ]
            return [future.result(timeout=GENEROUS_SECONDS) for future in futures]

        acquired = run_in_all(_acquire_all)
        assert sorted(slot for slots in acquired for slot in slots) == list(range(100))
        assert sum(run_in_all(_reserve_all)) == 14
        assert run_in_all(_follow) == [True] * PROCESSES


def expiring_tables(path: Path) -> list[str]:
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT m.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c"
            " WHERE m.type = 'table' AND c.name = 'remove_after'"
        )
        found = [name for (name,) in rows]
    db.close()
    return found


def count_rows(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as db:
        tables = [*expiring_tables(path), "set_members", "ordered_members"]
        counts = {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}  # noqa: S608
    db.close()
    return counts


def test_every_table_whose_rows_expire_has_an_index_for_the_sweep(sqlite_path: Path) -> None:
    with sqlite3.connect(sqlite_path) as db:
        for table in expiring_tables(sqlite_path):
            (_, _, _, plan) = db.execute(
                f"EXPLAIN QUERY PLAN SELECT rowid FROM {table} WHERE remove_after <= 1"  # noqa: S608
            ).fetchone()
            assert f"SEARCH {table} USING COVERING INDEX" in plan
    db.close()


@pytest.mark.long
async def test_sweeps_keep_up_with_rows_of_every_kind(sqlite_path: Path) -> None:
    """Many expire between two sweeps: the rows return to none each time, and no step is long."""
    clock = Clock()
    counter = Counter("", "images", "minute", 10)
    async with open_sqlite_store(sqlite_path, clock=clock) as store:
        for step in range(3):
            for n in range(step * 600, step * 600 + 600):
                subject = counter._replace(subject=f"key:{n}")
                day = Counter(f"key:{n}", "images", "day")
                await store.execute(
                    [
                        commands.StoreImages(f"f{n}", "a", {0: Slot("p", 0, b"d")}, 10, 10),
                        commands.AcquireLease(f"f{n}", (1,), "a", 10),
                        commands.Publish(f"flight{n}", "e", b"event", 10),
                        commands.SetValue("s", f"v{n}", b"v", 10),
                        commands.AddToSet("s", f"s{n}", ("a", "b"), 10),
                        commands.AddToBoundedSets(
                            (commands.BoundedSet("s", f"b{n}", 9),), ("a",), 10
                        ),
                        commands.AddToOrderedSets("s", (f"o{n}",), "a", 10, 9),
                        commands.CountHits(((f"i{n}", 1),), 10),
                        commands.Track(f"d{n}", 5, 10, 1 << 40),
                        commands.Reserve(
                            f"p{n}", "w", (Consumption(subject, 1), Consumption(day, 1)), b""
                        ),
                        commands.Settle(f"p{n}", {"images": 1}, b"r"),
                        commands.Append((b"r",)),
                    ]
                )
            assert min(count_rows(sqlite_path).values()) >= 500
            clock.now += 40 * 86_400
            while await execute(store, commands.Sweep(500)) == 500:
                continue
            assert set(count_rows(sqlite_path).values()) == {0}


def test_temporary_data_is_in_memory(sqlite_path: Path) -> None:
    """On a full disk, journals of statements in `TMPDIR` would refuse every write."""
    with contextlib.closing(connect(sqlite_path)) as db:
        assert db.execute("PRAGMA temp_store").fetchone() == (2,)
