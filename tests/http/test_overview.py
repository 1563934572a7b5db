"""`GET /admin/overview`: what it shows, and what it says needs attention."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from gateway.billing import alert_watch
from gateway.store.batch import execute
from gateway.store.commands import SetValue
from tests.gateways import Client, InProcess, Upstream
from tests.waiting import eventually

IMAGE = {"model": "dall-e-2", "size": "256x256"}
"""Costs 0.016 dollars. The model has retired."""


async def overview(client: Client) -> Any:
    reply = await client.admin("GET", "/admin/overview")
    assert reply.status == 200, reply.body
    return reply.json


def titles(found: Any) -> list[str]:
    return [one["title"] for one in found["attention"]]


def forget(here: InProcess) -> None:
    """The parts that are kept for some seconds are read again."""
    caches = here.gateway.services.overview_caches
    for kept in (caches.events, caches.expiring, caches.findings):
        kept._value = None


async def test_an_empty_gateway_has_every_field_and_nothing_to_do(gateway: InProcess) -> None:
    found = await overview(gateway.client)
    assert found["spend"]["today_usd"] == found["spend"]["previous_month_usd"] == 0
    assert found["spend"]["month_limit_usd"] is None
    assert (len(found["days"]), {day["requests"] for day in found["days"]}) == (30, {0})
    assert [day["to"] for day in found["days"]][:-1] == [day["from"] for day in found["days"]][1:]
    assert found["days"][-1]["from"] <= found["now"] < found["days"][-1]["to"]
    assert found["top"] == {"keys": [], "teams": [], "models": []}
    assert found["hit_ratio"] is None
    assert found["live"] == {"requests": 0, "purchases": 0, "queue": 0, "workers": 0}
    assert found["health"]["store"]["state"] == found["health"]["books"]["state"] == "ok"
    assert found["attention"] == []


@pytest.fixture
def frequent_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a webhook the watch looks at budgets every 30 s, and lists them every 15 s.

    It has done both at the start.
    """
    monkeypatch.setattr(alert_watch, "LOOK_KEPT_SECONDS", 0.1)
    monkeypatch.setattr(alert_watch, "SUBJECTS_SECONDS", 0.0)


@pytest.mark.usefixtures("frequent_looks")  # before the gateway starts
async def test_what_needs_attention_is_said_with_what_to_do(gateway: InProcess) -> None:
    client = gateway.client
    await client.admin(
        "PATCH", "/admin/limits", {"scope": "everyone", "limits": {"usd_per_month": 0.02}}
    )
    bob = await client.with_key("bob", team="art", limits={"usd_per_month": 0.016}, expires_at="2d")
    gone = await client.with_key("gone")
    assert (await bob.ask(**IMAGE)).status == 200
    body = {"limit": "usd_per_month", "amount": 5, "reason": "a launch\non Friday"}
    assert (await bob.send("POST", "/v1/usage/ask-for-more", json=body)).json["status"] == "kept"
    await client.admin("DELETE", f"/admin/keys/{gone.key_id}")
    assert (await gone.ask(**IMAGE)).status == 401
    await gateway.gateway.services.keys.uses.write()
    await eventually(lambda: has_seen(gateway, "bob"))
    forget(gateway)

    found = await overview(client)
    by_title = {one["title"]: one for one in found["attention"]}
    assert found["spend"]["month_limit_usd"] == 0.02
    assert found["spend"]["month_usd"] == found["spend"]["today_usd"] == 0.016
    assert found["spend"]["month_forecast_usd"] >= 0.016
    assert found["attention"][0]["level"] == "fault"
    used_up = by_title["A budget is used up"]
    assert used_up["text"].startswith("Key bob has used up its dollars per month: $0.02 of $0.02.")
    assert used_up["action"] == {
        "label": "Raise the limit",
        "view": "keys",
        "query": {"search": "bob", "limit": "usd_per_month"},
    }
    # From the third day of a month on, what was used so far is projected.
    nearly = by_title.get("A budget is nearly used") or by_title["A budget will not last"]
    assert nearly["text"].startswith(
        (
            "Everyone has used 80% of their dollars per month",
            "Everyone is projected to exceed their dollars per month",
        )
    )
    assert "a launch on Friday" in by_title["A key asks for more"]["text"]
    assert by_title["A revoked key is in use"]["action"]["query"] == {
        "search": "gone",
        "state": "revoked",
    }
    assert "expires in 48 hours" in by_title["Key bob expires soon"]["text"] or (
        "expires in 2 days" in by_title["Key bob expires soon"]["text"]
    )
    assert by_title["dall-e-2 has retired"]["action"]["query"]["model"] == "dall-e-2"

    # A raise answers both.
    raised = {"scope": "key:bob", "limit": "usd_per_month", "amount": 5, "until": "2099-01-01"}
    await client.admin("POST", "/admin/limits/raise", {**raised, "reason": "a launch"})
    forget(gateway)
    left = titles(await overview(client))
    assert "A budget is used up" not in left
    assert "A key asks for more" not in left


async def has_seen(gateway: InProcess, name: str) -> bool:
    """Whether the watch has looked after the last request."""
    watch = gateway.gateway.services.alert_watch
    watch._looked_at = None
    await watch.look()
    kept, _ = await gateway.gateway.services.kept_events.read(limit=100)
    kinds = {event.kind for event in kept}
    return {"limit_exhausted", "revoked_key_in_use"} <= kinds


async def test_upstream_and_books_show_in_health(
    gateway: InProcess, upstream: Upstream, alice: Client
) -> None:
    await upstream.play("status=401")
    assert (await alice.ask()).status >= 400
    found = await overview(gateway.client)
    (state,) = found["health"]["upstreams"]
    assert (state["name"], state["state"]) == ("default", "fault")
    assert state["last_failure_at"] <= time.time()
    assert "Purchases from default fail" in titles(found)

    verified = await gateway.gateway.verification.run()
    books = (await overview(gateway.client))["health"]["books"]
    assert books == {"state": "ok", "text": "Balanced.", "checked_at": verified.time}
    broken = {**verified.to_dict(), "differences": 1, "time": verified.time + 1}
    broken["shown"] = [
        {
            "book": "spent",
            "subject": "everyone",
            "window": "day 2026-11-29",
            "unit": "usd_micros",
            "expected": 5,
            "found": 4,
        }
    ]
    data = orjson.dumps(broken)
    await execute(gateway.gateway.store, SetValue("verification", "recent", data, None))
    found = await overview(gateway.client)
    assert found["health"]["books"]["state"] == "fault"
    assert "The books do not balance" in titles(found)


async def test_a_faulty_file_and_plain_text_need_attention(gateway: InProcess) -> None:
    gateway.gateway.policy.fault = "models.yaml: 'modles' is unknown."
    found = await overview(gateway.client)
    (one,) = found["attention"]
    assert one["title"] == "A configuration file is faulty"
    assert one["text"].endswith("models.yaml: 'modles' is unknown.")
