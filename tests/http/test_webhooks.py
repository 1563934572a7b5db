"""Events reach a real receiver once, however many gateways notice them, and after restarts.

The gateways share a store. The receiver is an HTTP server of the test.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import maintenance
from gateway.access import declared_keys, revoked_secrets
from gateway.access.policy import Policy, parse_policy
from gateway.billing import alert_watch
from gateway.calendar import UTC_CALENDAR
from gateway.store.turns import end_turn
from tests.catalogs import read_shipped
from tests.gateways import (
    CONFIG,
    Client,
    InProcess,
    PolicyFile,
    Upstream,
    make_settings,
    run_gateway,
)
from tests.rows import each_row
from tests.waiting import eventually
from tests.webhooks.receiver import Receiver, run_receiver

SECRET = "whsec_" + base64.b64encode(b"a secret of the receiver").decode()
MODEL = "gpt-image-1"
DAY = 86_400
DEAR = {"model": MODEL, "quality": "high", "size": "1024x1536", "n": 10}
"""About $2.50 a request."""


@dataclass(frozen=True)
class HookedPolicy(PolicyFile):
    """The shipped models, of which one retires tomorrow, and an `access.yaml`."""

    access: Mapping[str, Any] = field(default_factory=dict)

    def read_policy(self) -> Policy:
        models = read_shipped()
        models["models"][MODEL]["shutdown"] = UTC_CALENDAR.date_at(time.time()) + timedelta(days=1)
        return parse_policy(models, self.access, file="models.yaml", access_file="access.yaml")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with run_receiver() as opened:
        yield opened


@pytest.fixture
def is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that usually are seconds apart follow each other at once."""
    monkeypatch.setattr(maintenance, "LOOK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(alert_watch, "LOOK_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(alert_watch, "SUBJECTS_SECONDS", 0.0)
    monkeypatch.setattr(revoked_secrets, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(maintenance, "SEND_EVERY_SECONDS", 0.1)


def policy_of(*webhooks: Mapping[str, Any], **access: Any) -> HookedPolicy:
    return HookedPolicy(CONFIG / "models.yaml", {"webhooks": list(webhooks), **access})


def settings_of(folder: Path, upstream: Upstream, store_url: str | None, **sections: Any) -> Any:
    # The receiver is on a private address, over plain http.
    given = {"rehost": {"allow": ["127.0.0.1"]}, **sections}
    return make_settings(folder / "data", upstream.base_url, store_url, **given)


async def until_told(receiver: Receiver, *kinds: str) -> None:
    """Waits until the receiver has events of these kinds."""
    await eventually(lambda: set(kinds) <= set(receiver.kinds()))


# ── who is told what ────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def told_alice(
    tmp_path, upstream, receiver, is_quick
) -> AsyncIterator[tuple[InProcess, Client]]:
    """A gateway with a webhook, and a key with a budget of one image a day."""
    hook = {"url": receiver.hook, "events": ["limit_exhausted", "asked_for_more"]}
    settings = settings_of(tmp_path, upstream, None)
    async with run_gateway(settings, policy=policy_of(hook)) as gateway:
        yield gateway, await gateway.client.with_key("alice", limits={"images_per_day": 1})


async def test_an_event_says_what_was_used_and_until_when(told_alice, receiver):
    _, alice = told_alice
    await alice.ask("an otter", quality="low")
    await until_told(receiver, "limit_exhausted")
    (event,) = receiver.events
    data = event["data"]
    assert (data["scope"], data["limit"], data["mode"]) == (
        "key:alice",
        "images_per_day",
        "enforce",
    )
    assert (data["max"], data["used"], data["reserved"]) == (1, 1, 0)
    assert data["window"]["time_zone"] == "UTC"
    assert 0 < data["window"]["ends_at"] - time.time() <= DAY
    assert data["text"].startswith("Key alice has used up its images per day: 1 of 1 images.")
    assert [key["name"] for key in data["top"]["keys"]] == ["alice"]


async def raise_limit(client: Client, scope: str, *, amount: int) -> date:
    """Raises `images_per_day` until the end of the day that is returned."""
    today = UTC_CALENDAR.date_at(time.time())
    body = {
        "scope": scope,
        "limit": "images_per_day",
        "amount": amount,
        "until": today.isoformat(),
        "reason": "a launch",
    }
    reply = await client.admin("POST", "/admin/limits/raise", body)
    assert reply.status == 201, reply.body
    return today


@pytest.mark.parametrize("limit", ["images_per_minute", "concurrent_requests"])
async def test_a_rate_that_refuses_makes_no_event_and_stops_no_other(
    told_alice, receiver, upstream, limit
):
    gateway, alice = told_alice
    bob = await gateway.client.with_key("bob", limits={limit: 1})
    watch = gateway.gateway.services.alert_watch
    async with upstream.hold():
        first = asyncio.create_task(bob.ask("an otter", quality="low"))
        await upstream.until_sent()
        refused = await bob.ask("a seal", quality="low")
        assert refused.error["code"] == "rate_limit_exceeded"
        await eventually(lambda: not watch._refusing)
    assert (await first).status == 200
    await alice.ask("a walrus", quality="low")
    await until_told(receiver, "limit_exhausted")
    assert {event["data"]["scope"] for event in receiver.events} == {"key:alice"}


@pytest.mark.parametrize(
    ("mode", "status", "says"),
    [
        ("enforce", 429, "The purchase was refused."),
        ("shadow", 400, "Nothing is refused, because the limit is in shadow mode."),
    ],
)
async def test_a_purchase_that_does_not_fit_into_an_unused_budget_is_an_event(
    told_alice, receiver, upstream, mode, status, says
):
    gateway, _ = told_alice
    limits = {"usd_per_day": {"max": 1, "mode": mode}}
    bob = await gateway.client.with_key("bob", limits=limits)
    await upstream.play("moderation")
    assert (await bob.ask(**DEAR)).status == status
    await until_told(receiver, "limit_exhausted")
    (event,) = receiver.events
    assert (event["data"]["scope"], event["data"]["mode"]) == ("key:bob", mode)
    start = (
        "Key bob has too little of its dollars per day left for a purchase: $0.00 of $1.00 used. "
    )
    assert event["data"]["text"].startswith(start + says)


async def test_a_refusal_of_a_new_key_is_an_event_at_once(told_alice, receiver, monkeypatch):
    gateway, _ = told_alice
    watch = gateway.gateway.services.alert_watch
    monkeypatch.setattr(alert_watch, "SUBJECTS_SECONDS", 1e9)
    await eventually(lambda: watch._watched)
    bob = await gateway.client.with_key("bob", limits={"usd_per_day": 1})
    assert (await bob.ask(**DEAR)).status == 429
    await until_told(receiver, "limit_exhausted")
    (event,) = receiver.events
    assert event["data"]["scope"] == "key:bob"


async def test_a_limit_that_was_just_raised_is_not_judged_by_its_old_maximum(
    told_alice, receiver, monkeypatch
):
    gateway, alice = told_alice
    watch = gateway.gateway.services.alert_watch
    await eventually(lambda: "key:alice" in {each.scope for each in watch._watched})
    monkeypatch.setattr(alert_watch, "SUBJECTS_SECONDS", 1e9)
    await raise_limit(gateway.client, "key:alice", amount=1)
    assert (await alice.ask(quality="low", n=2)).status == 200
    await until_told(receiver, "limit_exhausted")
    (event,) = receiver.events
    assert (event["data"]["used"], event["data"]["max"]) == (2, 2)


async def test_a_window_is_judged_by_the_raises_of_its_time(told_alice, receiver, monkeypatch):
    """A raise that ends with a window still counted in it."""
    gateway, alice = told_alice
    bob = await gateway.client.with_key("bob", limits={"images_per_day": 1})
    today = await raise_limit(gateway.client, "key:bob", amount=3)
    assert (await bob.ask(quality="low", n=2)).status == 200
    watch = gateway.gateway.services.alert_watch
    # Only its look back is at another time.
    await end_turn(gateway.gateway.store, "alerts", "the test", after_seconds=60)
    await end_turn(gateway.gateway.store, "alerts_back", "the test", after_seconds=0.001)
    tomorrow = UTC_CALENDAR.start_of(today + timedelta(days=1))
    monkeypatch.setattr(watch, "_clock", lambda: tomorrow + 5.0)
    await alice.ask("a seal", quality="low")
    await watch.look_back()
    await until_told(receiver, "limit_exhausted")
    assert {event["data"]["scope"] for event in receiver.events} == {"key:alice"}


async def test_a_new_webhook_in_access_yaml_needs_no_restart(
    tmp_path, upstream, receiver, is_quick
):
    settings, limits = settings_of(tmp_path, upstream, None), {"images_per_day": 1}
    hook = {"url": receiver.hook, "secret": SECRET, "events": ["limit_exhausted"]}
    keys = [{"name": name, "secret": f"{name}-{'x' * 16}", "limits": limits} for name in "ab"]
    policy = policy_of(hook, keys=keys)
    async with run_receiver() as other, run_gateway(settings, policy=policy) as gateway:
        with capture_logs() as logs:
            for index, heard in enumerate((receiver, other)):
                client = replace(gateway.client, secret=keys[index]["secret"])
                assert (await client.ask(f"otter {index}", quality="low")).status == 200
                await until_told(heard, "limit_exhausted")
                policy.access["webhooks"] = [{"url": other.hook, "events": ["limit_exhausted"]}]
                gateway.gateway.policy.reload()
    told = [[event["data"]["scope"] for event in heard.events] for heard in (receiver, other)]
    # The event of the first key was sent before there was the second webhook.
    assert told == [["key:a"], ["key:b"]]
    assert "a-secret-path" not in repr(logs)
    assert SECRET not in repr(logs)


async def test_a_key_asks_for_more_once_in_a_window(told_alice, receiver):
    _, alice = told_alice
    await alice.ask("an otter", quality="low")
    body = {"limit": "images_per_day", "amount": 3, "reason": "<!channel>\nplease"}
    replies = [await alice.send("POST", "/v1/usage/ask-for-more", json=body) for _ in range(2)]
    assert [reply.json["status"] for reply in replies] == ["sent", "already_sent"]
    await until_told(receiver, "asked_for_more")
    (event,) = [event for event in receiver.events if event["type"] == "asked_for_more"]
    assert event["data"]["amount"] == 3
    assert event["data"]["reason"] == body["reason"]
    assert event["data"]["text"].splitlines()[0] == (
        "Key alice asks for more images per day: 3 images more. Reason: <!channel> please"
    )
    (state,) = event["data"]["limits"]
    assert (state["max"], state["used"]) == (1, 1)


@each_row(
    ("body", "param", "says"),
    [
        ({}, "limit", "requests_per_minute, images_per_minute"),
        ({"limit": "images_per_dya"}, "limit", "Did you mean 'images_per_day'?"),
        ({"limit": "usd_per_day"}, "limit", "a limit that this key has (images_per_day)"),
        ({"limit": "images_per_day", "amuont": 1}, "amuont", "Did you mean 'amount'?"),
        ({"limit": "images_per_day", "amount": 1.5}, "amount", "a positive whole number"),
        ({"limit": "images_per_day", "amount": 0}, "amount", "a positive whole number"),
        ({"limit": "images_per_day", "amount": -1}, "amount", "a positive whole number"),
        ({"limit": "images_per_day", "amount": True}, "amount", "a positive whole number"),
        ({"limit": "images_per_day", "amount": "3"}, "amount", "a positive whole number"),
        ({"limit": "images_per_day", "amount": 2**60}, "amount", "a positive whole number"),
        ({"limit": "images_per_day", "reason": "x" * 501}, "reason", "at most 500 characters"),
        ({"limit": "images_per_day", "reason": 7}, "reason", "at most 500 characters"),
    ],
)
async def test_a_wrong_request_for_more_names_the_parameter(told_alice, body, param, says):
    reply = await told_alice[1].send("POST", "/v1/usage/ask-for-more", json=body)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert says in reply.error["message"]


async def test_without_a_webhook_a_request_for_more_is_kept(gateway, alice):
    bob = await gateway.client.with_key("bob", limits={"usd_per_month": 1})
    body = {"limit": "usd_per_month", "amount": 0.5}
    reply = await bob.send("POST", "/v1/usage/ask-for-more", json=body)
    assert (reply.status, reply.json["status"]) == (200, "kept")
    reply = await bob.send("POST", "/v1/usage/ask-for-more", json=body)
    assert reply.json["status"] == "already_sent"


async def test_an_incorrect_key_cannot_ask_for_more(gateway):
    body = {"limit": "usd_per_month"}
    reply = await gateway.client.send("POST", "/v1/usage/ask-for-more", json=body)
    assert reply.status == 401


async def test_a_key_that_is_gone_from_access_yaml_is_a_revoked_key(
    tmp_path, upstream, store_url, receiver, is_quick, monkeypatch
):
    monkeypatch.setattr(maintenance, "RECORD_EVERY_SECONDS", 0.1)
    monkeypatch.setattr(declared_keys, "RECORD_EVERY_SECONDS", 0.1)
    settings = settings_of(tmp_path, upstream, store_url)
    hook = {"url": receiver.hook, "events": ["revoked_key_in_use"]}
    keys = [{"name": name, "secret": f"{name}-{'x' * 16}", "team": "art"} for name in "ab"]
    policy = policy_of(hook, keys=keys)
    async with run_gateway(settings, policy=policy) as gateway:
        await eventually(lambda: gateway.gateway.services.declared_keys._version)
    policy.access["keys"] = keys[1:]
    async with run_gateway(settings, policy=policy) as gateway:
        clients = [replace(gateway.client, secret=key["secret"]) for key in keys]

        async def is_told() -> bool:
            replies = [await client.send("GET", "/v1/models") for client in clients]
            assert [reply.status for reply in replies] == [401, 200]
            return bool(receiver.events)

        await eventually(is_told)
    (event,) = receiver.events
    assert (event["data"]["scope"], event["data"]["team"]) == ("key:a", "art")


async def test_a_secret_that_was_never_a_key_is_no_event(told_alice, receiver):
    gateway, alice = told_alice
    stranger = replace(alice, secret="gk-" + "x" * 43)
    assert (await stranger.ask()).status == 401
    assert await gateway.gateway.services.revoked_secrets.find() == []
