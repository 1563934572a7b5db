"""What the dashboard shows agrees with the ledger, to the micro-dollar.

Traffic of every outcome, of several keys, teams and models: 75 days that are written into the books
as a gateway writes them, with presumed charges and their corrections, and then real requests.
"""

from __future__ import annotations

import asyncio
import csv
import io
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.images import Record
from tests.gateways import Client, InProcess, Reply, Upstream, make_settings, run_gateway
from tests.month import RecordWriter, TrafficKey, total, traffic
from tests.waiting import eventually, generous

DAY = 86_400.0
PLACES = [("sqlite", "UTC"), ("redis", "Asia/Kolkata")]
KEYS = (
    TrafficKey("alice", "art", {"cost_center": "4711"}),
    TrafficKey("bob", "art", {}),
    TrafficKey("carol", "design", {"cost_center": "0815"}),
    TrafficKey("dave", None, {}),
)
PLENTY = {
    "usd_per_day": 1e6,
    "usd_per_week": 1e6,
    "usd_per_month": 1e6,
    "images_per_day": 10**6,
    "tokens_per_day": 10**9,
}
OUTCOMES = {"hit", "bought", "partial", "collapsed", "refused", "failed"}
AMOUNTS = ("requests", "hits", "images_bought", "images_served")


@pytest.fixture
def store_url(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "sqlite" else request.getfixturevalue("redis_url")


# ── the ledger ──────────────────────────────────────────────────────────────────────────────


class Expected:
    """Sums of ledger records."""

    def __init__(self, records: Sequence[Record], zone: str) -> None:
        self.records = records
        self._zone = ZoneInfo(zone)

    def day_of(self, record: Record) -> date:
        return datetime.fromtimestamp(record.time, self._zone).date()

    def days(self, first: date, last: date) -> list[Record]:
        return [record for record in self.records if first <= self.day_of(record) <= last]

    def begin_of(self, day: date) -> int:
        return int(datetime(day.year, day.month, day.day, tzinfo=self._zone).timestamp())

    @staticmethod
    def sums(records: Iterable[Record]) -> dict[str, int]:
        records = list(records)
        requests = [record for record in records if record.corrects is None]
        return {
            "requests": sum(record.count or 1 for record in requests),
            "hits": sum(record.count or 1 for record in requests if record.outcome == "hit"),
            "images_bought": total(records, "images"),
            "images_served": total(records, "images_served"),
            "cost_usd": total(records, "cost_micros"),
            "saved_usd": total(records, "saved_micros"),
        }


def micros(usd: float) -> int:
    return round(usd * 1_000_000)


def sums_of(row: Mapping[str, Any]) -> dict[str, int]:
    money = {name: micros(float(row[name])) for name in ("cost_usd", "saved_usd")}
    return {**{name: int(row[name]) for name in AMOUNTS}, **money}


def groups(records: Iterable[Record], name: Callable[[Record], Any]) -> dict[Any, list[Record]]:
    found: dict[Any, list[Record]] = {}
    for record in records:
        found.setdefault(name(record), []).append(record)
    return found


# ── what the page shows ─────────────────────────────────────────────────────────────────────


async def answered(client: Client, path: str) -> Reply:
    """On a busy machine, the store may be too slow for the first attempt."""
    async with generous():
        while (reply := await client.admin("GET", path)).status == 503:
            continue
    assert reply.status == 200, reply.body
    return reply


async def get(client: Client, path: str) -> Any:
    return (await answered(client, path)).json


async def read_overview(client: Client) -> Any:
    """With the days: they are null while they are read for the first time."""
    found = await get(client, "/admin/overview")
    return found if found["days"] is not None else None


async def check_overview(client: Client, expected: Expected, today: date) -> None:
    found = await eventually(lambda: read_overview(client))
    days = [today - timedelta(days=ago) for ago in reversed(range(30))]
    assert [day["from"] for day in found["days"]] == [expected.begin_of(day) for day in days]
    assert [sums_of(row) for row in found["days"]] == [
        expected.sums(expected.days(day, day)) for day in days
    ]
    first = today.replace(day=1)
    before = first - timedelta(days=1)
    spans = {
        "today_usd": (today, today),
        "week_usd": (today - timedelta(days=today.weekday()), today),
        "month_usd": (first, today),
        "previous_month_usd": (before.replace(day=1), before),
    }
    spend = found["spend"]
    for name, span in spans.items():
        assert micros(spend[name]) == total(expected.days(*span), "cost_micros"), name
    assert micros(spend["saved_month_usd"]) == total(expected.days(first, today), "saved_micros")
    assert spend["reserved_usd"] == 0
    assert (spend["month_from"], spend["month_to"]) == (
        expected.begin_of(first),
        expected.begin_of((first + timedelta(days=32)).replace(day=1)),
    )
    month = spend["month_to"] - spend["month_from"]
    elapsed = max(DAY, found["now"] - spend["month_from"])
    forecast = int(micros(spend["month_usd"]) * month / elapsed)
    assert abs(micros(spend["month_forecast_usd"]) - forecast) <= 1
    recent = expected.days(days[0], today)
    served, bought = total(recent, "images_served"), total(recent, "images")
    assert found["hit_ratio"] == served / (served + bought)
    for field in ("key", "team", "model"):
        of = groups(recent, lambda record, name=field: getattr(record, name))  # type: ignore[misc]
        of.pop(None, None)
        ranked = sorted(
            (
                (total(group, "cost_micros"), total(group, "saved_micros"), name)
                for name, group in of.items()
            ),
            key=lambda one: (-one[0], -one[1], one[2]),
        )
        shown = found["top"][f"{field}s"]
        assert [(micros(o["cost_usd"]), micros(o["saved_usd"]), o["name"]) for o in shown] == [
            one for one in ranked[:5] if one[0] or one[1]
        ], field


async def check_usage(client: Client, expected: Expected, today: date) -> None:
    """In JSON and CSV, by each dimension of the page."""
    first = today - timedelta(days=60)
    records = expected.days(first, today)
    names: Mapping[str, Callable[[Record], Any]] = {
        "key": lambda r: r.key,
        "team": lambda r: r.team,
        "model": lambda r: r.model,
        "user": lambda r: r.user,
        "size": lambda r: r.size,
        "quality": lambda r: r.quality,
    }
    for dimension, name in names.items():
        # By user, records without a charge are known for 30 days.
        since = today - timedelta(days=29) if dimension == "user" else first
        wanted = {
            group: expected.sums(of)
            for group, of in groups(
                (r for r in records if expected.day_of(r) >= since), name
            ).items()
        }
        path = f"/admin/usage?since={since}&group_by={dimension}"
        rows = (await get(client, path))["usage"]
        assert {row[dimension]: sums_of(row) for row in rows} == wanted, dimension
        text = (await answered(client, f"{path}&format=csv")).body.decode()
        cells = csv.DictReader(io.StringIO(text))
        # A quote keeps spreadsheets from computing a user such as `=1+1`.
        named = {row[dimension].removeprefix("'") or None: sums_of(row) for row in cells}
        assert named == wanted, dimension
    rows = (await get(client, f"/admin/usage?since={first}&bucket_width=1d"))["usage"]
    by_day = {expected.begin_of(day): of for day, of in groups(records, expected.day_of).items()}
    assert {int(datetime.fromisoformat(row["from"]).timestamp()): sums_of(row) for row in rows} == {
        begin: expected.sums(of) for begin, of in by_day.items()
    }


def windows(expected: Expected, today: date) -> Iterator[tuple[str, Callable[[Record], int], date]]:
    def cost(record: Record) -> int:
        return record.cost_micros

    yield "usd_per_day", cost, today
    yield "usd_per_week", cost, today - timedelta(days=today.weekday())
    yield "usd_per_month", cost, today.replace(day=1)
    yield "images_per_day", lambda record: record.images, today
    yield "tokens_per_day", lambda record: sum(record.tokens.values()), today


async def check_bars(client: Client, expected: Expected, today: date) -> None:
    for path, field in (("keys", "key"), ("teams", "team")):
        rows = (await get(client, f"/admin/{path}?with=limits"))["data"]
        assert len(rows) >= 2
        for row in rows:
            used = {one["limit"]: one for one in row["used"]}
            for limit, amount, since in windows(expected, today):
                if field == "team" and limit != "usd_per_month":
                    continue
                records = expected.days(since, today)
                wanted = sum(amount(r) for r in records if getattr(r, field) == row["name"])
                is_money = limit.startswith("usd")
                shown = used[limit]["used"]
                assert (micros(shown) if is_money else shown) == wanted, (row["name"], limit)
                assert used[limit]["reserved"] == 0


async def check_images(client: Client, bought: Sequence[Record]) -> None:
    """Every image that is kept has its part of the cost of its purchase."""
    found = await get(client, "/admin/images?limit=100")
    costs = Counter[str]()
    for image in found["data"]:
        costs[image["key"]] += micros(image["cost_usd"])
    wanted = {key: total(of, "cost_micros") for key, of in groups(bought, lambda r: r.key).items()}
    assert dict(costs) == wanted


# ── traffic ─────────────────────────────────────────────────────────────────────────────────


async def make_traffic(here: InProcess, upstream: Upstream, clients: Sequence[Client]) -> None:
    """Real requests of every outcome."""
    alice, bob, carol, dave = clients
    low = {"quality": "low", "size": "1024x1024"}
    await alice.ask("a pond", **low, user="ann")
    await bob.ask("a pond", **low)  # a hit
    await carol.ask("a pond", **low, n=3)  # partly
    await dave.ask("a lake", model="dall-e-2", size="256x256")
    async with upstream.hold():  # a follower
        before = here.leases.count
        asking = [asyncio.create_task(one.ask("a river", **low)) for one in (alice, carol)]
        await here.until_leased(before + 2)
    await asyncio.gather(*asking)
    await upstream.play("status=400")
    await bob.ask("a failure", **low)
    await upstream.play("reset;after=half")
    await carol.ask("a presumed charge", **low)
    for _ in range(3):
        await dave.ask("a refusal", n=99)
    await dave.ask("another", model="dall-e-2", size="256x256", user="eve")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("store_url", "zone"), PLACES, indirect=["store_url"])
async def test_page_data_agrees_with_the_ledger(
    tmp_path: Path, upstream: Upstream, store_url: str | None, zone: str
) -> None:
    settings = make_settings(
        tmp_path / "data", upstream.base_url, store_url, billing={"time_zone": zone}
    )
    async with run_gateway(settings) as here:
        clients = [
            await here.client.with_key(
                key.name, team=key.team, labels=dict(key.labels), limits=PLENTY
            )
            for key in KEYS
        ]
        keys = [replace(k, key_id=c.key_id) for k, c in zip(KEYS, clients, strict=True)]
        now = time.time()
        today = datetime.now(ZoneInfo(zone)).date()
        past = traffic(now - 75 * DAY, now - 60, seed=17, requests=1500, keys=keys)
        await RecordWriter(here.gateway.store).write(past)
        await check_all(here, zone, today, bought=())

        await make_traffic(here, upstream, clients)
        await here.gateway.tasks.drain()
        bought = [r for r in await records_of(here) if r.time >= now - 30]
        assert {record.outcome for record in bought} == OUTCOMES
        assert any("presumed" in record.flags for record in bought)
        kept = [r for r in bought if r.outcome in ("bought", "partial")]
        await check_all(here, zone, today, bought=kept)
        # With all of it in the totals, and read anew.
        while await here.gateway.totals.fold_page():
            continue
        here.gateway.services.recent_days._view = None
        await check_all(here, zone, today, bought=kept)


async def check_all(here: InProcess, zone: str, today: date, *, bought: Sequence[Record]) -> None:
    expected = Expected(await records_of(here), zone)
    await eventually(lambda: has_written(here))
    await check_overview(here.client, expected, today)
    await check_usage(here.client, expected, today)
    await check_bars(here.client, expected, today)
    await check_images(here.client, bought)


async def records_of(here: InProcess) -> list[Record]:
    """Those of the ledger as they are: refusals of each minute are one."""
    return [record for _, record in await here.ledger_lines()]


def has_written(here: InProcess) -> bool:
    return here.gateway.ledger.waiting == 0
