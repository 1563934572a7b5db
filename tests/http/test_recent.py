"""`GET /admin/requests` and `/admin/events`; `/admin/settings` and `/admin/doctor` of a worker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.billing import recent_requests
from tests.gateways import Client, InProcess, Upstream, run_processes, run_upstream
from tests.stores import usually_on

IMAGE = {"model": "dall-e-2", "size": "256x256"}
"""Costs 0.016 dollars."""


async def listed(client: Client, query: str = "", *, path: str = "/admin/requests") -> Any:
    reply = await client.admin("GET", f"{path}?{query}")
    assert reply.status == 200, reply.body
    return reply.json


async def test_requests_are_listed_newest_first_with_the_reason(
    gateway: InProcess, upstream: Upstream, alice: Client
) -> None:
    client = gateway.client
    poor = await client.with_key("poor", limits={"usd_per_day": 0}, team="art")
    bought = await alice.ask("a pond", **IMAGE, user="ann")
    assert (await alice.ask("a pond", **IMAGE)).status == 200
    await upstream.play("status=401")
    failed = await alice.ask("a lake", **IMAGE)
    assert failed.status >= 400
    for _ in range(3):
        assert (await poor.ask(**IMAGE)).status == 429
    assert (await alice.ask(**IMAGE, n=99)).status == 400
    await gateway.gateway.ledger.write()

    found = await listed(client)
    assert found["after"] is None
    rows = {(row["outcome"], row["reason"]): row for row in found["data"]}
    first = rows["bought", None]
    assert first["id"] == bought.headers["x-request-id"]
    assert (first["cost_usd"], first["user"], first["count"]) == (0.016, "ann", 1)
    assert first["upstream"] == "default"
    (hit,) = (row for key, row in rows.items() if key[0] == "hit")
    assert (hit["saved_usd"], hit["cost_usd"]) == (0.016, 0)
    refused = rows["refused", "usd_per_day"]
    # Three refusals of a minute, or of two.
    assert refused["count"] in (1, 2, 3)
    assert sum(r["count"] for r in found["data"] if r["key"] == "poor") == 3
    assert refused["message"] == "Key poor has reached its limit of dollars per day."
    assert refused["team"] == "art"
    assert (
        rows["refused", "integer_above_max_value"]["message"] == "An integer exceeds its maximum."
    )
    (of_upstream,) = (row for row in found["data"] if row["outcome"] == "failed")
    assert of_upstream["id"] == failed.headers["x-request-id"]
    assert of_upstream["message"]

    # By the end of the minute they are in the ledger; the list is the same.
    await gateway.gateway.ledger.append_refusals(ends_minute=True)
    again = await listed(client)
    assert {row["record"] for row in again["data"]} == {row["record"] for row in found["data"]}
    times = [row["time"] for row in (await listed(client, "outcome=hit,bought,failed"))["data"]]
    assert times == sorted(times, reverse=True)
    assert len(times) == 3
    names = {row["key"] for row in (await listed(client, "outcome=refused&key=poor"))["data"]}
    assert names == {"poor"}
    assert (await listed(client, "model=dall-e-3"))["data"] == []
    assert (await listed(client, "since=2099-01-01"))["data"] == []
    for query, param in (("outcome=gone", "outcome"), ("after=x", "after"), ("kay=a", "kay")):
        reply = await client.admin("GET", f"/admin/requests?{query}")
        assert (reply.status, reply.error["param"]) == (400, param)


async def test_pages_of_requests_read_a_bounded_part_of_the_ledger(
    gateway: InProcess, alice: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_requests, "PAGE_RECORDS", 3)
    monkeypatch.setattr(recent_requests, "MAX_SCANNED", 6)
    monkeypatch.setattr(recent_requests, "MAX_SECONDS", 1e9)
    for number in range(10):
        assert (await alice.ask(f"pond {number // 5}", **IMAGE)).status == 200
    await gateway.gateway.ledger.write()
    ids: list[str] = []
    after: str | None = ""
    pages = 0
    while after is not None:
        more = f"&after={after}" if after else ""
        page = await listed(gateway.client, f"limit=4{more}")
        ids += [row["id"] for row in page["data"]]
        after, pages = page["after"], pages + 1
        assert len(page["data"]) <= 4
    assert len(ids) == len(set(ids)) == 10
    assert pages == 3
    first = await listed(gateway.client, "outcome=bought")
    assert (first["after"], len(first["data"])) != (None, 2)
    rest = await listed(gateway.client, f"outcome=bought&after={first['after']}")
    assert len(first["data"]) + len(rest["data"]) == 2


async def test_events_are_listed_newest_first(gateway: InProcess) -> None:
    client = gateway.client
    for name in ("one", "two"):
        key = await client.with_key(name, limits={"usd_per_month": 1}, team="art")
        body = {"limit": "usd_per_month", "amount": 5}
        asked = await key.send("POST", "/v1/usage/ask-for-more", json=body)
        assert asked.json["status"] == "kept"
    events = "/admin/events"
    found = await listed(client, path=events)
    assert [event["data"]["scope"] for event in found["data"]] == ["key:two", "key:one"]
    newest = found["data"][0]
    assert (newest["kind"], newest["team"]) == ("asked_for_more", "art")
    assert newest["text"].startswith("Key two asks for more dollars per month: $5.00 more.")
    first = await listed(client, "limit=1&kind=asked_for_more", path=events)
    second = await listed(client, f"limit=1&after={first['after']}", path=events)
    assert [*first["data"], *second["data"]] == found["data"]
    assert second["after"] is None
    assert (await listed(client, "kind=spike", path=events))["data"] == []
    for query in ("kind=gone", "after=x", "limit=501"):
        assert (await client.admin("GET", f"{events}?{query}")).status == 400


@usually_on("sqlite", "store_url")
async def test_a_worker_shows_its_settings_and_examines_itself(
    tmp_path: Path, store_url: str | None
) -> None:
    async with (
        run_upstream() as upstream,
        run_processes(tmp_path, upstream.base_url, redis_url=store_url) as (_, client),
    ):
        rows = (await client.admin("GET", "/admin/settings")).json["data"]
        shown = {row["key"]: row for row in rows}
        assert shown["upstream.api_key"]["value"] == "***"
        assert shown["server.admin_token"]["value"] == "***"
        assert shown["billing.time_zone"] == {
            "key": "billing.time_zone",
            "value": "UTC",
            "source": "default",
            "origin": None,
        }
        replies = await asyncio.gather(
            *(client.admin("POST", "/admin/doctor") for _ in range(3)),
            client.admin("GET", "/healthz"),
        )
        assert {reply.status for reply in replies} == {200}
        findings = {row["check"]: row for row in replies[0].json["data"]}
        assert findings["upstream"]["level"] == "ok"
        assert findings["store"]["level"] == "ok"
        # The port was chosen at the start, so there is no address to fetch from.
        assert findings["own link"]["level"] == "warning"
        assert findings["configuration"]["level"] == "ok"
        for secret in ("sk-upstream-secret", "an-admin-token"):
            assert all(secret.encode() not in reply.body for reply in replies)
            assert secret not in str(rows)
        overview = (await client.admin("GET", "/admin/overview")).json
        assert overview["live"]["workers"] >= 1
        assert overview["live"]["requests"] >= 0
