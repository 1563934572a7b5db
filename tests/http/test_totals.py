"""Totals over HTTP: what a gateway answers is in every report at once, and once."""

from __future__ import annotations

import asyncio
import time

from gateway.billing.totals import Bucket
from tests.gateways import Client, InProcess, Upstream, run_gateway
from tests.gateways import read_spent as read_counters
from tests.http.conftest import OpenGateway
from tests.waiting import eventually

DAY = 86_400.0
NAMES = ("requests", "hits", "images_bought", "images_served", "cost_micros", "saved_micros")


async def sums(
    gateway: InProcess, bucket: Bucket, *, by_user: bool = False, **dimensions: str
) -> dict[str, int]:
    """The sums over all rows with these dimensions."""
    now = time.time()
    rows = await gateway.gateway.totals.read(
        now - 2 * DAY, now + 2 * DAY, bucket=bucket, by_user=by_user
    )
    chosen = [row for row in rows if dimensions.items() <= row.dimensions.items()]
    return {name: sum(getattr(row.sums, name) for row in chosen) for name in NAMES}


async def test_each_outcome_is_in_the_totals_before_and_after_it_is_folded(
    gateway: InProcess, alice: Client, upstream: Upstream
) -> None:
    bought = await alice.ask("a pond", n=2, user="u1")
    await alice.ask("a pond", n=2, user="u2")  # a hit
    await alice.ask("a pond", n=3, user="u1")  # two of the cache, one bought
    async with upstream.hold():
        shared = [asyncio.create_task(alice.ask("a shared pond")) for _ in range(2)]
        await gateway.until_leased(4)
    await asyncio.gather(*shared)
    await alice.ask("a pond", n=100)  # refused
    await alice.ask("[[sim:status=400]] a pond")  # failed
    records = await gateway.ledger()
    cost = sum(record.cost_micros for record in records)

    whole = {
        "requests": 7,
        "hits": 1,
        "images_bought": 4,
        "images_served": 2 + 2 + 1,
        "cost_micros": cost,
        "saved_micros": sum(record.saved_micros for record in records),
    }
    assert bought.status == 200
    for _ in range(2):
        for bucket in ("quarter", "day_in_zone", "day_in_utc"):
            assert await sums(gateway, bucket) == whole
        by_user = await sums(gateway, "day_in_utc", by_user=True, user="u1")
        assert (by_user["requests"], by_user["images_bought"]) == (2, 3)
        while await gateway.gateway.totals.fold_page():
            continue
    spent = await read_counters(gateway.settings, alice.key_id)
    assert cost == spent.usd_micros > 0


async def test_a_second_gateway_reports_a_purchase_as_soon_as_it_is_settled(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key()
        await alice.ask("a pond")
        assert (await sums(there, "quarter", key="alice"))["images_bought"] == 1


async def test_the_job_folds_what_the_gateway_answers(gateway: InProcess, alice: Client) -> None:
    await alice.ask("a pond")
    assert await eventually(gateway.gateway.totals.folded_to)


async def test_a_restarted_gateway_goes_on_where_the_last_one_stopped(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here:
        alice = await here.client.with_key()
        await alice.ask("a pond")
        await here.gateway.totals.fold_page()
        folded_to = await here.gateway.totals.folded_to()
        await alice.ask("another pond")
    async with run_gateway(here.settings) as again:
        assert (await sums(again, "quarter"))["images_bought"] == 2
        assert await again.gateway.totals.folded_to() >= folded_to
