"""`gateway ledger export`: every record, from any position, until it is interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from click.testing import CliRunner

from gateway.billing.export import read_pages
from gateway.cli.main import cli
from gateway.images import Amounts, Record
from gateway.process.bootstrap import prepare
from gateway.store.batch import execute
from gateway.store.commands import Append, ReadLedger
from gateway.store.protocol import Store
from gateway.store.sqlite.connection import connect
from gateway.wiring.stores import open_store
from tests.billing.test_verification import fold, reserve, settle
from tests.conftest import OpenStore
from tests.forks import run_fork
from tests.gateways import make_settings
from tests.stores import usually_on
from tests.waiting import GENEROUS_SECONDS

EXPORT = [sys.executable, "-m", "gateway", "ledger", "export"]
DAY = 86_400
INHERITED = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with an empty store in `data`."""
    prepare(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1"))
    return tmp_path


def record(name: str, **more: Any) -> Record:
    return Record(id=name, request_id=name, time=1_764_000_000.5, key="alice", key_id="k", **more)


def append(folder: Path, records: Sequence[Record | bytes]) -> None:
    """Adds records as a gateway does."""

    async def write() -> None:
        settings = make_settings(folder / "data", "http://127.0.0.1:9/v1")
        async with open_store(settings) as (store, _):
            await append_to(store, records)

    asyncio.run(write())


async def append_to(store: Store, records: Sequence[Record | bytes]) -> None:
    encoded = [one if isinstance(one, bytes) else one.encode() for one in records]
    for start in range(0, len(encoded), 500):
        await execute(store, Append(tuple(encoded[start : start + 500])))


@contextmanager
def exporting(
    folder: Path, *words: str, redis_url: str | None = None
) -> Iterator[subprocess.Popen[str]]:
    env = {**INHERITED, "GATEWAY_DATA_DIR": str(folder / "data")}
    env |= {} if redis_url is None else {"GATEWAY_REDIS_URL": redis_url}
    with subprocess.Popen(
        [*EXPORT, *words],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def export(folder: Path, *words: str) -> tuple[list[dict[str, Any]], str, int]:
    """The lines, what is on stderr, and the exit status."""
    env = {**INHERITED, "GATEWAY_DATA_DIR": str(folder / "data")}
    done = run_fork("ledger", "export", *words, cwd=folder, env=env)
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr, done.returncode


def test_an_export_has_all_fields_and_continues_after_any_position(folder: Path) -> None:
    paid = record(
        "a",
        team="art",
        outcome="bought",
        labels={"cost_center": "4711"},
        tags=("spring",),
        tokens={"image_out": 9},
        costs={"image_out": 11},
        cost_micros=11,
        price_date="2026-11-01",
        upstream="default",
    )
    newer = b'{"id":"c","time":1,"key":"b","key_id":"k","invented":{"x":1}}'
    append(folder, [paid, record("b"), newer, b"no json", record("d")])
    lines, err, status = export(folder)
    assert status == 0
    assert "Unreadable records that were left out: 1." in err
    assert [line["id"] for line in lines] == ["a", "b", "c", "d"]
    positions = [line["position"] for line in lines]
    assert positions == sorted(positions)
    assert {name: lines[0][name] for name in paid.to_dict()} == json.loads(
        json.dumps(paid.to_dict())
    )
    assert lines[2]["invented"] == {"x": 1}
    assert lines[2]["request_id"] == "c"

    rest, _, _ = export(folder, "--after", positions[1])
    assert rest == lines[2:]
    assert export(folder, "--after", positions[0][:10])[0] == lines


@pytest.mark.parametrize("after", ["yesterday", "2026-11-28/x", "req_1", "2026-1-1", "2026-02-30"])
def test_a_position_that_is_none_is_a_usage_error(folder: Path, after: str) -> None:
    runner = CliRunner(env={"GATEWAY_DATA_DIR": str(folder / "data")})
    done = runner.invoke(cli, ["ledger", "export", "--after", after])
    assert (done.stdout, done.exit_code) == ("", 2)
    assert "a day such as 2026-11-28" in done.stderr


def test_a_position_of_another_store_is_refused(folder: Path) -> None:
    append(folder, [record("a")])
    lines, err, status = export(folder, "--after", "2026-11-28/001764000000000-000000")
    assert (lines, status) == ([], 1)
    assert "of another kind of store" in err


@pytest.fixture
def ledger_url(request: pytest.FixtureRequest) -> str | None:
    """The URL of Redis, or None for the embedded store."""
    return request.getfixturevalue("redis_url") if request.param == "redis" else None


async def end_before_midnight(folder: Path, url: str | None, count: int) -> None:
    """Lets the ledger's next `count` records be the last ones of a day."""
    midnight = int(time.time() // DAY + 2) * DAY
    if url is None:
        db = connect(folder / "data" / "gateway.sqlite", read_only=False)
        db.execute("UPDATE ledger_end SET position = ?", (midnight * 1_000_000 - count - 1,))
        db.close()
        return
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.hset(
            "igw:{books}:ledger", mapping={"ms": midnight * 1000 - 1, "count": 999_999 - count}
        )


def read_some(process: subprocess.Popen[str], kept: dict[str, Any], count: int) -> str:
    """Keeps `count` records by position, kills the export, and returns the last position.

    What is left in the pipe is lost, as with a program that ends together with its export.
    """
    assert process.stdout is not None
    for _ in range(count):
        line = json.loads(process.stdout.readline())
        kept[line["position"]] = line
    process.kill()
    return max(kept)


@usually_on("sqlite", "ledger_url")
async def test_a_killed_follower_misses_no_record_and_follows_until_it_is_interrupted(
    folder: Path, ledger_url: str | None
) -> None:
    """A fold, a correction and a change of the day are between the kill and the next export."""
    settings = make_settings(folder / "data", "http://127.0.0.1:9/v1", ledger_url)
    async with open_store(settings) as (store, _):
        at = await reserve(store, "late")
        await end_before_midnight(folder, ledger_url, 400)
        await settle(store, "late", at, presumed=True)
        # More than the pipe can hold, so that the kill comes in the middle of a write.
        await append_to(store, [record(f"{n:03}", user="u" * 200) for n in range(600)])
        kept: dict[str, Any] = {}
        with exporting(folder, "--follow", redis_url=ledger_url) as process:
            last = await asyncio.to_thread(read_some, process, kept, 101)
        await fold(store)
        charge = Amounts(images=1, tokens=900, usd_micros=36_000)
        await settle(store, "late", at, charge=charge, correct=True)
        with exporting(folder, "--follow", "--after", last, redis_url=ledger_url) as process:
            await append_to(store, [record("new")])
            await asyncio.to_thread(follow_to, process, kept, "new")
        found = await execute(store, ReadLedger())
    assert list(kept) == [position for position, _ in found]
    names = ["late", *(f"{n:03}" for n in range(600)), "late", "new"]
    assert [line["id"] for line in kept.values()] == names
    assert len({position.partition("/")[0] for position in kept}) == 2


def follow_to(process: subprocess.Popen[str], kept: dict[str, Any], name: str) -> None:
    """Keeps the records up to one, then interrupts the export, which ends without a trace."""
    assert process.stdout is not None
    line: dict[str, Any] = {}
    while line.get("id") != name:
        line = json.loads(process.stdout.readline())
        assert line["position"] not in kept
        kept[line["position"]] = line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GENEROUS_SECONDS)
    assert (out, process.returncode) == ("", 130)
    assert err.endswith("Interrupted.\n")
    assert "Traceback" not in err


def test_an_export_whose_reader_is_stuck_can_be_interrupted(folder: Path) -> None:
    """The pipe is full, so the export waits in a write."""
    append(folder, [record(f"{number:06}", user="u" * 200) for number in range(3000)])
    with exporting(folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(GENEROUS_SECONDS) == 130


@pytest.mark.parametrize("is_idle", [False, True])
def test_an_export_ends_quietly_when_its_reader_does(folder: Path, *, is_idle: bool) -> None:
    """Also with --follow while there is nothing to write."""
    append(folder, [record("a")] if is_idle else [record(str(n)) for n in range(3000)])
    with exporting(folder, *(["--follow"] if is_idle else [])) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(GENEROUS_SECONDS) == 0
        assert process.stderr.read().count("\n") == 1, "the name of the store"


async def test_an_export_reads_no_more_than_a_page_at_once(open_store: OpenStore) -> None:
    async with open_store() as store:
        await fill(store, 1201)
        pages = [page async for page in read_pages(store, "")]
        assert [page.lines.count(b"\n") for page in pages] == [500, 500, 201]
        assert [page async for page in read_pages(store, pages[-1].position)] == []


async def fill(store: Store, count: int) -> None:
    await execute(store, Append(tuple(record(str(number)).encode() for number in range(count))))
