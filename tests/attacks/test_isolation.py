"""Isolation: what one key's images, requests and identity show to another key.

With the scope `global` a hit reveals that the same request was made before; that is documented. All
other rows reveal nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import pytest_asyncio

from tests.gateways import Client, Reply, make_settings, run_gateway, run_upstream
from tests.http.conftest import Shared
from tests.redis_server import emptied
from tests.rows import each_row

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWNER = "owner"

KEYS: dict[str, dict[str, Any]] = {
    **{f"{OWNER} {scope}": {"team": "art", "scope": scope} for scope in ("global", "team", "key")},
    **{f"mate {scope}": {"team": "art", "scope": scope} for scope in ("global", "team", "key")},
    **{f"other {scope}": {"team": "ads", "scope": scope} for scope in ("global", "team", "key")},
    **{f"alone {scope}": {"scope": scope} for scope in ("global", "team", "key")},
}


@dataclass(frozen=True)
class Tenants:
    """A gateway with keys of every scope."""

    shared: Shared
    clients: dict[str, Client]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "redis"])
async def tenants(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Tenants]:
    url = None
    if request.param == "redis":
        url = emptied(request.getfixturevalue("redis_server"))
    async with run_upstream() as upstream:
        settings = make_settings(tmp_path_factory.mktemp("tenants"), upstream.base_url, url)
        async with run_gateway(settings) as opened:
            clients = {
                name: await opened.client.with_key(name.replace(" ", "-"), **spec)
                for name, spec in KEYS.items()
            }
            yield Tenants(Shared(opened, upstream, clients[f"{OWNER} global"]), clients)


def _shares(owner: str, reader: str) -> bool:
    """Whether the reader may get the owner's images."""
    (_, owner_scope), (kind, reader_scope) = owner.split(), reader.split()
    if owner_scope != reader_scope:
        return False
    return owner_scope == "global" or (owner_scope == "team" and kind == "mate")


OWNERS = [name for name in KEYS if name.startswith(OWNER)]
READERS = [name for name in KEYS if not name.startswith(OWNER)]


@each_row(("owner", "reader"), list(product(OWNERS, READERS)))
async def test_a_key_gets_another_keys_image_only_within_its_scope(
    tenants: Tenants, owner: str, reader: str
) -> None:
    prompt = f"an otter of {owner} for {reader}"
    first = await tenants.clients[owner].ask(prompt)
    probe = await tenants.clients[reader].ask(prompt, headers={"Cache-Control": "only-if-cached"})
    dry = await tenants.clients[reader].ask(prompt, headers={"Prefer": "dry-run"})

    if _shares(owner, reader):
        assert (probe.status, probe.images) == (200, first.images)
        assert dry.json["hit"] is True
    else:
        assert probe.error["code"] == "only_if_cached"
        assert dry.json["hit"] is False


SECRET_FIELDS: dict[str, dict[str, Any]] = {
    "user": {"user": "ann@example.com"},
    "tags": {"headers": {"X-Gateway-Tags": "ann-secret-project"}},
    "an idempotency key": {"headers": {"Idempotency-Key": "ann-secret-key"}},
    "a retry count": {"headers": {"x-stainless-retry-count": "77"}},
    "a user agent": {"headers": {"User-Agent": "ann-secret-agent/1.0"}},
    "a cookie": {"headers": {"Cookie": "ann-secret-cookie"}},
    "a referrer": {"headers": {"Referer": "http://ann-secret.example/"}},
    "an organisation": {"headers": {"OpenAI-Organization": "ann-secret-org"}},
}


@each_row("stream", [False, True], ids=["plain", "stream"])
@each_row("name", SECRET_FIELDS)
async def test_a_hit_shows_nothing_of_the_request_that_bought_the_image(
    tenants: Tenants, name: str, stream: bool
) -> None:
    prompt = f"a private otter with {name} and {stream=}"
    await tenants.clients["owner global"].ask(prompt, **SECRET_FIELDS[name])
    hit = await tenants.clients["other global"].ask(prompt, stream=stream)

    assert hit.status == 200
    shown = hit.body + "\n".join(f"{n}: {v}" for n, v in hit.headers.items()).encode()
    for secret in (
        b"ann-secret",
        b"ann@",
        b"owner-global",
        tenants.clients["owner global"].key_id.encode(),
    ):
        assert secret not in shown


@pytest.mark.parametrize("scope", ["global", "team", "key"])
async def test_an_idempotency_key_belongs_to_its_gateway_key(tenants: Tenants, scope: str) -> None:
    headers = {"Idempotency-Key": f"the-same-{scope}"}
    owner, mate = tenants.clients[f"owner {scope}"], tenants.clients[f"mate {scope}"]
    await owner.ask(f"an otter with a {scope} key", headers=headers)
    other = await mate.ask(f"another otter with a {scope} key", headers=headers)

    assert other.status == 200
    assert "idempotent-replayed" not in other.headers


async def test_a_refusal_shows_nothing_of_the_request_that_was_refused(tenants: Tenants) -> None:
    prompt = "[[sim:moderation]] a refused otter"
    first = await tenants.clients["owner global"].ask(prompt, user="ann@example.com")
    second = await tenants.clients["other global"].ask(prompt)

    assert (first.status, second.status) == (400, 400)
    assert b"ann@" not in _everything(second)


def _everything(reply: Reply) -> bytes:
    return reply.body + repr(dict(reply.headers)).encode()


async def test_limits_and_spending_of_other_keys_are_never_shown(tenants: Tenants) -> None:
    client = tenants.shared.gateway.client
    poor = await client.with_key("poor", limits={"usd_per_day": 0.000001})
    refused = await poor.ask("an otter that costs too much")

    assert refused.status == 429
    for name in KEYS:
        assert name.replace(" ", "-").encode() not in _everything(refused)
