"""`/admin/limits`: limits of keys, teams and everyone, and raises that end by themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.audit import Audit
from gateway.access.limit_values import MAX_PER_MINUTE
from gateway.access.raises import Raise, active_raises, raised_amounts
from gateway.calendar import Calendar
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from tests.gateways import Client, InProcess, Reply
from tests.http.conftest import OpenGateway
from tests.rows import each_row
from tests.scope_limits import set_limits
from tests.stores import TOPOLOGIES, usual_store

store_url = usual_store("sqlite", more=TOPOLOGIES)

LOW = {"quality": "low", "size": "1024x1024"}
TODAY = datetime.now(UTC).date()
LATER = (TODAY + timedelta(days=3)).isoformat()
SCOPES = ["key:alice", "team:art", "everyone"]


async def raise_limit(client: Client, scope: str, **fields: Any) -> Reply:
    given = {"limit": "requests_per_minute", "amount": 2, "until": LATER, "reason": "a campaign"}
    return await client.admin("POST", "/admin/limits/raise", {"scope": scope, **given, **fields})


async def limits_of(client: Client, scope: str) -> dict[str, dict[str, Any]]:
    reply = await client.admin("GET", f"/admin/limits?scope={scope}")
    assert reply.status == 200, reply.body
    return {row["limit"]: row for row in reply.json["data"]}


@pytest.mark.parametrize("scope", SCOPES)
async def test_limits_are_set_and_shown_with_what_is_used(gateway: InProcess, scope: str) -> None:
    alice = await gateway.client.with_key("alice", team="art")
    await alice.ask("before the limit", **LOW)
    limits = {
        "usd_per_month": {"max": 20.5, "warn_at": [0.9]},
        "requests_per_minute": {"max": 60, "mode": "shadow"},
        "concurrent_requests": 4,
    }
    await set_limits(gateway.client, scope, limits)
    await alice.ask("after it", **LOW)
    shown = await limits_of(gateway.client, scope)
    month = shown["usd_per_month"]
    assert (month["max"], month["raised"], month["raises"]) == (20.5, 0, [])
    assert (month["mode"], month["warn_at"]) == ("enforce", [0.9])
    spent = sum(record.cost_micros for record in await gateway.ledger())
    # A limit that is set in the middle of a month counts from its start.
    assert round(month["used"] * 1_000_000) == spent > 0
    assert month["reserved"] == 0
    first = datetime.now(UTC).date().replace(day=1) + timedelta(days=32)
    next_month = datetime(first.year, first.month, 1, tzinfo=UTC)
    assert month["resets_at"] == next_month.timestamp()
    assert shown["requests_per_minute"]["mode"] == "shadow"
    assert shown["concurrent_requests"]["resets_at"] is None

    await set_limits(gateway.client, scope, {"usd_per_month": None})
    assert "usd_per_month" not in await limits_of(gateway.client, scope)


@pytest.mark.parametrize("scope", SCOPES)
async def test_raises_add_up_and_hold_on_every_gateway_from_the_next_request_on(
    open_gateway: OpenGateway, scope: str
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", team="art")
        await set_limits(here.client, scope, {"images_per_day": 1})
        elsewhere = Client(there.client.url, there.client.session, alice.secret)
        assert (await elsewhere.ask("first", **LOW)).status == 200
        assert (await elsewhere.ask("second", **LOW)).status == 429
        for amount in (2, 3):
            reply = await raise_limit(here.client, scope, limit="images_per_day", amount=amount)
            assert reply.status == 201
        row = (await limits_of(there.client, scope))["images_per_day"]
        assert (row["max"], row["raised"]) == (6, 5)
        statuses = [(await elsewhere.ask(f"raised {i}", **LOW)).status for i in range(6)]
        assert statuses == [200] * 5 + [429]
        for raised in row["raises"]:
            ended = await here.client.admin("DELETE", f"/admin/limits/raise/{raised['id']}")
            assert ended.status == 204
        row = (await limits_of(there.client, scope))["images_per_day"]
        assert (row["max"], row["raised"], row["raises"]) == (1, 0, [])


async def test_a_raise_says_by_whom_why_and_until_when(gateway: InProcess) -> None:
    client = gateway.client
    await set_limits(client, "everyone", {"usd_per_month": 10})
    reply = await raise_limit(client, "everyone", limit="usd_per_month", amount=0.25)
    assert (reply.status, reply.json["scope"]) == (201, "everyone")
    (raised,) = (await limits_of(client, "everyone"))["usd_per_month"]["raises"]
    assert raised == {k: v for k, v in reply.json.items() if k != "scope"}
    assert raised["id"].startswith("raise_")
    assert {k: raised[k] for k in ("limit", "amount", "until", "reason", "by")} == {
        "limit": "usd_per_month",
        "amount": 0.25,
        "until": LATER,
        "reason": "a campaign",
        "by": "admin",
    }


GOOD = {
    "scope": "everyone",
    "limit": "usd_per_month",
    "amount": 1,
    "until": LATER,
    "reason": "a campaign",
}


@each_row(
    ("change", "param", "message"),
    [
        ({"amount": 0}, "amount", "a raise adds more than 0"),
        ({"amount": -5}, "amount", "0 or more"),
        ({"amount": 1e-9}, "amount", "an amount in US dollars"),
        ({"amount": "20"}, "amount", "an amount in US dollars"),
        ({"amount": 1e30}, "amount", "too large"),
        ({"amount": None}, "amount", "an amount in US dollars"),
        ({"amount": 4_503_599_627}, "amount", "the limit would be too large"),
        ({"limit": "usd_per_mnth"}, "limit", "Did you mean 'usd_per_month'?"),
        ({"limit": "usd_per_day"}, "limit", "Everyone has no limit 'usd_per_day'"),
        ({"limit": None}, "limit", "Missing 'limit'"),
        ({"until": (TODAY - timedelta(days=2)).isoformat()}, "until", "is in the past"),
        ({"until": "soon"}, "until", "expected a date such as 2026-12-31"),
        ({"until": "2026-02-30"}, "until", "expected a date such as 2026-12-31"),
        ({"until": 1798761600}, "until", "expected a date such as 2026-12-31"),
        ({"until": "9999-12-31"}, "until", "expected a date up to"),
        ({"reason": ""}, "reason", "says why"),
        ({"reason": "x" * 501}, "reason", "says why"),
        ({"reason": None}, "reason", "says why"),
        ({"scope": "teem:art"}, "scope", "expected everyone, team:NAME or key:NAME"),
        ({"scope": "team:"}, "scope", "expected everyone, team:NAME or key:NAME"),
        ({"scope": 5}, "scope", "expected everyone, team:NAME or key:NAME"),
        ({"reasn": "x"}, "reasn", "Did you mean 'reason'?"),
    ],
)
async def test_a_raise_that_is_none_is_refused(
    embedded: InProcess, change: dict[str, Any], param: str, message: str
) -> None:
    await set_limits(embedded.client, "everyone", {"usd_per_month": 10})
    reply = await embedded.client.admin("POST", "/admin/limits/raise", {**GOOD, **change})
    assert (reply.status, reply.error["param"]) == (400, param)
    assert message in reply.error["message"]
    assert (await limits_of(embedded.client, "everyone"))["usd_per_month"]["raised"] == 0


@each_row(
    ("body", "param", "message"),
    [
        ({"scope": "everyone"}, "limits", "limits by name"),
        ({"limits": {}}, "scope", "expected everyone"),
        ({"scope": "everyone", "limits": 5}, "limits", "Invalid 'limits'"),
        ({"scope": "everyone", "limits": {"x": 1}}, "limits", "Did you mean"),
        ({"scope": "everyone", "limit": {}}, "limit", "Did you mean 'limits'?"),
        ({"scope": "key:nobody", "limits": {}}, None, "no active key 'nobody'"),
        ({"scope": "team:nobody", "limits": {}}, None, "no team 'nobody'"),
    ],
)
async def test_a_wrong_change_of_limits_is_named(
    embedded: InProcess, body: dict[str, Any], param: str | None, message: str
) -> None:
    reply = await embedded.client.admin("PATCH", "/admin/limits", body)
    assert reply.status == (404 if param is None else 400)
    assert reply.error["param"] == param
    assert message in reply.error["message"]


async def test_limits_are_shown_for_one_scope(embedded: InProcess) -> None:
    twice = "?scope=everyone&scope=team:art"
    for query, param in (
        ("", "scope"),
        ("?scop=everyone", "scop"),
        ("?scope=", "scope"),
        (twice, "scope"),
    ):
        reply = await embedded.client.admin("GET", f"/admin/limits{query}")
        assert (reply.status, reply.error["param"]) == (400, param)
    gone = await embedded.client.admin("DELETE", "/admin/limits/raise/raise_none")
    assert (gone.status, gone.error["code"]) == (404, "raise_not_found")


async def test_a_key_does_not_open_the_administration(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    for method, path in (
        ("GET", "/admin/teams"),
        ("POST", "/admin/teams"),
        ("GET", "/admin/limits?scope=everyone"),
        ("PATCH", "/admin/limits"),
        ("POST", "/admin/limits/raise"),
        ("DELETE", "/admin/limits/raise/x"),
    ):
        refused = await alice.send(method, path, json={})
        assert (refused.status, refused.error["code"]) == (401, "invalid_admin_token")


# ── ends ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def set_clock(gateway: InProcess, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the worker's clock for keys, limits and raises."""
    services = gateway.gateway.services
    offset = [0.0]

    def clock() -> float:
        return time.time() + offset[0]

    changes = services.limit_changes
    for part in (services.keys, changes, changes._subjects):
        monkeypatch.setattr(part, "_clock", clock)

    def set_to(seconds_ahead: float) -> None:
        offset[0] = seconds_ahead

    return set_to


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_raise_ends_by_itself_at_the_end_of_its_day(
    gateway: InProcess, set_clock: Callable[[float], None], scope: str
) -> None:
    """No request, change or job is needed for it."""
    client = gateway.client
    alice = await client.with_key("alice", team="art")
    await set_limits(client, scope, {"images_per_day": 0})
    today = datetime.now(UTC).date()
    until = (today + timedelta(days=1)).isoformat()
    assert (
        await raise_limit(client, scope, limit="images_per_day", amount=5, until=until)
    ).status == 201
    assert (await alice.ask("raised", **LOW)).status == 200
    ends_at = Calendar().start_of(today + timedelta(days=2))
    set_clock(ends_at - time.time() - 30)
    assert (await alice.ask("in its last minute", **LOW)).status == 200
    set_clock(ends_at - time.time() + 30)
    refused = await alice.ask("after it", **LOW)
    assert (refused.status, refused.error["code"]) == (429, "insufficient_quota")
    row = (await limits_of(client, scope))["images_per_day"]
    assert (row["max"], row["raises"]) == (0, [])


async def test_raises_that_ended_long_ago_are_deleted(
    gateway: InProcess, set_clock: Callable[[float], None]
) -> None:
    client = gateway.client
    await set_limits(client, "everyone", {"images_per_day": 1})
    until = (datetime.now(UTC).date() + timedelta(days=60)).isoformat()
    await raise_limit(client, "everyone", limit="images_per_day", until=LATER)
    await raise_limit(client, "everyone", limit="images_per_day", until=until)
    changes = gateway.gateway.services.limit_changes
    assert await changes.forget_ended() == 0
    set_clock(45 * 86_400)
    assert await changes.forget_ended() == 1
    (left,) = (await limits_of(client, "everyone"))["images_per_day"]["raises"]
    assert left["until"] == until


async def test_a_team_that_is_made_again_has_no_raises(gateway: InProcess) -> None:
    client = gateway.client
    for _ in range(2):
        await set_limits(client, "team:art", {"images_per_day": 1})
        assert (await limits_of(client, "team:art"))["images_per_day"]["raised"] == 0
        assert (await raise_limit(client, "team:art", limit="images_per_day")).status == 201
        assert (await client.admin("DELETE", "/admin/teams/art")).status == 204


async def test_unreadable_raises_are_not_replaced(embedded: InProcess) -> None:
    """They may be those of a newer gateway on the same store."""
    store, newer = embedded.gateway.store, b'[{"id": "raise_1", "percent": 20}]'
    await set_limits(embedded.client, "everyone", {"images_per_day": 1})
    await execute(store, CompareAndSet((Write("raises", "everyone", newer, expected=None),)))
    refused = await raise_limit(embedded.client, "everyone", limit="images_per_day")
    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    assert await execute(store, Get("raises", "everyone")) == newer
    assert (await limits_of(embedded.client, "everyone"))["images_per_day"]["max"] == 1


async def test_a_scope_has_at_most_50_raises(embedded: InProcess) -> None:
    await set_limits(embedded.client, "everyone", {"images_per_day": 1})
    replies = [
        await raise_limit(embedded.client, "everyone", limit="images_per_day") for _ in range(51)
    ]
    assert [reply.status for reply in replies] == [201] * 50 + [400]


async def test_many_changes_at_once_are_all_made(embedded: InProcess) -> None:
    """Each begins another generation, so each would keep all others from being written."""
    client, scopes = embedded.client, ["everyone", *(f"team:t{number}" for number in range(9))]
    for scope in scopes:
        await set_limits(client, scope, {"usd_per_month": 10})
    raises = [client.admin("POST", "/admin/limits/raise", {**GOOD, "scope": s}) for s in scopes * 6]
    assert {reply.status for reply in await asyncio.gather(*raises)} == {201}
    for scope in scopes:
        assert (await limits_of(client, scope))["usd_per_month"]["max"] == 16


async def test_every_change_is_in_the_audit(gateway: InProcess) -> None:
    client = gateway.client
    await client.admin("POST", "/admin/teams", {"name": "art", "scope": "team"})
    await set_limits(client, "everyone", {"images_per_day": 1})
    raised = await raise_limit(client, "everyone", limit="images_per_day")
    await client.admin("DELETE", f"/admin/limits/raise/{raised.json['id']}")
    await client.admin("PATCH", "/admin/teams/art", {"scope": None})
    await client.admin("DELETE", "/admin/teams/art")
    entries = [entry.event for entry in await Audit(gateway.gateway.store).read()]
    assert [(event.action, event.object) for event in reversed(entries)] == [
        ("team.create", "team:art"),
        ("limits.change", "everyone"),
        ("limits.raise", "everyone"),
        ("limits.raise_end", "everyone"),
        ("team.change", "team:art"),
        ("team.remove", "team:art"),
    ]
    assert {(event.actor.via, event.actor.by, event.actor.address) for event in entries} == {
        ("api", "admin", "127.0.0.1")
    }
    changed = entries[1]
    assert (changed.before, changed.after) == ({"scope": "team"}, {"scope": None})


# ── any raises ──────────────────────────────────────────────────────────────────────────────

ZONES = [ZoneInfo(name) for name in ("UTC", "Europe/Berlin", "Asia/Kolkata", "Pacific/Apia")]
DAYS = st.dates(date(2026, 1, 1), date(2026, 12, 31))


@given(
    st.lists(st.tuples(DAYS, st.integers(1, MAX_PER_MINUTE)), max_size=6),
    DAYS,
    st.integers(0, 86_399),
    st.sampled_from(ZONES),
)
def test_exactly_the_raises_whose_last_day_is_not_over_add_up(
    raises: list[tuple[date, int]], today: date, second: int, zone: ZoneInfo
) -> None:
    calendar = Calendar(zone)
    now = calendar.start_of(today) + second
    today = calendar.date_at(now)  # a day may be shorter
    given_raises = [
        Raise(id=str(i), limit="images_per_minute", amount=Decimal(n), until=day, reason="x")
        for i, (day, n) in enumerate(raises)
    ]
    active, first_end = active_raises(given_raises, calendar, now)
    expected = [(day, n) for day, n in raises if day >= today]
    assert raised_amounts(active).get("images_per_minute", 0) == sum(n for _, n in expected)
    # Until then nothing changes, and then something does.
    if expected:
        assert now < first_end
        assert len(active_raises(given_raises, calendar, first_end - 1)[0]) == len(active)
        assert len(active_raises(given_raises, calendar, first_end)[0]) < len(active)
    else:
        assert first_end == float("inf")
