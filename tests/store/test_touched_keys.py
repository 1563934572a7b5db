"""Each script touches only keys that it declares, as the server's `MONITOR` shows."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

import pytest
import redis

from gateway.errors import StoreFull
from gateway.store import commands
from gateway.store.batch import execute
from gateway.store.commands import (
    BoundedSet,
    Consumption,
    Counter,
    LostReservation,
    Place,
    WindowName,
)
from gateway.store.protocol import Command
from gateway.store.redis.scripts import SCRIPTS, Script
from gateway.store.redis.store import open_redis_store
from tests.declared_keys import Use, monitored
from tests.redis_server import run_redis_server

PERIOD: Final = commands.Period("day", "day:2020-01-01", 1_577_923_200.0)
COUNTERS: Final = tuple(
    Counter("key:k", "images", period, 100) for period in ("minute", "day", "concurrency")
)
LIMITED: Final = tuple(Consumption(counter, 1) for counter in COUNTERS)
LOST: Final = LostReservation(("key:k",), 1_577_923_200.0, b"{}")


def reserve(purchase: str, *, waits: bool = False) -> Command[Any]:
    place = Place("a", "k" if waits else "other", 1, 1, 60, 1 if waits else 100)
    return commands.Reserve(purchase, "w", LIMITED, b"{}", ("key:k",), {"images": 1}, place)


PURCHASES: Final[Sequence[Command[Any]]] = (
    commands.Admit((), LIMITED),
    commands.PeekCounters(COUNTERS),
    reserve("one"),
    reserve("two", waits=True),
    reserve("three", waits=True),
    commands.ReadTurns("a", 60, 1, ("two", "three")),
    commands.OpenJournals(),
    commands.ReadBooks((WindowName("key:k", "concurrency", ""),), ("key:k",), 100),
    commands.Reroute("three", "other", LIMITED, b"{}", place=Place("b", "k", 1, 1, 60, 100)),
    commands.Receive("one", b"{}"),
    commands.Settle("one", {"images": 1, "usd_micros": 7}, b"{}", totals=("key:k",), presumed=True),
    commands.Settle("one", {"images": 1, "usd_micros": 9}, b"{}", totals=("key:k",), correct=True),
    commands.TakeTurns("a", "w", 60, 100),
    commands.CorrectAccount("a", 60, remaining=1),
    commands.Settle("two", {}, None),
    commands.Settle("lost", {"images": 1}, b"{}", lost=LOST),
    commands.Settle("unknown", {}, None),
    commands.Heartbeat("w"),
    commands.ExpiredWorkers(0.0),
    commands.Deregister("w"),
)
LEDGER: Final[Sequence[Command[Any]]] = (
    commands.Append(
        (b"{}",), (commands.Refusals("k", "reason", 1, b'{"key":"k","count":', b"{"),), "writer", 1
    ),
    commands.SearchRefusals(b"k"),
    commands.AppendRefusals(10, ends_minute=True),
    commands.ReadLedger(),
    commands.ReadLedgerBack(),
    commands.SearchLedger(b"{}", 0.0, 4_000_000_000.0, is_charged=True),
    commands.TrimLedger(0.0, 0.0, 0, 0, "2999-01-01/", limit=100),
    commands.FoldTotals(
        "", "2020", (commands.Increment(PERIOD, 0, "g", "row", "other", {"images": 1}),)
    ),
    commands.ReadTotalsState((PERIOD.name,)),
    commands.ReadTotals(PERIOD.name),
    commands.RemoveTotals("day", 60.0),
)
CACHE: Final[Sequence[Command[Any]]] = (
    commands.AcquireLease("f", (0, 1), "flight", 60.0),
    commands.RenewLease("f", "flight", 60.0),
    commands.StoreImages("f", "flight", {0: commands.Slot("i", 0.0, b"{}")}, 60.0, 60.0),
    commands.ReadEntry("f"),
    commands.ProlongSlots("f", {0: "i"}, 600.0, 60.0),
    commands.EmptySlots("f", {0: "i"}),
    commands.ReleaseLease("f", "flight"),
    commands.ScanEntries(),
    commands.Publish("flight", "id", b"{}", 60.0),
    commands.CountHits((("i", 1),), 60.0),
    commands.ReadHits(("i",)),
    commands.DeleteHits(("i",)),
    commands.PutBlob("d", b"bytes", 60.0),
    *(commands.Track(digest, 10, 60.0, 25) for digest in "abc"),
    commands.Touch(("b",)),
    commands.AreTracked(("a", "b")),
    commands.ReadLruTotals(),
    commands.EvictionCandidates(10),
    commands.EvictTo(10),
    commands.Untrack(("b", "c")),
    commands.Sweep(),
)
REST: Final[Sequence[Command[Any]]] = (
    commands.AddToOrderedSets("s", ("one", "two"), "m", 60.0, 10, "a"),
    commands.CountOrderedSets("s", ("one", "two")),
    commands.RemoveFromOrderedSets("s", ("one", "two"), "m"),
    commands.CompareAndSet((commands.Write("names", "n", b"r", None),)),
    commands.CompareAndSet((commands.Write("r", "r", b"{}", None),)),
    commands.Get("r", "n", index="names"),
    commands.AddToSet("s", "n", ("m",), 60.0),
    commands.ScanSet("s", "n"),
    commands.RemoveFromSet("s", "n", ("m",)),
    commands.AddToBoundedSets((BoundedSet("s", "n", 10), BoundedSet("s", "o", 10)), ("m",), 60.0),
    commands.SetValue("s", "n", b"1", 60.0, only_if_absent=True),
    commands.AdvanceCounter("s", "c", 1, 10, 60.0),
    commands.DeleteValue("s", "n", b"1"),
    commands.MeasureStore(),
    commands.Inspect(),
)


async def test_every_script_touches_only_keys_that_it_declares(
    redis_url: str, tmp_path: Path
) -> None:
    with monitored(redis_url, tmp_path / "commands") as executed:
        async with open_redis_store(redis_url) as store:
            for command in (*PURCHASES, *LEDGER, *CACHE, *REST):
                await execute(store, command)
    assert not executed.undeclared
    # The handshake is sent as its source.
    assert {*executed.scripts} - {"EVAL"} == {*SCRIPTS} - {"handshake"}


async def test_the_monitor_finds_a_script_that_touches_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"redis.call('INCR', KEYS[1] .. ':runs')\n{SCRIPTS['set_value'].source}"
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(cast(Any, SCRIPTS), "set_value", Script(source, sha))
    # On a server of its own: with `MONITORED=1` the shared one is monitored already.
    with run_redis_server(tmp_path) as url, monitored(url, tmp_path / "commands") as executed:
        async with open_redis_store(url) as store:
            await execute(store, commands.SetValue("s", "n", b"1", 60.0))
    assert executed.undeclared == {Use(sha, "INCR", "igw:value:s:n:runs")}


async def test_a_full_server_refuses_a_script_as_a_whole(redis_url: str) -> None:
    """A script that stopped in the middle would leave its first writes."""
    refused = set[str]()
    with redis.Redis.from_url(redis_url) as client:

        def content() -> dict[bytes, object]:
            return {key: client.dump(key) for key in client.keys("*")}

        async with open_redis_store(redis_url) as store:
            for command in (*PURCHASES, *LEDGER, *CACHE, *REST):
                before = content()
                client.config_set("maxmemory", 1)
                try:
                    await execute(store, command)
                except StoreFull:
                    refused.add(type(command).__name__)
                    assert content() == before, command
                finally:
                    client.config_set("maxmemory", 0)
                await execute(store, command)
    assert {"Reserve", "Append", "FoldTotals", "StoreImages", "Track"} <= refused


@pytest.mark.long
@pytest.mark.timeout(600)
def test_no_test_of_the_store_makes_a_script_touch_other_keys() -> None:
    modules = ("contract", "account_queue", "ledger", "entries", "windows", "declared_keys")
    files = [str(Path(__file__).with_name(f"test_{module}.py")) for module in modules]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-k", "not sqlite", *files]
    environment = {**os.environ, "MONITORED": "1"}
    ended = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
