"""Rotated secrets over HTTP: they hold in every worker from the next request on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.errors import StoreUnavailable
from tests.gateways import Client, InProcess
from tests.http.conftest import OpenGateway
from tests.scope_limits import set_limits
from tests.waiting import eventually


async def rotated(client: Client, *body: object) -> Client:
    reply = await client.admin("POST", f"/admin/keys/{client.key_id}/rotate", *body)
    assert reply.status == 201, reply.body
    assert reply.json["id"] == client.key_id
    return replace(client, secret=reply.json["key"])


async def statuses(*clients: Client) -> list[int]:
    return [(await client.ask("rotation")).status for client in clients]


async def test_a_rotation_holds_on_every_gateway_for_the_next_request(
    open_gateway: OpenGateway,
) -> None:
    async def until_refused(client: Client) -> None:
        async def is_refused() -> bool:
            return await statuses(client) == [401]

        await eventually(is_refused)  # another gateway learns of it within 100 ms

    async with open_gateway() as here, open_gateway() as there:
        first = await here.client.with_key("alice")
        elsewhere = replace(first, url=there.client.url)
        assert await statuses(first, elsewhere) == [200, 200]
        second = await rotated(first, {"overlap": "24h"})
        assert await statuses(first, elsewhere, second) == [200] * 3
        third = await rotated(first)
        new_elsewhere = replace(third, url=there.client.url)
        await until_refused(elsewhere)
        assert await statuses(first, elsewhere, second) == [401] * 3
        assert await statuses(third, new_elsewhere) == [200, 200]
        assert (await elsewhere.send("GET", "/v1/models")).status == 401
        assert {record.key_id for record in await here.ledger()} == {first.key_id}


async def test_a_wrong_rotation_is_refused_and_changes_nothing(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    path = f"/admin/keys/{alice.key_id}/rotate"
    for body, param in (
        ({"overlap": "1y"}, "overlap"),
        ({"overlap": -1}, "overlap"),
        ({"overlap": ""}, "overlap"),
        ({"overlaps": "1d"}, "overlaps"),
    ):
        refused = await alice.admin("POST", path, body)
        assert (refused.status, refused.error["param"]) == (400, param)
    assert (await alice.admin("POST", "/admin/keys/key_none/rotate")).status == 404
    assert (await alice.send("POST", path)).status == 401
    assert await statuses(alice) == [200]


async def test_a_null_overlap_is_none(embedded: InProcess) -> None:
    alice = await embedded.client.with_key("alice")
    await rotated(alice, {"overlap": None})
    assert await statuses(alice) == [401]


async def test_without_the_store_a_new_secret_does_not_escape_the_limits_of_everyone(
    embedded: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that lists the keys knows a secret before it has read the key's limits."""
    await set_limits(embedded.client, "everyone", {"usd_per_day": 0})
    alice = await embedded.client.with_key("alice")
    renewed = await rotated(alice, {"overlap": "1h"})
    assert await statuses(alice) == [429]
    await embedded.client.metrics()

    async def fail(commands: object) -> None:
        raise StoreUnavailable("The store is away.")

    with monkeypatch.context() as patch:
        patch.setattr(embedded.gateway.services.proxy._store, "execute", fail)
        assert await statuses(alice, renewed) == [503, 503]
