"""`last_used_at`: which requests count as a use of the key, and where it is shown."""

from __future__ import annotations

import time
from typing import Any

from gateway.access.key_spaces import Credential
from tests.gateways import Client, InProcess


async def listed(gateway: InProcess) -> dict[str, Any]:
    await gateway.gateway.services.keys.uses.write()
    reply = await gateway.client.admin("GET", "/admin/keys")
    return {key["name"]: key.get("last_used_at") for key in reply.json["data"]}


async def test_a_request_is_a_use_of_its_key_and_a_wrong_one_is_none(gateway: InProcess) -> None:
    clients: dict[str, Client] = {
        name: await gateway.client.with_key(name)
        for name in ("asks", "lists", "invalid", "revoked", "idle")
    }
    began = int(time.time()) // 60 * 60
    assert (await clients["asks"].ask()).status == 200
    assert (await clients["lists"].send("GET", "/v1/models")).status == 200
    assert (await clients["invalid"].ask("")).status == 400
    await clients["revoked"].admin("DELETE", f"/admin/keys/{clients['revoked'].key_id}")
    assert (await clients["revoked"].ask()).status == 401
    found = await listed(gateway)
    times = {name for name, at in found.items() if at is not None}
    assert times == {"asks", "lists", "invalid"}
    for name in times:
        assert found[name] % 60 == 0
        assert began <= found[name] <= time.time()


async def test_a_use_changes_no_record_of_a_key(gateway: InProcess) -> None:
    alice = await gateway.client.with_key("alice")
    await alice.ask("one")
    before = gateway.gateway.services.keys.find_known(Credential.of(alice.secret))
    await listed(gateway)
    await alice.ask("two")
    assert gateway.gateway.services.keys.find_known(Credential.of(alice.secret)) is before
