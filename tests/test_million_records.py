"""A million records of 30 days, through the front door: folded in time, reported at once, proved.

`RECORDS` in the environment is another number of records. With `-s` the figures are printed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Final

import pytest

from gateway.billing.verification import Verification, VerificationSettings, read_verified
from gateway.billing.verified_sums import time_of_position
from gateway.images import Record
from gateway.store.batch import execute
from gateway.store.commands import ReadBooks, ReadLedger, ReadTotalsState
from gateway.store.protocol import Store
from gateway.tuning import tune_process
from gateway.wiring.stores import open_store
from tests.gateways import Client, Processes, run_processes
from tests.month import RecordWriter, TrafficKey, traffic
from tests.waiting import eventually

RECORDS: Final = int(os.environ.get("RECORDS", "1000000"))
DAY: Final = 86_400.0
KEYS: Final = tuple(
    TrafficKey(
        f"key-{n}",
        f"team-{n % 8}",
        {"cost_center": str(4700 + n % 8), "project": f"p{n % 5}"},
    )
    for n in range(40)
)
PACE: Final = 1000
"""Records a second that are appended while folding keeps up."""
PACED: Final = min(60 * PACE, RECORDS // 2)
BATCH: Final = 100


def month() -> Iterator[Record]:
    """The records of the last 30 days, of 40 keys in 8 teams."""
    now = time.time()
    since = now // DAY * DAY - 29 * DAY
    return islice(traffic(since, now, seed=7, requests=RECORDS, keys=KEYS), RECORDS)


class Spent:
    """Passes records on, and remembers what each team spent."""

    def __init__(self) -> None:
        self.usd_micros: Counter[str | None] = Counter()
        self.records = 0

    def note(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self.usd_micros[record.team] += record.cost_micros
            self.records += 1
            yield record


# ── folding ─────────────────────────────────────────────────────────────────────────────────


async def lag_seconds(store: Store) -> float:
    """How old the oldest record is that the totals do not have."""
    checkpoint = (await execute(store, ReadTotalsState())).checkpoint
    books = await execute(store, ReadBooks())
    if books.ledger_end <= checkpoint:
        return 0.0
    (oldest, _), *_ = await execute(store, ReadLedger(checkpoint, 1))
    return books.now - time_of_position(oldest)


async def append_at_pace(
    store: Store, writer: RecordWriter, records: Iterator[Record]
) -> list[float]:
    """Appends `PACE` records a second; the lag of folding after each second."""
    begins, lags = time.monotonic(), []
    for number in range(BATCH, PACED + 1, BATCH):
        await writer.write(islice(records, BATCH))
        if number % PACE == 0:
            lags.append(await lag_seconds(store))
        await asyncio.sleep(max(0.0, begins + number / PACE - time.monotonic()))
    return lags


async def is_folded(store: Store) -> bool:
    return not await lag_seconds(store)


# ── commands ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    out: str
    err: str
    status: int
    seconds: float
    processor_seconds: float
    memory_mb: float
    """At its peak."""


async def run(processes: Processes, *words: str) -> Ran:
    """Runs a command as an operator does."""
    return await asyncio.to_thread(_run, processes, words)


def _run(processes: Processes, words: Sequence[str]) -> Ran:
    command = [sys.executable, "-m", "gateway", *words]
    if words[-1] != "--help":
        command += ["--config", "gateway.yaml"]
    folder = processes.log_file.parent
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begins = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=processes.environ, stdout=out, stderr=err
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begins
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Ran(
        *texts,
        process.returncode,
        seconds,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1024,
    )


by_seconds = attrgetter("seconds")


def show(store: str, what: str) -> None:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{store}: {what} (load {load})")  # noqa: T201 - the figures


async def check_reports(kind: str, processes: Processes, client: Client, spent: Spent) -> None:
    words = ("usage", "--by", "team", "--since", "30d", "--format", "json")
    start = min([await run(processes, "usage", "--help") for _ in range(3)], key=by_seconds)
    ran = min([await run(processes, *words) for _ in range(3)], key=by_seconds)
    assert ran.status == 0, ran.err
    rows = json.loads(ran.out)
    assert {r["team"]: round(r["cost_usd"] * 1e6) for r in rows} == spent.usd_micros
    show(
        kind,
        f"usage --by team --since 30d: {ran.seconds:.2f} s ({ran.processor_seconds:.2f} of a"
        f" processor), {ran.memory_mb:.0f} MB; --help {start.seconds:.2f} s"
        f" ({start.processor_seconds:.2f}), {start.memory_mb:.0f} MB",
    )
    seconds = []
    for _ in range(5):
        begins = time.perf_counter()
        reply = await client.admin("GET", "/admin/usage?group_by=team&since=30d")
        seconds.append(time.perf_counter() - begins)
        assert reply.status == 200
        found = {row["team"]: round(row["cost_usd"] * 1e6) for row in reply.json["usage"]}
        assert found == spent.usd_micros
    show(kind, f"GET /admin/usage by team of 30 days: {min(seconds):.2f} to {max(seconds):.2f} s")
    assert min(seconds) < 1.0
    assert ran.seconds - start.seconds < 1.0
    assert ran.memory_mb - start.memory_mb < 50


async def check_look_up(kind: str, client: Client) -> None:
    refused = await (await client.with_key()).ask(n=99)
    path = f"/admin/requests/{refused.headers['x-request-id']}"
    assert (await client.admin("GET", path)).status == 200  # waits until the record is written
    begins = time.perf_counter()
    shown = await client.admin("GET", path)
    seconds = time.perf_counter() - begins
    assert [record["error"] for record in shown.json["records"]] == ["integer_above_max_value"]
    show(kind, f"GET /admin/requests/{{id}}: {1000 * seconds:.0f} ms")
    assert seconds < 1.0


async def check_verify_command(kind: str, processes: Processes) -> None:
    ran = await run(processes, "ledger", "verify", "--format", "json")
    assert ran.status == 0, (ran.err, ran.out)
    found = json.loads(ran.out)
    show(
        kind,
        f"ledger verify of {found['records']} charged records: {ran.seconds:.1f} s"
        f" ({ran.processor_seconds:.1f} of a processor), {ran.memory_mb:.0f} MB",
    )
    assert ran.memory_mb < 250


async def no_keys() -> Iterable[tuple[str, str | None]]:
    return ()


async def longest_pauses(work: Awaitable[object]) -> list[float]:
    """How much processor time other tasks of the event loop wait for: the ten longest."""
    pauses, task = [0.0], asyncio.ensure_future(work)
    while not task.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        pauses.append(time.thread_time() - before)
        if len(pauses) > 1000:
            pauses = sorted(pauses)[-10:]
    await task
    return sorted(pauses)[-10:]


async def check_verification_of_a_worker(kind: str, store: Store) -> None:
    """It verifies once an hour while the worker serves requests."""
    settings = VerificationSettings()
    verification = Verification(store, settings, worker="v", subjects=no_keys, rest=1.0)
    tune_process()  # as a worker does
    pauses = await longest_pauses(verification.run())
    full, recent = await read_verified(store)
    assert full.is_full
    assert full.is_balanced
    assert recent.is_balanced
    assert full.time < recent.time <= time.time()
    shown = ", ".join(f"{1000 * pause:.1f}" for pause in pauses)
    again = await verification.run()
    show(
        kind,
        f"verification in a worker: {recent.records} records in {recent.seconds} s, longest pauses"
        f" {shown} ms; the next one {again.seconds} s",
    )
    assert pauses[-1] < 0.025  # also of the garbage collector


# ── the test ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


async def fill(kind: str, store: Store) -> Spent:
    """Appends the month, first at a pace and then as fast as the store can, while workers fold."""
    spent, writer = Spent(), RecordWriter(store)
    records = spent.note(month())
    lags = await append_at_pace(store, writer, records)
    show(kind, f"{PACE}/s for {len(lags)} s: a lag of {max(lags):.1f} s at most, {lags[-1]:.1f} s")
    await eventually(lambda: is_folded(store))
    assert max(lags) < 10
    begins, before = time.monotonic(), spent.records
    await writer.write(records)
    count, seconds = spent.records - before, time.monotonic() - begins
    lag = await lag_seconds(store)
    await eventually(lambda: is_folded(store), seconds=3600)
    folded = count / (time.monotonic() - begins)
    show(
        kind,
        f"{count} more at {count / seconds:.0f}/s: then a lag of {lag:.1f} s; folded at"
        f" {folded:.0f}/s, all within {time.monotonic() - begins - seconds:.1f} s",
    )
    return spent


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.timeout(7200)
async def test_a_million_records_are_folded_in_time_reported_at_once_and_proved(
    tmp_path: Path, store_url: str | None
) -> None:
    kind = "sqlite" if store_url is None else "redis"
    async with run_processes(tmp_path, "http://127.0.0.1:9/v1", workers=2, redis_url=store_url) as (
        processes,
        client,
    ):
        async with open_store(processes.settings) as (store, _):
            spent = await fill(kind, store)
            await check_reports(kind, processes, client, spent)
            await check_verify_command(kind, processes)
            await check_verification_of_a_worker(kind, store)
        ran = await run(processes, "ledger", "export")
        show(kind, f"ledger export: {ran.seconds:.1f} s, {ran.memory_mb:.0f} MB")
        assert ran.out.count("\n") == spent.records
        await check_look_up(kind, client)
