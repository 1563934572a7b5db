"""What `access.yaml` declares, over HTTP: keys, teams and everyone, and the file's reload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.access.policy import Policy, parse_policy
from gateway.configuration.files import read_config
from gateway.errors import StoreUnavailable
from tests.gateways import (
    CONFIG,
    Client,
    InProcess,
    PolicyFile,
    Upstream,
    make_settings,
    run_gateway,
)
from tests.stores import usual_store

store_url = usual_store("sqlite")

LOW = {"quality": "low", "size": "1024x1024"}
SECRET = "the-secret-of-the-web-shop"
MODELS = read_config(CONFIG / "models.yaml", {})
UNTIL = "2099-12-31"


def key(name: str = "web-shop", **fields: Any) -> dict[str, Any]:
    return {"name": name, "secret": SECRET, **fields}


@dataclass(frozen=True)
class DeclaringPolicy(PolicyFile):
    """The shipped models, and an `access.yaml` that a test changes."""

    access: dict[str, Any] = field(default_factory=dict)

    def read_policy(self) -> Policy:
        return parse_policy(
            MODELS, self.access, file="models.yaml", access_file="/etc/gateway/access.yaml"
        )


@dataclass
class Declaring:
    """A gateway, and the file that declares its keys."""

    gateway: InProcess
    policy: DeclaringPolicy

    @property
    def client(self) -> Client:
        return self.gateway.client

    @property
    def shop(self) -> Client:
        return replace(self.client, secret=SECRET)

    def reload(self, **access: Any) -> None:
        self.policy.access.clear()
        self.policy.access.update(access)
        self.gateway.gateway.policy.reload()


@asynccontextmanager
async def run_declaring(settings: Any, access: Mapping[str, Any]) -> AsyncIterator[Declaring]:
    policy = DeclaringPolicy(CONFIG / "models.yaml", dict(access))
    async with run_gateway(settings, policy=policy) as gateway:
        yield Declaring(gateway, policy)


@pytest.fixture
def settings(tmp_path: Path, upstream: Upstream, store_url: str | None) -> Any:
    return make_settings(tmp_path / "data", upstream.base_url, store_url)


async def set_limits(client: Client, scope: str, limits: Mapping[str, Any]) -> Any:
    body = {"scope": scope, "limits": limits}
    return await client.admin("PATCH", "/admin/limits", body)


async def test_a_declared_key_works_and_is_listed(settings: Any) -> None:
    async with run_declaring(settings, {"keys": [key(team="art")]}) as declaring:
        assert (await declaring.shop.ask(**LOW)).status == 200
        assert (await declaring.shop.send("GET", "/v1/models")).status == 200
        listed = (await declaring.client.admin("GET", "/admin/keys")).json["data"]
        teams = (await declaring.client.admin("GET", "/admin/teams")).json["data"]
        (record,) = await declaring.gateway.ledger()
    (shown,) = listed
    assert {k: shown[k] for k in ("name", "team", "prefix", "declared_in")} == {
        "name": "web-shop",
        "team": "art",
        "prefix": SECRET[:6],
        "declared_in": "access.yaml",
    }
    assert "created_at" not in shown
    assert SECRET not in str(listed)
    assert (record.key, record.key_id, record.team) == ("web-shop", shown["id"], "art")
    assert teams == [{"name": "art", "limits": {}, "keys": 1}]


async def test_a_key_that_is_gone_from_the_file_is_revoked(settings: Any) -> None:
    async with run_declaring(settings, {"keys": [key()]}) as declaring:
        assert (await declaring.shop.ask(**LOW)).status == 200
        declaring.reload(keys=[])
        for reply in (
            await declaring.shop.ask(**LOW),
            await declaring.shop.send("GET", "/v1/models"),
        ):
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert (await declaring.client.admin("GET", "/admin/keys")).json["data"] == []
        declaring.reload(keys=[key()])
        assert (await declaring.shop.ask(**LOW)).status == 200


async def test_a_key_keeps_its_counters_over_a_restart_and_a_new_secret(settings: Any) -> None:
    limits = {"images_per_day": 2}
    async with run_declaring(settings, {"keys": [key(limits=limits)]}) as declaring:
        assert (await declaring.shop.ask("one", **LOW)).status == 200
    another = {**key(limits=limits), "secret": "another-secret-of-it"}
    async with run_declaring(settings, {"keys": [another]}) as declaring:
        assert (await declaring.shop.ask("two", **LOW)).status == 401
        shop = replace(declaring.client, secret="another-secret-of-it")
        assert [(await shop.ask(f"{i}", **LOW)).status for i in range(2)] == [200, 429]


async def test_a_reload_holds_from_the_next_request_on(settings: Any) -> None:
    """Also for keys of the store, whose team or everyone the file declares."""
    async with run_declaring(settings, {"keys": [key(team="art")]}) as declaring:
        bob = await declaring.client.with_key("bob", team="art")
        for client in (declaring.shop, bob):
            assert (await client.ask("an otter", **LOW)).status == 200
        declaring.reload(keys=[key(team="art")], teams={"art": {"models": ["dall-e-3"]}})
        for client in (declaring.shop, bob):
            assert (await client.ask("an otter", **LOW)).error["code"] == "model_not_found"
        declaring.reload(keys=[key(team="art")], everyone={"limits": {"requests_per_minute": 0}})
        for client in (declaring.shop, bob):
            refused = await client.ask("an otter", **LOW)
            assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        declaring.reload(keys=[key(models=["dall-e-3"])])
        assert (await declaring.shop.ask("an otter", **LOW)).error["code"] == "model_not_found"
        assert (await bob.ask("an otter", **LOW)).status == 200


async def test_the_file_comes_before_what_the_store_has(settings: Any) -> None:
    async with run_declaring(settings, {"keys": [key(team="art")]}) as declaring:
        client = declaring.client
        await set_limits(client, "team:art", {"images_per_day": 0})
        await set_limits(client, "everyone", {"images_per_day": 0})
        assert (await declaring.shop.ask(**LOW)).status == 429
        declaring.reload(
            keys=[key(team="art")], teams={"art": None}, everyone={"limits": {"images_per_day": 1}}
        )
        assert (await declaring.shop.ask(**LOW)).status == 200
        # What the file stops to declare is the store's again.
        declaring.reload(keys=[key(team="art")])
        assert (await declaring.shop.ask("another", **LOW)).status == 429


async def test_the_api_does_not_change_what_is_declared(settings: Any) -> None:
    access = {
        "everyone": {"limits": {"images_per_day": 9}},
        "teams": {"art": {"limits": {"images_per_day": 9}}},
        "keys": [key(limits={"images_per_day": 9})],
    }
    async with run_declaring(settings, access) as declaring:
        client = declaring.client
        bob = await client.with_key("bob")
        (shop,) = [
            shown["id"]
            for shown in (await client.admin("GET", "/admin/keys")).json["data"]
            if shown["name"] == "web-shop"
        ]
        limits = {"limits": {"images_per_day": 1}}
        refusals = [
            await client.admin("POST", "/admin/keys", {"name": "web-shop"}),
            await client.admin("PATCH", f"/admin/keys/{shop}", {"team": "ads"}),
            await client.admin("PATCH", f"/admin/keys/{bob.key_id}", {"name": "web-shop"}),
            await client.admin("DELETE", f"/admin/keys/{shop}"),
            await client.admin("POST", "/admin/teams", {"name": "art"}),
            await client.admin("PATCH", "/admin/teams/art", limits),
            await client.admin("DELETE", "/admin/teams/art"),
            *[
                await client.admin("PATCH", "/admin/limits", {"scope": scope, **limits})
                for scope in ("everyone", "team:art", "key:web-shop")
            ],
        ]
        for refused in refusals:
            assert (refused.status, refused.error["code"]) == (409, "declared_in_file")
            assert "access.yaml" in refused.error["message"]
            assert "/etc" not in refused.error["message"]
        for scope in ("everyone", "team:art", "key:web-shop"):
            shown = (await client.admin("GET", f"/admin/limits?scope={scope}")).json
            assert shown["declared_in"] == "access.yaml"
            assert shown["data"][0]["max"] == 9


@pytest.mark.parametrize("scope", ["key:web-shop", "team:art", "everyone"])
async def test_what_is_declared_can_be_raised(settings: Any, scope: str) -> None:
    limits = {"limits": {"images_per_day": 1}}
    access: dict[str, Any] = {"keys": [key(team="art")]}
    if scope == "everyone":
        access["everyone"] = limits
    elif scope == "team:art":
        access["teams"] = {"art": limits}
    else:
        access["keys"] = [key(team="art", **limits)]
    async with run_declaring(settings, access) as declaring:
        shop = declaring.shop
        assert [(await shop.ask(f"{i}", **LOW)).status for i in range(2)] == [200, 429]
        body = {
            "scope": scope,
            "limit": "images_per_day",
            "amount": 1,
            "until": UNTIL,
            "reason": "more",
        }
        assert (await declaring.client.admin("POST", "/admin/limits/raise", body)).status == 201
        assert [(await shop.ask(f"{i}", **LOW)).status for i in range(1, 3)] == [200, 429]
        # A reload of the file does not end it.
        declaring.reload(**access, webhooks=[{"url": "https://example.com/hook"}])
        assert (await shop.ask("0", **LOW)).status == 200
        shown = (await declaring.client.admin("GET", f"/admin/limits?scope={scope}")).json["data"]
        assert [(row["max"], row["raised"]) for row in shown] == [(2, 1)]


async def test_two_declared_keys_do_not_share_what_a_body_means(settings: Any) -> None:
    """The same body is one request for a key that may use the model, and an error for another."""
    other = {"name": "printer", "secret": "the-secret-of-the-printer", "models": ["dall-e-3"]}
    async with run_declaring(settings, {"keys": [key(), other]}) as declaring:
        printer = replace(declaring.client, secret=other["secret"])
        for _ in range(2):
            assert (await declaring.shop.ask(**LOW)).status == 200
            assert (await printer.ask(**LOW)).status == 403


async def test_an_expired_declared_key_is_refused(settings: Any) -> None:
    async with run_declaring(settings, {"keys": [key(expires_at=1_600_000_000)]}) as declaring:
        assert (await declaring.shop.ask(**LOW)).status == 401


@pytest.mark.parametrize(("is_known", "limits", "status"), [
    (True, {}, 200),
    (True, {"usd_per_day": 9}, 503),
    (False, {}, 503),
])  # fmt: skip
async def test_without_the_store_a_declared_key_is_trusted_as_any_other(
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    is_known: bool,
    limits: dict[str, int],
    status: int,
) -> None:
    """A worker that has never read the limits of everyone cannot tell whether it may buy."""
    async with run_declaring(settings, {"keys": [key(limits=limits)]}) as declaring:
        if is_known:
            assert (await declaring.shop.ask("before", **LOW)).status == 200

        async def fail(commands: object) -> None:
            raise StoreUnavailable("The store is away.")

        with monkeypatch.context() as patch:
            patch.setattr(declaring.gateway.gateway.services.proxy._store, "execute", fail)
            assert (await declaring.shop.ask("during", **LOW)).status == status


@pytest.mark.parametrize("change", [
    {"secret": "another-secret-of-the-web-shop"},
    {"team": "art"},
])  # fmt: skip
async def test_without_the_store_a_declared_key_that_was_changed_does_not_escape_its_limits(
    settings: Any, monkeypatch: pytest.MonkeyPatch, change: dict[str, str]
) -> None:
    """The worker knows the limits of the former key, not those of the changed one."""
    async with run_declaring(settings, {"keys": [key()]}) as declaring:
        assert (await declaring.client.admin("POST", "/admin/teams", {"name": "art"})).status == 201
        for scope in ("everyone", "team:art"):
            await set_limits(declaring.client, scope, {"usd_per_day": 0})
        assert (await declaring.shop.ask("before", **LOW)).status == 429
        declaring.reload(keys=[{**key(), **change}])
        shop = replace(declaring.client, secret=change.get("secret", SECRET))

        async def fail(commands: object) -> None:
            raise StoreUnavailable("The store is away.")

        with monkeypatch.context() as patch:
            patch.setattr(declaring.gateway.gateway.services.proxy._store, "execute", fail)
            assert (await shop.ask("during", **LOW)).status == 503
