"""`hits_report_usage`: images that cost a key nothing count as no tokens in its answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.gateways import Client, InProcess, Reply, Upstream
from tests.rows import each_row
from tests.stores import usual_store

store_url = usual_store("redis")

STREAM = {"stream": True}


@pytest.fixture
async def quiet(gateway: InProcess) -> Client:
    """A key that hides the usage of hits."""
    return await gateway.client.with_key("quiet", hits_report_usage=False)


def usage_of(reply: Reply) -> dict[str, Any]:
    text = reply.body.decode()
    if not text.startswith("{"):
        text = text.rpartition("data: ")[2]
    usage: dict[str, Any] = json.loads(text)["usage"]
    return usage


def zeros(usage: Any) -> Any:
    """A usage of the same shape without tokens."""
    return {k: zeros(v) for k, v in usage.items()} if isinstance(usage, dict) else 0


@pytest.mark.parametrize("model", ["gpt-image-1.5", "gpt-image-2"])
async def test_a_hit_counts_as_no_tokens_in_the_same_shape(
    quiet: Client, alice: Client, model: str
) -> None:
    """Plain, streamed and replayed. A purchase, and other keys, see the usage."""
    once = {"Idempotency-Key": "once"}
    bought = await quiet.ask(model=model, headers=once)
    usage = usage_of(bought)
    assert usage["total_tokens"] > 0
    assert ("output_tokens_details" in usage) == (model == "gpt-image-2")
    replayed = await quiet.ask(model=model, headers=once)
    assert replayed.headers["idempotent-replayed"] == "true"
    hits = [await quiet.ask(model=model), await quiet.ask(model=model, **STREAM), replayed]
    for hit in hits:
        assert usage_of(hit) == zeros(usage)
        assert hit.headers["x-gateway-saved-usd"] == bought.headers["x-gateway-cost-usd"]
    for other in (await alice.ask(model=model), await alice.ask(model=model, **STREAM)):
        assert usage_of(other) == usage


async def test_a_streamed_purchase_reports_its_usage(quiet: Client) -> None:
    bought = await quiet.ask(**STREAM, partial_images=2)
    assert usage_of(bought)["total_tokens"] > 0
    assert usage_of(await quiet.ask()) == zeros(usage_of(bought))


async def test_of_a_partial_hit_only_what_was_bought_now_counts(
    quiet: Client, alice: Client
) -> None:
    one = usage_of(await alice.ask(quality="low"))
    both = await quiet.ask(quality="low", n=2)
    assert both.cache_status == "fwd=partial; stored"
    assert usage_of(both) == one
    doubled = usage_of(await alice.ask(quality="low", n=2))
    assert doubled["output_tokens"] == 2 * one["output_tokens"]


@pytest.mark.parametrize("body", [{}, STREAM], ids=["plain", "streamed"])
async def test_a_follower_counts_no_tokens(
    gateway: InProcess, quiet: Client, alice: Client, upstream: Upstream, body: dict[str, Any]
) -> None:
    async with upstream.hold() as gate:
        leading = asyncio.create_task(alice.ask(**body))
        await gate.until(1)
        following = asyncio.create_task(quiet.ask(**body))
        await gateway.until_leased(2)
    led, followed = await asyncio.gather(leading, following)
    assert usage_of(led)["total_tokens"] > 0
    assert usage_of(followed) == zeros(usage_of(led))


async def test_a_reload_is_a_purchase_and_reports_its_usage(quiet: Client) -> None:
    first = await quiet.ask()
    again = await quiet.ask(headers={"Cache-Control": "no-cache"})
    kept_out = await quiet.ask(headers={"Cache-Control": "no-store"})
    assert usage_of(first) == usage_of(again) == usage_of(kept_out)


async def test_a_model_that_is_billed_by_image_has_no_usage(quiet: Client) -> None:
    ask = {"model": "dall-e-2", "response_format": "b64_json"}
    for reply in (await quiet.ask(**ask), await quiet.ask(**ask)):
        assert "usage" not in reply.json


async def test_the_books_do_not_change(gateway: InProcess, quiet: Client, alice: Client) -> None:
    await quiet.ask()
    await quiet.ask()
    await alice.ask()
    bought, *hits = await gateway.ledger()
    assert [hit.saved_micros for hit in hits] == [bought.cost_micros] * 2
    assert hits[0].tokens == hits[1].tokens


async def test_the_setting_holds_from_the_next_request_on(
    gateway: InProcess, alice: Client
) -> None:
    """Default, PATCH, null; the record shows it where it is set."""
    usage = usage_of(await alice.ask())
    for value, shown in (
        (False, zeros(usage)),
        (True, usage),
        (False, zeros(usage)),
        (None, usage),
    ):
        path, body = f"/admin/keys/{alice.key_id}", {"hits_report_usage": value}
        changed = await alice.admin("PATCH", path, body)
        assert (changed.status, changed.json.get("hits_report_usage")) == (200, value)
        assert usage_of(await alice.ask()) == shown
    listed = await alice.admin("GET", "/admin/keys")
    assert "hits_report_usage" not in listed.json["data"][0]


@each_row("value", ["no", 0, [], {}])
async def test_another_value_is_refused(alice: Client, value: object) -> None:
    body = {"name": "bob", "hits_report_usage": value}
    refused = await alice.admin("POST", "/admin/keys", body)
    assert (refused.status, refused.error["param"]) == (400, "hits_report_usage")
