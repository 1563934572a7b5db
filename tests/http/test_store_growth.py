"""What refused and failed requests leave in the store lives seconds, and sweeps keep up."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.store.commands import CLOSED_JOURNAL_SECONDS, FREE_JOURNAL_SECONDS
from tests.gateways import Client, InProcess, Upstream
from tests.http.conftest import OpenGateway
from tests.redis_masters import open_masters
from tests.rows import each_row

END_SECONDS = 120
RELEASED_SECONDS = 5


def flights_left(gateway: InProcess) -> Mapping[str, float]:
    """The time to live of everything that flights have left in the store, by its name."""
    settings = gateway.settings.store
    if settings.redis_url is not None:
        with open_masters(settings.redis_url.get_secret_value()) as masters:
            return {
                key.decode(): master.pttl(key) / 1000
                for master in masters
                for key in master.keys("igw:flight*")
            }
    with sqlite3.connect(settings.data_dir / "gateway.sqlite") as db:
        rows = db.execute("SELECT event_id || id, remove_after - unixepoch() FROM events")
        found = dict(rows.fetchall())
    db.close()
    return found


REFUSED: dict[str, dict[str, Any]] = {
    "a budget of money": {"limits": {"usd_per_day": 0}},
    "a budget of images": {"limits": {"images_per_day": 0}},
    "a rate of images": {"limits": {"images_per_minute": 0}},
    "open purchases": {"limits": {"concurrent_requests": 0}},
}


@pytest.mark.parametrize("spec", REFUSED.values(), ids=REFUSED)
async def test_a_refused_purchase_leaves_nothing_for_longer_than_seconds(
    spec: dict[str, Any], gateway: InProcess
) -> None:
    client = await gateway.client.with_key(**spec)
    for n in range(5):
        assert (await client.ask(f"a pond {n}", stream=True)).status == 429
        assert (await client.ask(f"a lake {n}")).status == 429

    assert all(ttl <= RELEASED_SECONDS + 1 for ttl in flights_left(gateway).values())


@pytest.mark.parametrize("fault", ["status=400", "moderation", "status=500"])
async def test_what_a_failed_purchase_leaves_of_its_flight_lives_two_minutes(
    fault: str, gateway: InProcess, alice: Client
) -> None:
    reply = await alice.ask(f"[[sim:{fault}]] a pond", stream=True, model="gpt-image-1")
    assert reply.status >= 400

    left = flights_left(gateway)
    assert left
    assert max(left.values()) <= END_SECONDS + 1


def closed_journals(gateway: InProcess) -> list[float]:
    """The time to live of every closed journal."""
    settings = gateway.settings.store
    if settings.redis_url is not None:
        with open_masters(settings.redis_url.get_secret_value()) as masters:
            return [
                master.pttl(key) / 1000
                for master in masters
                for key in master.keys("igw:{books}:journal:*")
            ]
    with sqlite3.connect(settings.data_dir / "gateway.sqlite") as db:
        found = db.execute("SELECT remove_after - unixepoch() FROM journals").fetchall()
    db.close()
    return [seconds for (seconds,) in found]


@pytest.mark.parametrize("fault", ["status=400", "moderation", "status=429"])
async def test_the_journal_of_a_purchase_that_cost_nothing_lives_minutes(
    fault: str, gateway: InProcess, alice: Client
) -> None:
    """A client can make any number of them for nothing."""
    assert (await alice.ask(f"[[sim:{fault}]] a pond")).status >= 400
    assert [ttl <= FREE_JOURNAL_SECONDS + 1 for ttl in closed_journals(gateway)] == [True]


@pytest.mark.parametrize("prompt", ["a pond", "[[sim:reset]] a pond"])
async def test_the_journal_of_a_charged_purchase_lives_a_week(
    prompt: str, gateway: InProcess, alice: Client
) -> None:
    await alice.ask(prompt)
    (seconds,) = closed_journals(gateway)
    assert seconds == pytest.approx(CLOSED_JOURNAL_SECONDS, abs=60)


async def test_repeating_an_idempotency_key_leaves_one_notification(
    gateway: InProcess, upstream: Upstream
) -> None:
    """Each repeated request notifies those that wait; that must not add up."""
    client = await gateway.client.with_key(limits={"images_per_day": 0})
    for _ in range(20):
        headers = {"Idempotency-Key": "again"}
        assert (await client.ask("a pond", headers=headers)).status == 429

    left = [
        name for name in flights_left(gateway) if "idempotency" in name or not name[0].isalpha()
    ]
    assert len(left) <= 1


async def test_partial_images_are_bounded_beside_the_images(
    open_gateway: OpenGateway, store_url: str | None
) -> None:
    async with open_gateway(cache={"total_bytes": 1 << 20}) as gateway:
        client = await gateway.client.with_key()
        for n in range(8):
            reply = await client.ask(
                f"a pond {n}", model="gpt-image-1", stream=True, partial_images=3
            )
            assert reply.status == 200
        assert ephemeral_bytes(gateway) <= (1 << 20) // 16


def ephemeral_bytes(gateway: InProcess) -> int:
    settings = gateway.settings.store
    if settings.redis_url is not None:
        with open_masters(settings.redis_url.get_secret_value()) as masters:
            return sum(
                master.strlen(key) for master in masters for key in master.keys("igw:ephemeral:*")
            )
    files = (settings.data_dir / "blobs" / "ephemeral").glob("??/*")
    return sum(file.stat().st_size for file in files)


async def test_keys_are_listed_in_parts(gateway: InProcess) -> None:
    clients = [await gateway.client.with_key(f"k{n}") for n in range(5)]
    await gateway.client.admin("DELETE", f"/admin/keys/{clients[1].key_id}")
    whole = (await gateway.client.admin("GET", "/admin/keys")).json
    parts, after = [], ""
    while True:
        page = (await gateway.client.admin("GET", f"/admin/keys?limit=2{after}")).json
        parts += page["data"]
        if not page["has_more"]:
            break
        after = f"&after={page['data'][-1]['id']}"

    assert [key["name"] for key in whole["data"]] == ["k0", "k1", "k2", "k3", "k4"]
    assert "revoked_at" in whole["data"][1]
    assert parts == whole["data"]


@each_row("query", ["limit=0", "limit=x", "limit=1001", "after=key_x", "limit=-1"])
async def test_a_part_that_makes_no_sense_is_refused(query: str, gateway: InProcess) -> None:
    reply = await gateway.client.admin("GET", f"/admin/keys?{query}")
    assert (reply.status, reply.error["code"]) == (400, "invalid_value")
    assert reply.error["param"] == query.partition("=")[0]


async def test_a_key_has_a_bounded_number_of_remembered_refusals(
    gateway: InProcess, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cost nothing, so one key could fill the store. Those beyond are asked for again."""
    monkeypatch.setattr("gateway.cache.entries.MAX_KEY_REFUSALS", 2)
    alice = await gateway.client.with_key()
    bob = await gateway.client.with_key("bob")
    for _ in range(2):
        for n in range(3):
            assert (await alice.ask(f"{n} [[sim:moderation]]")).status == 400
        assert (await bob.ask("bob's [[sim:moderation]]")).status == 400

    prompts = [body["prompt"] for body in await upstream.bodies()]
    assert sorted(prompts) == [
        "0 [[sim:moderation]]",
        "1 [[sim:moderation]]",
        *["2 [[sim:moderation]]"] * 2,
        "bob's [[sim:moderation]]",
    ]
