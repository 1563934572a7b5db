"""OpenAI's reports over HTTP, read by the admin client of the `openai` package, and FOCUS.

`billing/test_organization` and `billing/test_focus` have the queries and the lines.
"""

from __future__ import annotations

import asyncio
import csv
import gc
import io
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import aiohttp
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from gateway.billing import reports as module
from gateway.billing.focus import Charge
from gateway.billing.record_amounts import Sums
from gateway.errors import StoreUnavailable
from gateway.images import Record
from tests.billing.test_totals import append, bought
from tests.gateways import ADMIN_TOKEN, Client, InProcess
from tests.http.conftest import OpenGateway
from tests.rows import each_row

DAY = 86_400
USAGE = "/v1/organization/usage/images"
COSTS = "/v1/organization/costs"
FOCUS = "/admin/usage/focus.csv"


@pytest.fixture(autouse=True)
def _environment(package_environment: None) -> None:
    """For every test."""


@asynccontextmanager
async def reports(client: Client, base: str = "/v1") -> AsyncIterator[Any]:
    """The reports of the package's admin client, configured as a user would."""
    url = (client.admin_url or client.url) + base
    async with AsyncOpenAI(base_url=url, api_key="unused", admin_api_key=ADMIN_TOKEN) as opened:
        yield opened.admin.organization.usage


def today() -> int:
    now = int(time.time())
    return now - now % DAY


async def spend(gateway: InProcess) -> list[Record]:
    """Purchases of two keys and two models, a hit, a failure and a refusal; their records."""
    alice = await gateway.client.with_key("alice", team="art")
    bob = await gateway.client.with_key("bob")
    await alice.ask("a pond", n=2, quality="low", size="1024x1024", user="ann")
    await bob.ask("a pond", n=2, quality="low", size="1024x1024")  # a hit
    await bob.ask("a lake", model="dall-e-3", size="1024x1792", quality="hd")
    await bob.ask("[[sim:status=400]] a lake")
    await bob.ask("a lake", n=100)
    return await gateway.ledger()


def usd(records: list[Record], **fields: Any) -> float:
    chosen = [r for r in records if all(getattr(r, name) == v for name, v in fields.items())]
    return sum(record.cost_micros for record in chosen) / 1_000_000


def only(page: Any) -> Any:
    """The results of the one bucket of today."""
    (bucket,) = page.data
    assert (page.object, bucket.object, page.has_more, page.next_page) == (
        *("page", "bucket", False, None),
    )
    assert (bucket.start_time, bucket.end_time) == (today(), today() + DAY)
    return bucket.results


async def test_the_package_reads_usage_and_costs(gateway: InProcess) -> None:
    records = await spend(gateway)
    async with reports(gateway.client) as usage:
        (whole,) = only(await usage.images(start_time=today()))
        by_model = only(await usage.images(start_time=today(), group_by=["model", "size"]))
        of_alice = only(
            await usage.images(
                start_time=today(),
                group_by=["api_key_id", "user_id", "source"],
                project_ids=["art"],
                sources=["image.generation"],
                bucket_width="1d",
            )
        )
        (costs,) = only(await usage.costs(start_time=today()))
        items = only(await usage.costs(start_time=today(), group_by=["line_item", "project_id"]))

    assert whole.object == "organization.usage.images.result"
    # Bought were three images, and two came from the cache.
    assert (whole.images, whole.num_model_requests) == (5, 5)
    assert (whole.model, whole.size, whole.user_id, whole.project_id) == (None,) * 4
    assert whole.cost_usd == costs.amount.value == usd(records) > 0
    assert whole.saved_usd == sum(record.saved_micros for record in records) / 1_000_000 > 0
    shown = {(found.model, found.size): found.images for found in by_model if found.images}
    assert shown == {("gpt-image-2", "1024x1024"): 4, ("dall-e-3", "1024x1792"): 1}
    (found,) = of_alice
    assert (found.images, found.user_id, found.source) == (2, "ann", "image.generation")
    assert found.api_key_id == next(record.key_id for record in records if record.key == "alice")
    assert found.cost_usd == usd(records, key="alice")

    assert {found.object for found in items} == {"organization.costs.result"}
    assert {found.amount.currency for found in items} == {"usd"}
    assert round(sum(found.amount.value for found in items), 6) == costs.amount.value
    by_item = {found.line_item: found for found in items if found.amount.value}
    assert set(by_item) == {
        "gpt-image-2, input_text_tokens",
        "gpt-image-2, output_image_tokens",
        "dall-e-3, 1024x1792, hd",
    }
    hd = by_item["dall-e-3, 1024x1792, hd"]
    assert (hd.quantity, hd.quantity_unit, hd.amount.value) == (1, "images", 0.12)
    assert hd.project_id is None
    output = by_item["gpt-image-2, output_image_tokens"]
    assert (output.quantity_unit, output.project_id) == ("tokens", "art")
    assert output.quantity == sum(record.tokens.get("image_out", 0) for record in records)


async def test_the_synchronous_client_reads_costs(embedded: InProcess) -> None:
    def read() -> Any:
        url = f"{embedded.client.url}/v1"
        with OpenAI(base_url=url, admin_api_key=ADMIN_TOKEN) as opened:
            return opened.admin.organization.usage.costs(
                start_time=today(), api_key_ids=["key_x"], line_items=["m, input_text_tokens"]
            )

    assert only(await asyncio.to_thread(read)) == []


async def test_minutes_and_hours_have_the_same_sum_as_the_day(gateway: InProcess) -> None:
    records = await spend(gateway)
    since = int(time.time()) - 3_000
    async with reports(gateway.client) as usage:
        for width, limit in (("1m", 1440), ("1h", 168), ("1d", 31)):
            for groups in (["user_id"], ["model", "user_id"], []):
                page = await usage.images(
                    start_time=since, bucket_width=width, limit=limit, group_by=groups
                )
                found = [result for bucket in page.data for result in bucket.results]
                assert round(sum(result.cost_usd for result in found), 6) == usd(records)
                assert sum(result.num_model_requests for result in found) == 5


async def test_the_package_reads_all_pages_with_their_empty_buckets(gateway: InProcess) -> None:
    records = await spend(gateway)
    start = today() - 20 * DAY
    buckets: list[Any] = []
    async with reports(gateway.client) as usage:
        page = await usage.costs(start_time=start, limit=8, group_by=["line_item"])
        while True:
            buckets += page.data
            if not page.has_more:
                break
            page = await usage.costs(
                start_time=start, limit=8, group_by=["line_item"], page=page.next_page
            )
    assert [bucket.start_time for bucket in buckets] == list(range(start, today() + DAY, DAY))
    assert not any(bucket.results for bucket in buckets[:-1])
    value = sum(found.amount.value for found in buckets[-1].results)
    assert round(value, 6) == usd(records)


async def test_a_page_with_too_many_rows_has_fewer_buckets(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 3)
    days = [today() - day * DAY for day in range(10)]
    records = [bought(time=day + 5, key_id=f"k{key}") for day in days for key in (1, 2)]
    await append(embedded.gateway.store, records)
    found: list[Any] = []
    pages, token = 0, {}
    async with reports(embedded.client) as usage:
        while token is not None:
            page = await usage.images(
                start_time=days[-1], limit=31, group_by=["api_key_id"], **token
            )
            pages += 1
            found += [one for bucket in page.data for one in bucket.results]
            token = {"page": page.next_page} if page.has_more else None
        monkeypatch.setattr(module, "MAX_ROWS", 1)
        with pytest.raises(openai.BadRequestError) as raised:
            await usage.images(start_time=today(), group_by=["api_key_id"])
    assert sum(one.images for one in found) == len(records)
    assert pages == len(days)
    assert raised.value.param == "group_by"


@pytest.mark.long
@pytest.mark.timed
@pytest.mark.parametrize("path", [f"{COSTS}?group_by=user_id", f"{USAGE}?group_by=user_id"])
async def test_a_page_of_ten_thousand_results_lets_others_run(
    embedded: InProcess, path: str
) -> None:
    records = [
        bought(time=today() + 5, key_id=f"k{number % 10}", user=f"user-{number}")
        for number in range(9_900)
    ]
    await append(embedded.gateway.store, records)
    while await embedded.gateway.totals.fold_page():
        continue
    worst, begins = 0.0, 0.0

    async def tick() -> None:
        nonlocal worst, begins
        while True:
            begins = time.thread_time()  # of this thread: other programs do not count
            await asyncio.sleep(0)
            worst = max(worst, time.thread_time() - begins)

    gc.collect()
    gc.disable()  # of so many objects of a test it takes longer
    try:
        ticking = asyncio.create_task(tick())
        reply = await embedded.client.admin("GET", f"{path}&start_time={today()}")
        ticking.cancel()
    finally:
        gc.enable()
    (bucket,) = reply.json["data"]
    assert len(bucket["results"]) == len(records)
    assert worst < 0.08


async def test_a_page_token_of_another_query_is_an_error_of_the_package(
    embedded: InProcess,
) -> None:
    async with reports(embedded.client) as usage:
        page = await usage.images(start_time=today() - 9 * DAY, group_by=["model"])
        with pytest.raises(openai.BadRequestError) as raised:
            await usage.images(start_time=today() - 9 * DAY, group_by=["size"], page=page.next_page)
        with pytest.raises(openai.BadRequestError) as of_costs:
            await usage.costs(start_time=today() - 9 * DAY, page=page.next_page)
    assert raised.value.param == of_costs.value.param == "page"


async def test_every_spelling_of_the_base_url_reads_reports(embedded: InProcess) -> None:
    for base in ("/v1", "/v1/", "", "/", "//v1//"):
        async with reports(embedded.client, base) as usage:
            assert only(await usage.costs(start_time=today())) == []
            assert only(await usage.images(start_time=today())) == []


@pytest.mark.parametrize("path", [USAGE, COSTS, FOCUS])
async def test_reports_need_the_admin_token(embedded: InProcess, path: str) -> None:
    alice = await embedded.client.with_key()
    for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        reply = await alice.send("GET", f"{path}?start_time=1", headers=headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_admin_token")


@each_row(
    ("path", "query", "param"),
    [
        (USAGE, {}, "start_time"),
        (USAGE, {"start_time": "{old}", "bucket_width": "1m"}, "start_time"),
        (USAGE, {"start_time": "{old}", "bucket_width": "1h"}, "start_time"),
        (USAGE, {"start_time": "{old}", "bucket_width": "1h", "group_by": "user_id"}, "start_time"),
        (USAGE, {"start_time": "0"}, "start_time"),
        (USAGE, {"start_time": "{old}", "limit": "32"}, "limit"),
        (USAGE, {"start_time": "{old}", "group_by": "day"}, "group_by"),
        (USAGE, {"start_time": "{old}", "sources": "image.dream"}, "sources"),
        (USAGE, {"start_time": "{old}", "strat_time": "1"}, "strat_time"),
        (COSTS, {"start_time": "{old}", "bucket_width": "1h"}, "bucket_width"),
        (COSTS, {"start_time": "{old}", "end_time": "{old}"}, "end_time"),
        (COSTS, {"start_time": "{old}", "limit": "181"}, "limit"),
        (FOCUS, {}, "month"),
        (FOCUS, {"month": "2026-13"}, "month"),
        (FOCUS, {"month": "9999-01"}, "month"),
        (FOCUS, {"month": "2001-01"}, "month"),
        (FOCUS, {"month": "{month}", "version": "2.0"}, "version"),
        (FOCUS, {"month": "{month}", "mnth": "1"}, "mnth"),
    ],
)
async def test_a_wrong_parameter_is_400_and_named(
    embedded: InProcess, path: str, query: Mapping[str, str], param: str
) -> None:
    old, month = str(today() - 70 * DAY), f"{datetime.now(UTC):%Y-%m}"
    given = {name: value.format(old=old, month=month) for name, value in query.items()}
    admin = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    reply = await embedded.client.send("GET", path, headers=admin, params=given)
    assert (reply.status, reply.error["param"]) == (400, param), reply.body


# ── FOCUS ───────────────────────────────────────────────────────────────────────────────────


async def test_the_month_in_focus_adds_up_to_the_ledger(open_gateway: OpenGateway) -> None:
    async with open_gateway(billing={"time_zone": "Asia/Kolkata"}) as here:
        records = await spend(here)
        month = datetime.fromtimestamp(time.time() + 19_800, UTC)
        reply = await here.client.admin("GET", f"{FOCUS}?month={month:%Y-%m}")

    assert (reply.status, reply.headers["Content-Type"].partition(";")[0]) == (200, "text/csv")
    assert f'filename="focus-{month:%Y-%m}.csv"' in reply.headers["Content-Disposition"]
    lines = list(csv.DictReader(io.StringIO(reply.body.decode(), newline="")))
    cost = sum(Decimal(line["BilledCost"]) for line in lines)
    assert cost * 1_000_000 == sum(record.cost_micros for record in records) > 0
    assert {line["SubAccountId"] for line in lines} == {"art", ""}
    assert {line["ResourceName"] for line in lines} == {"alice", "bob"}
    assert {line["ProviderName"] for line in lines} == {"127.0.0.1"}
    assert {line["BillingPeriodStart"][-9:] for line in lines} == {"18:30:00Z"}


async def test_an_export_that_fails_on_the_way_does_not_look_complete(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = Charge(today(), today() + DAY, {"model": "m"}, Sums(cost_micros=1))

    async def fail(*_: object) -> AsyncIterator[Iterator[Charge]]:
        yield iter([charge])
        raise StoreUnavailable

    monkeypatch.setattr(embedded.gateway.services.focus, "_read_charges", fail)
    with pytest.raises(aiohttp.ClientPayloadError):
        await embedded.client.admin("GET", f"{FOCUS}?month={datetime.now(UTC):%Y-%m}")


async def test_an_export_that_cannot_begin_is_answered_with_an_error(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise StoreUnavailable

    monkeypatch.setattr(embedded.gateway.services.focus, "_read_days", fail)
    reply = await embedded.client.admin("GET", f"{FOCUS}?month={datetime.now(UTC):%Y-%m}")
    assert (reply.status, reply.error["code"]) == (503, "store_unavailable")


async def test_an_empty_month_in_focus_is_a_header(embedded: InProcess) -> None:
    path = f"{FOCUS}?month={datetime.now(UTC):%Y-%m}&version=1.0"
    whole, head = [await embedded.client.admin(method, path) for method in ("GET", "HEAD")]
    assert whole.body.startswith(b"BilledCost,BillingAccountId,")
    assert whole.body.count(b"\r\n") == 1
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
