"""An SVG image of gpt-image-2.6 costs what both of its models used, and only its buyer pays."""

from __future__ import annotations

import asyncio
import csv
import io
import math
import time
from typing import Any

import pytest

from tests.gateways import ADMIN_TOKEN, InProcess, Reply, Upstream

MODEL = "gpt-image-2.6-flare"
SVG = {
    "model": MODEL,
    "output_format": "svg",
    "size": "1024x1024",
    "quality": "low",
    "svg": {"model": "gpt-5.6-sol", "reasoning": {"effort": "medium"}},
}
DAY = 86_400


def svg_micros(usage: dict[str, Any], *, text: int, out: int) -> int:
    return int(usage["input_tokens"] * text + usage["output_tokens"] * out)


async def read(gateway: InProcess, path: str) -> Reply:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    return await gateway.client.send("GET", path, headers=headers)


async def test_both_models_of_an_svg_are_charged_once_and_shown_to_all(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", team="art")
    bob = await gateway.client.with_key("bob", hits_report_usage=False)
    async with upstream.hold():
        flights = [asyncio.create_task(alice.ask("an otter", **SVG)) for _ in range(2)]
        await upstream.until_sent()
    replies = sorted(await asyncio.gather(*flights), key=lambda one: one.cache_status)
    collapsed, bought = replies
    hit, quiet = await alice.ask("an otter", **SVG), await bob.ask("an otter", **SVG)

    assert bought.cache_status == "fwd=miss; stored"
    assert collapsed.cache_status == "fwd=miss; collapsed"
    usage, svg = bought.json["usage"], bought.json["svg_usage"]
    assert svg["model"] == "gpt-5.6-sol"
    assert svg["reasoning_tokens"] > 0
    assert svg["total_tokens"] == svg["input_tokens"] + svg["output_tokens"]
    image = math.ceil(48 * 48 * (2_000_000 + 1024 * 1024) / 4_000_000)
    assert usage["output_tokens"] == pytest.approx(image, rel=0.03)
    paid = usage["input_tokens"] * 5 + usage["output_tokens"] * 30
    paid += svg_micros(svg, text=5, out=30)
    assert bought.headers["x-gateway-cost-usd"] == f"{paid / 1e6:.6f}"
    for free in (collapsed, hit):
        assert (free.json["usage"], free.json["svg_usage"]) == (usage, svg)
        assert free.headers["x-gateway-cost-usd"] == "0.000000"
        assert free.headers["x-gateway-saved-usd"] == bought.headers["x-gateway-cost-usd"]
    assert quiet.json["svg_usage"] == {**dict.fromkeys(svg, 0), "model": "gpt-5.6-sol"}
    assert len(await upstream.bodies()) == 1

    records = await gateway.ledger()
    (record,) = [one for one in records if one.outcome == "bought"]
    assert record.tokens["svg_text_in"] == svg["input_tokens"]
    assert record.tokens["svg_text_out"] == svg["output_tokens"]
    assert record.costs["svg_text_out"] == svg["output_tokens"] * 30
    assert sum(record.costs.values()) == record.cost_micros == paid
    assert [one.cost_micros for one in records if one is not record] == [0, 0, 0]

    found = await gateway.client.metrics()
    (tokens,) = [v for k, v in found.items() if "tokens_total" in k and 'kind="svg_text_out"' in k]
    assert tokens == svg["output_tokens"]
    today = int(time.time()) // DAY * DAY
    costs = await read(gateway, f"/v1/organization/costs?start_time={today}&group_by=line_item")
    items = {one["line_item"]: one for one in costs.json["data"][0]["results"]}
    item = items[f"{MODEL}, svg_output_text_tokens"]
    assert item["amount"]["value"] == pytest.approx(svg["output_tokens"] * 30 / 1e6)
    assert sum(one["amount"]["value"] for one in items.values()) == pytest.approx(paid / 1e6)
    usages = await read(gateway, f"/v1/organization/usage/images?start_time={today}")
    (whole,) = usages.json["data"][0]["results"]
    assert whole["output_tokens"] == usage["output_tokens"] + svg["output_tokens"]
    month = time.strftime("%Y-%m", time.gmtime())
    focus = await read(gateway, f"/admin/usage/focus.csv?month={month}")
    lines = list(csv.DictReader(io.StringIO(focus.body.decode())))
    meters = {line["SkuMeter"]: float(line["BilledCost"]) for line in lines}
    assert meters["svg output text tokens"] == pytest.approx(svg["output_tokens"] * 30 / 1e6)
    assert sum(meters.values()) == pytest.approx(paid / 1e6)
    what_if = await read(gateway, "/admin/usage?what_if=quality=high")
    (part,) = what_if.json["what_if"]["uncomputed"]
    assert part["reason"] == "of the model's tokens only a bound is known"


async def test_an_unknown_text_model_costs_the_worst_case_and_no_usage_the_estimate(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice")
    other = await alice.ask("a heron", **{**SVG, "svg": {"model": "quill-9"}})
    svg, usage = other.json["svg_usage"], other.json["usage"]
    paid = usage["input_tokens"] * 5 + usage["output_tokens"] * 30
    paid += svg_micros(svg, text=30, out=180)
    assert other.headers["x-gateway-cost-usd"] == f"{paid / 1e6:.6f}"

    none = await alice.ask("a heron [[sim:no-usage]]", **SVG)
    assert none.status == 200
    assert "svg_usage" not in none.json
    headers = {"Prefer": "dry-run", "Cache-Control": "no-cache"}
    estimated = await alice.ask("a heron [[sim:no-usage]]", headers=headers, **SVG)
    charged = float(none.headers["x-gateway-cost-usd"])
    assert charged == estimated.json["estimate_usd"] > 65_536 * 30 / 1e6
    records = [one for one in await gateway.ledger() if one.outcome == "bought"]
    assert [one.flags for one in records] == [("unknown_price",), ("no_usage",)]
    assert records[1].costs == {"estimated": records[1].cost_micros}
