"""A day of traffic in a few minutes: memory and rows reach a plateau, and every count is explained.

200,000 requests, of which fewer than 5 % buy, against a Redis of 64 MiB and against the embedded
store. Another number can be set by the environment variable `DAY_REQUESTS`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from gateway.billing.totals import Totals, TotalsSettings
from gateway.metrics import Metrics
from gateway.wiring.stores import DATABASE, open_store
from tests.attacks.test_soak import read_records, report
from tests.gateways import (
    USUAL,
    Client,
    Processes,
    Spent,
    Upstream,
    read_spent,
    run_processes,
    run_upstream,
)
from tests.redis_server import run_redis_server
from tests.waiting import eventually

MIB: Final = 1 << 20
REQUESTS: Final = int(os.environ.get("DAY_REQUESTS", "200000"))
CONNECTIONS: Final = 16
SAMPLES: Final = 20
REDIS_BYTES: Final = 64 * MIB
FREE_RECORDS_BYTES: Final = 4 * MIB
MAX_BYTES: Final = REDIS_BYTES * 15 // 16
"""Images yield to the books so that an eighth of Redis' memory is free, and take it for seconds."""
PURCHASE_BYTES: Final = 6 << 10
"""What a purchase may add for days: an image of some KB, its entry, record and closed journal."""
SLACK_BYTES: Final = MIB
POPULAR: Final = 50
"""Prompts that are asked for again and again."""
TAGS: Final = 10_000


@dataclass(frozen=True)
class Kind:
    """A kind of request, and the statuses that it may get."""

    name: str
    key: str
    share: float
    statuses: frozenset[int]
    is_popular: bool = True
    has_tags: bool = False
    has_idempotency_key: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    def request(self, number: int, chance: random.Random) -> tuple[dict[str, Any], dict[str, str]]:
        """A body and headers."""
        prompt = f"popular {chance.randrange(POPULAR)}" if self.is_popular else f"{number}"
        headers = {}
        if self.has_tags:
            tags = (f"tag-{chance.randrange(TAGS)}" for _ in range(2))
            headers["X-Gateway-Tags"] = ", ".join(tags)
        if self.has_idempotency_key:
            headers["Idempotency-Key"] = f"order-{number}"
        return {**USUAL, "prompt": prompt + self.fault, **self.fields}, headers


OK: Final = frozenset({200})
KINDS: Final = (
    Kind("hit", "alice", 0.70, OK),
    Kind("hit with tags", "alice", 0.05, OK, has_tags=True),
    Kind("hit with an idempotency key", "alice", 0.05, OK, has_idempotency_key=True),
    Kind("purchase", "alice", 0.030, OK, is_popular=False),
    Kind(
        "purchase with tags and an idempotency key",
        "alice",
        0.010,
        OK,
        is_popular=False,
        has_tags=True,
        has_idempotency_key=True,
    ),
    Kind(
        "streamed purchase",
        "alice",
        0.004,
        OK,
        is_popular=False,
        fields={"stream": True, "partial_images": 2},
    ),
    Kind(
        "blocked prompt",
        "alice",
        0.004,
        frozenset({400}),
        is_popular=False,
        fault="[[sim:moderation]]",
    ),
    Kind("invalid", "alice", 0.062, frozenset({400}), fields={"size": "7x7"}),
    Kind("over its rate", "bob", 0.06, frozenset({200, 429})),
    Kind(
        "over its budget",
        "carol",
        0.03,
        frozenset({429}),
        is_popular=False,
        has_tags=True,
        has_idempotency_key=True,
    ),
)
BUYING: Final = ("purchase", "purchase with tags and an idempotency key", "streamed purchase")
LIMITS: Final[Mapping[str, Mapping[str, float]]] = {
    "alice": {},
    "bob": {"requests_per_minute": 60},
    "carol": {"usd_per_day": 0.000001},
}


@dataclass(frozen=True)
class Sample:
    """What the store holds at a moment."""

    requests: int
    used_bytes: int
    rows: Mapping[str, int]

    def __str__(self) -> str:
        rows = " ".join(f"{name}={count}" for name, count in sorted(self.rows.items()))
        return f"{self.requests:7} requests  {self.used_bytes / MIB:6.1f} MiB  {rows}"


@dataclass
class Day:
    """A gateway with one worker, its clients, and what they got."""

    redis_url: str | None
    processes: Processes
    client: Client
    upstream: Upstream
    keys: Mapping[str, Client]
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)

    async def live(self, requests: int, *, seed: int = 13) -> None:
        """Sends the requests over some connections at once, and looks at the store meanwhile."""
        chance = random.Random(seed)
        kinds = chance.choices(KINDS, [kind.share for kind in KINDS], k=requests)
        numbered = iter(enumerate(kinds))
        started = time.monotonic()

        async def send_all() -> None:
            host, _, port = self.client.url.removeprefix("http://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            for number, kind in numbered:
                writer.write(self._pack(kind, number, chance))
                self.answers[kind.name, await read_reply(reader)] += 1
                if number % (requests // SAMPLES) == 0:
                    self.samples.append(await asyncio.to_thread(self.sample))
                    report(str(self.samples[-1]))
            writer.close()

        await asyncio.gather(*(send_all() for _ in range(CONNECTIONS)))
        seconds = time.monotonic() - started
        report(f"{requests} requests in {seconds:.0f} s, {requests / seconds:.0f}/s")

    def _pack(self, kind: Kind, number: int, chance: random.Random) -> bytes:
        fields, headers = kind.request(number, chance)
        body = json.dumps(fields).encode()
        lines = [
            "POST /v1/images/generations HTTP/1.1",
            "Host: gateway",
            f"Authorization: Bearer {self.keys[kind.key].secret}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def sample(self) -> Sample:
        rows, used_bytes = self._sample_redis() if self.redis_url else self._sample_sqlite()
        return Sample(self.answers.total(), used_bytes, rows)

    def _sample_redis(self) -> tuple[dict[str, int], int]:
        assert self.redis_url is not None
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            rows = Counter(kind_of_key(key) for key in client.scan_iter(count=1000))
            return dict(rows), client.info("memory")["used_memory"]

    def _sample_sqlite(self) -> tuple[dict[str, int], int]:
        path = self.processes.settings.store.data_dir / DATABASE
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            tables = db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            rows = {
                table: db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
                for (table,) in tables
            }
            page_count, free, size = (
                db.execute(f"PRAGMA {pragma}").fetchone()[0]
                for pragma in ("page_count", "freelist_count", "page_size")
            )
        return rows, (page_count - free) * size

    def sent(self, *kinds: str) -> int:
        """How many requests of these kinds were answered."""
        return sum(count for (kind, _), count in self.answers.items() if kind in kinds)


async def read_reply(reader: asyncio.StreamReader) -> int:
    """The status of an answer with a length or in chunks, which is read to its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    return int(head.split(maxsplit=2)[1])


def kind_of_key(key: str) -> str:
    """`igw:{books}:journal:…` is a `books:journal`."""
    parts = key.removeprefix("igw:").replace("{", "").replace("}", "").split(":")
    has_kinds = parts[0] in ("books", "value", "set", "lru", "bounded")
    return ":".join(parts[: 2 if has_kinds else 1])


@contextmanager
def run_store(kind: str, folder: Path) -> Iterator[str | None]:
    """A Redis of `REDIS_BYTES`, or None for the embedded store."""
    if kind == "sqlite":
        yield None
        return
    with run_redis_server(folder) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("maxmemory", REDIS_BYTES)
        yield url


@pytest.fixture(params=["sqlite", "redis"])
async def day(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Day]:
    options = {
        "billing": {"free_records_bytes": FREE_RECORDS_BYTES},
        "upstream": {"breaker": {"failures": 0}},
    }
    with run_store(request.param, tmp_path) as url:
        async with (
            run_upstream() as upstream,
            run_processes(
                tmp_path / "gateway", upstream.base_url, workers=1, redis_url=url, options=options
            ) as (processes, client),
        ):
            keys = {
                name: await client.with_key(name, limits=limits) for name, limits in LIMITS.items()
            }
            yield Day(url, processes, client, upstream, keys)


async def settled_spending(day: Day, key_id: str) -> Spent:
    """What the counters say of a key once nothing is reserved."""

    async def look() -> Spent | None:
        spent = await read_spent(day.processes.settings, key_id)
        return None if spent.reserved_micros or spent.reserved_images else spent

    return await eventually(look)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_day_of_traffic_fits_into_a_small_store(day: Day) -> None:
    for number in range(POPULAR):
        assert (await day.keys["alice"].ask(f"popular {number}")).status == 200
    await day.live(REQUESTS)

    for kind in KINDS:
        statuses = {status for name, status in day.answers if name == kind.name}
        assert statuses <= kind.statuses, kind.name
    assert day.answers.total() == REQUESTS
    assert day.sent(*BUYING) <= REQUESTS * 0.05
    await assert_money_agrees(day)
    await assert_every_request_is_counted(day)
    assert_plateau(day)


async def assert_money_agrees(day: Day) -> None:
    """The counters of each key are the sums of its charged records, one for each image bought."""
    bought = dict.fromkeys(LIMITS, 0)
    bought["alice"] = POPULAR + day.sent(*BUYING)
    spent = {name: await settled_spending(day, key.key_id) for name, key in day.keys.items()}
    records = await read_records(day.processes.settings)
    for name, key in day.keys.items():
        charged = [r for r in records if r.key_id == key.key_id and (r.cost_micros or r.images)]
        assert len(charged) == bought[name], name
        assert spent[name].usd_micros == sum(record.cost_micros for record in charged)
        assert spent[name].images == sum(record.images for record in charged) == bought[name]


async def assert_every_request_is_counted(day: Day) -> None:
    """The totals have every request, although most of the records have gone."""
    ok = {
        name: sum(day.answers[kind.name, 200] for kind in KINDS if kind.key == name)
        for name in LIMITS
    }
    blocked = day.sent("blocked prompt")
    bought = POPULAR + day.sent(*BUYING)
    hits = sum(ok.values()) - day.sent(*BUYING)
    expected = {"bought": bought, "hit": hits}
    rest = POPULAR + REQUESTS - bought - hits

    async def look() -> Counter[str]:
        async with open_store(day.processes.settings) as (store, _):
            totals = Totals(store, TotalsSettings(), worker="test", observer=Metrics().money)
            now = time.time()
            rows = await totals.read(now - 2 * 86_400, now + 86_400, bucket="day_in_utc")
        counted: Counter[str] = Counter()
        for row in rows:
            counted[row.dimensions["outcome"]] += row.sums.requests
        return counted

    # The refusals of a minute are appended when it is over.
    async def are_all_counted() -> Counter[str] | None:
        counted = await look()
        return counted if counted.total() == POPULAR + REQUESTS else None

    counted = await eventually(are_all_counted, seconds=120)
    report(f"totals {dict(counted)}")
    assert {name: counted[name] for name in expected} == expected
    assert counted["refused"] + counted["failed"] == rest
    assert counted["failed"] <= blocked


def assert_plateau(day: Day) -> None:
    """The store never comes near its end, and only charged records are kept for long."""
    end = day.sample()
    report(f"end  {end}")
    assert max(sample.used_bytes for sample in day.samples) < MAX_BYTES
    half = day.samples[len(day.samples) // 2]
    purchases = day.sent(*BUYING) / 2
    report(f"per purchase {(end.used_bytes - half.used_bytes) / purchases:.0f} bytes")
    assert end.used_bytes - half.used_bytes < purchases * PURCHASE_BYTES + SLACK_BYTES
