"""Teams over HTTP: made, changed, removed, and what follows from them for their keys."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import pytest

from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Get, Write
from tests.gateways import Client, InProcess
from tests.http.conftest import OpenGateway
from tests.rows import each_row
from tests.stores import usual_store

store_url = usual_store("redis")

LOW = {"quality": "low", "size": "1024x1024"}
MINI = "gpt-image-1-mini"


async def make_team(client: Client, name: str = "art", **fields: Any) -> dict[str, Any]:
    reply = await client.admin("POST", "/admin/teams", {"name": name, **fields})
    assert reply.status == 201, reply.body
    found: dict[str, Any] = reply.json
    return found


async def test_a_team_is_made_shown_changed_and_removed(gateway: InProcess) -> None:
    client = gateway.client
    fields = {
        "limits": {"usd_per_month": 20.5, "images_per_day": {"max": 9, "mode": "shadow"}},
        "models": ["gpt-image-1"],
        "scope": "team",
        "labels": {"cost_center": "4711"},
    }
    made = await make_team(client, **fields)
    shown = {**fields, "name": "art", "keys": 0, "created_at": made["created_at"]}
    shown["limits"] = {
        "usd_per_month": 20.5,
        "images_per_day": {"max": 9, "mode": "shadow", "warn_at": [0.5, 0.8, 1.0]},
    }
    assert made == shown
    assert (await client.admin("GET", "/admin/teams/art")).json == shown
    assert (await client.admin("GET", "/admin/teams")).json == {"data": [shown]}

    changes = {
        "limits": {"usd_per_month": None, "images_per_day": 10, "tokens_per_day": 5},
        "labels": {"floor": "3"},
        "models": None,
    }
    changed = await client.admin("PATCH", "/admin/teams/art", changes)
    assert (changed.status, changed.json["labels"]) == (200, {"cost_center": "4711", "floor": "3"})
    assert "models" not in changed.json
    # A number replaces the maximum alone: a limit in shadow mode does not begin to refuse.
    assert changed.json["limits"]["images_per_day"]["mode"] == "shadow"
    assert changed.json["limits"]["images_per_day"]["max"] == 10
    assert changed.json["limits"]["tokens_per_day"] == 5
    assert "usd_per_month" not in changed.json["limits"]

    assert (await client.admin("DELETE", "/admin/teams/art")).status == 204
    gone = await client.admin("GET", "/admin/teams/art")
    assert (gone.status, gone.error["code"]) == (404, "team_not_found")
    assert (await client.admin("DELETE", "/admin/teams/art")).status == 404
    assert (await client.admin("PATCH", "/admin/teams/art", {})).status == 404


async def test_a_team_exists_as_soon_as_an_active_key_names_it(gateway: InProcess) -> None:
    client = gateway.client
    key = await client.with_key("bob", team="art")
    shown = await client.admin("GET", "/admin/teams/art")
    assert (shown.status, shown.json) == (200, {"name": "art", "limits": {}, "keys": 1})
    listed = await client.admin("GET", "/admin/teams")
    assert [team["name"] for team in listed.json["data"]] == ["art"]
    changed = await client.admin("PATCH", "/admin/teams/art", {"scope": "team"})
    assert (changed.status, changed.json["scope"]) == (200, "team")

    refused = await client.admin("DELETE", "/admin/teams/art")
    assert (refused.status, refused.error["code"]) == (409, "team_has_keys")
    assert "'bob'" in refused.error["message"]
    assert (await client.admin("DELETE", f"/admin/keys/{key.key_id}")).status == 204
    assert (await client.admin("DELETE", "/admin/teams/art")).status == 204
    assert (await client.admin("GET", "/admin/teams")).json == {"data": []}


async def test_two_teams_do_not_have_one_name(embedded: InProcess) -> None:
    await make_team(embedded.client)
    again = await embedded.client.admin("POST", "/admin/teams", {"name": "art"})
    assert (again.status, again.error["code"]) == (409, "name_taken")


@pytest.mark.parametrize("name", ["a/b", "R&D".replace("&", "+"), "Grafik Süd", "a.b@c:d"])
async def test_every_name_that_a_key_may_have_is_reached_by_its_path(
    embedded: InProcess, name: str
) -> None:
    await make_team(embedded.client, name)
    path = f"/admin/teams/{quote(name, safe='')}"
    assert (await embedded.client.admin("GET", path)).json["name"] == name


@each_row(
    ("fields", "param", "message"),
    [
        ({"name": ""}, "name", "Invalid 'name'"),
        ({"name": "a|b"}, "name", "Invalid 'name'"),
        ({"name": ".."}, "name", "no URL can have it as a part of its path"),
        ({}, "name", "Invalid 'name': Field required."),
        ({"name": "a", "limit": {}}, "limit", "Did you mean 'limits'?"),
        ({"name": "a", "limits": {"usd_per_mnth": 1}}, "limits", "Did you mean 'usd_per_month'?"),
        ({"name": "a", "limits": {"usd_per_day": {}}}, "limits", "'max' is missing"),
        ({"name": "a", "limits": {"images_per_day": 0.5}}, "limits", "must be a whole number"),
        ({"name": "a", "limits": {"images_per_day": -1}}, "limits", "must be a whole number"),
        ({"name": "a", "limits": {"images_per_day": 2**60}}, "limits", "is too large"),
        ({"name": "a", "limits": {"usd_per_day": {"max": 1, "warn": 1}}}, "limits", "'warn_at'?"),
        ({"name": "a", "limits": []}, "limits", "Invalid 'limits'"),
        ({"name": "a", "models": ["gpt-image-11"]}, "models", "does not exist"),
        ({"name": "a", "models": []}, "models", "Invalid 'models'"),
        ({"name": "a", "scope": "mine"}, "scope", "Invalid 'scope'"),
        ({"name": "a", "labels": {"x": 1}}, "labels", "Invalid label 'x'"),
    ],
)
async def test_a_wrong_field_is_named(
    embedded: InProcess, fields: dict[str, Any], param: str, message: str
) -> None:
    reply = await embedded.client.admin("POST", "/admin/teams", fields)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert message in reply.error["message"]
    assert (await embedded.client.admin("GET", "/admin/teams")).json == {"data": []}


async def test_a_change_of_a_team_holds_on_every_gateway_from_the_next_request_on(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice", team="art")
        bob = Client(there.client.url, there.client.session, alice.secret, alice.key_id)
        for client in (alice, bob):
            assert (await client.ask("an otter", **LOW)).status == 200
        await make_team(here.client, models=[MINI])
        for client in (bob, alice):
            refused = await client.ask("an otter", **LOW)
            assert (refused.status, refused.error["code"]) == (403, "model_not_found")
        await here.client.admin("PATCH", "/admin/teams/art", {"models": None})
        limits = {"requests_per_minute": 0}
        await here.client.admin("PATCH", "/admin/limits", {"scope": "everyone", "limits": limits})
        for client in (bob, alice):
            refused = await client.ask("an otter", **LOW)
            assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
            assert "of everyone" in refused.error["message"]
        limits = {"requests_per_minute": None}
        await here.client.admin("PATCH", "/admin/limits", {"scope": "everyone", "limits": limits})
        assert (await bob.ask("an otter", **LOW)).status == 200


async def test_requests_are_admitted_while_other_teams_change_all_the_time(
    open_gateway: OpenGateway,
) -> None:
    """Each change begins another generation, and a request compares that of all teams."""
    async with open_gateway() as here, open_gateway() as there:
        alice = await here.client.with_key("alice")
        assert (await alice.ask("an otter", **LOW)).status == 200
        is_over = asyncio.Event()

        async def keep_changing(team: str) -> int:
            await make_team(there.client, team)
            count = 0
            while not is_over.is_set():
                count += 1
                limits = {"limits": {"usd_per_day": count}}
                await there.client.admin("PATCH", f"/admin/teams/{team}", limits)
            return count

        async def ask() -> set[int]:
            return {(await alice.ask("an otter", **LOW)).status for _ in range(12)}

        changing = [asyncio.create_task(keep_changing(f"t{number}")) for number in range(8)]
        statuses = await asyncio.gather(*(ask() for _ in range(5)))
        is_over.set()
        assert min(await asyncio.gather(*changing)) > 0
    assert set().union(*statuses) == {200}


async def test_a_key_may_use_the_models_that_it_and_its_team_may_use(
    embedded: InProcess,
) -> None:
    client = embedded.client
    await make_team(client, models=[MINI, "gpt-image-1"])
    key = await client.with_key("alice", team="art", models=["gpt-image-1", "dall-e-3"])
    listed = await key.send("GET", "/v1/models")
    assert [model["id"] for model in listed.json["data"]] == ["gpt-image-1"]
    assert (await key.ask(model="gpt-image-1", **LOW)).status == 200
    for model in (MINI, "dall-e-3"):
        refused = await key.ask(model=model)
        assert (refused.status, refused.error["code"]) == (403, "model_not_found")
    await client.admin("PATCH", f"/admin/keys/{key.key_id}", {"models": ["dall-e-3"]})
    assert (await key.send("GET", "/v1/models")).json["data"] == []


async def test_keys_have_the_cache_scope_of_their_team_unless_they_have_their_own(
    embedded: InProcess,
) -> None:
    client = embedded.client
    await make_team(client, "art", scope="team")
    keys = {
        "art1": await client.with_key("art1", team="art"),
        "art2": await client.with_key("art2", team="art"),
        "open": await client.with_key("open", team="art", scope="global"),
        "other": await client.with_key("other"),
    }
    hits = {name: "hit" in (await key.ask("x", **LOW)).cache_status for name, key in keys.items()}
    assert hits == {"art1": False, "art2": True, "open": False, "other": True}


async def test_records_have_the_labels_of_team_and_key(gateway: InProcess) -> None:
    client = gateway.client
    await make_team(client, labels={"cost_center": "4711", "env": "test"})
    key = await client.with_key("alice", team="art", labels={"env": "live"})
    await key.ask("an otter", **LOW)
    await key.ask("an otter", **LOW)
    await client.admin("PATCH", "/admin/teams/art", {"labels": {"cost_center": "12"}})
    await key.ask("an otter", **LOW)
    records = await gateway.ledger()
    assert [record.labels for record in records] == [
        {"cost_center": "4711", "env": "live"},
        {"cost_center": "4711", "env": "live"},
        {"cost_center": "12", "env": "live"},
    ]


async def test_nobody_buys_while_the_limits_of_the_team_are_unreadable(
    gateway: InProcess,
) -> None:
    """The record may have been damaged, or it may be another program's."""
    store, client = gateway.gateway.store, gateway.client
    await make_team(client)
    await make_team(client, "ads")
    alice = await client.with_key("alice", team="art")
    data = await execute(store, Get("teams", "art"))
    await execute(store, CompareAndSet((Write("teams", "art", b"[1, 2]", expected=data),)))
    refused = await alice.ask("an otter", **LOW)
    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    bob = await client.with_key("bob", team="ads")
    assert (await bob.ask("an otter", **LOW)).status == 200
    assert (await client.admin("GET", "/admin/teams/art")).status == 503
    names = [team["name"] for team in (await client.admin("GET", "/admin/teams")).json["data"]]
    assert names == ["ads", "art"]


async def test_a_team_whose_record_is_unreadable_can_be_removed_and_made_again(
    embedded: InProcess,
) -> None:
    store, client = embedded.gateway.store, embedded.client
    await execute(store, CompareAndSet((Write("teams", "art", b"[1, 2]", expected=None),)))
    assert (await client.admin("DELETE", "/admin/teams/art")).status == 204
    await make_team(client)
