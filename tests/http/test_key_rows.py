"""`GET /admin/keys` and `/admin/teams` for those who look: use of limits, search, state."""

from __future__ import annotations

from typing import Any

from tests.gateways import Client, InProcess

IMAGE = {"model": "dall-e-2", "size": "256x256"}
"""Costs 0.016 dollars."""


async def listed(client: Client, query: str, *, path: str = "/admin/keys") -> list[Any]:
    reply = await client.admin("GET", f"{path}?{query}")
    assert reply.status == 200, reply.body
    rows: list[Any] = reply.json["data"]
    return rows


async def names(client: Client, query: str) -> list[str]:
    return [row["name"] for row in await listed(client, query)]


async def test_rows_show_what_keys_and_teams_have_used(gateway: InProcess) -> None:
    client = gateway.client
    bob = await client.with_key(
        "bob",
        team="art",
        limits={"usd_per_day": 1, "images_per_day": {"max": 10, "mode": "shadow"}},
    )
    await client.with_key("idle")
    raised = {"scope": "key:bob", "limit": "usd_per_day", "amount": 2, "until": "2099-01-01"}
    await client.admin("POST", "/admin/limits/raise", {**raised, "reason": "a launch"})
    assert (await bob.ask(**IMAGE)).status == 200

    rows = {row["name"]: row for row in await listed(client, "with=limits")}
    used = {row["limit"]: row for row in rows["bob"]["used"]}
    day = dict(used["usd_per_day"])
    assert day.pop("resets_at") > 1_700_000_000
    assert day == {
        "limit": "usd_per_day",
        "scope": "key",
        "max": 3,
        "used": 0.016,
        "reserved": 0,
        "mode": "enforce",
    }
    images = used["images_per_day"]
    assert (images["max"], images["used"], images["mode"]) == (10, 1, "shadow")
    month = used["usd_per_month"]
    assert (month["max"], month["used"], month["mode"]) == (None, 0.016, None)
    (idle,) = rows["idle"]["used"]
    assert (idle["limit"], idle["used"]) == ("usd_per_month", 0)

    one = await client.admin("GET", f"/admin/keys/{bob.key_id}")
    assert one.json["used"] == rows["bob"]["used"]
    assert one.json["name"] == "bob"
    (team,) = await listed(client, "with=limits", path="/admin/teams")
    (of_team,) = team["used"]
    assert (team["name"], of_team["scope"], of_team["used"]) == ("art", "team", 0.016)
    assert all("used" not in row for row in await listed(client, ""))
    assert (await client.admin("GET", "/admin/keys/key_nobody")).error["code"] == "key_not_found"


async def test_keys_are_searched_and_listed_by_state(gateway: InProcess) -> None:
    client = gateway.client
    ann = await client.with_key("Ann", team="design", labels={"cost_center": "4711"})
    for number in range(3):
        await client.with_key(f"art-{number}", team="art")
    await client.with_key("soon", expires_at="1h")
    await client.admin("DELETE", f"/admin/keys/{ann.key_id}")

    assert await names(client, "search=DESIGN") == ["Ann"]
    assert await names(client, "search=4711&state=active") == []
    assert await names(client, "state=revoked") == ["Ann"]
    assert await names(client, "state=active&search=art") == ["art-0", "art-1", "art-2"]
    first = await client.admin("GET", "/admin/keys?search=art&limit=2&with=limits")
    assert [row["name"] for row in first.json["data"]] == ["art-0", "art-1"]
    assert first.json["has_more"] is True
    after = first.json["data"][-1]["id"]
    assert await names(client, f"search=art&limit=2&after={after}") == ["art-2"]
    show = await client.admin("GET", f"/admin/keys/{ann.key_id}")
    assert show.json["revoked_at"] > 0
    for query, param in (("state=gone", "state"), ("with=usage", "with"), ("serch=x", "serch")):
        reply = await client.admin("GET", f"/admin/keys?{query}")
        assert (reply.status, reply.error["param"]) == (400, param)
