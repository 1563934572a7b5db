"""Gauges of windows, limits and the last verification, read from the books."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from tests.gateways import Client, InProcess, Upstream
from tests.http.conftest import OpenGateway
from tests.waiting import eventually


def sample(metric: str, /, **labels: str) -> str:
    """A sample as `/metrics` names it."""
    shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"gateway_{metric}{{{shown}}}" if shown else f"gateway_{metric}"


async def read(client: Client, metric: str, /, **labels: str) -> float | None:
    return (await client.metrics()).get(sample(metric, **labels))


async def test_spending_and_reservations_show_for_key_team_and_everyone(
    gateway: InProcess, upstream: Upstream
) -> None:
    alice = await gateway.client.with_key("alice", team="art")
    subjects = (("key", "alice"), ("team", "art"), ("everyone", ""))
    await alice.ask("an otter")
    spent = sum(record.cost_micros for record in await gateway.ledger()) / 1e6
    async with upstream.hold():
        asking = asyncio.create_task(alice.ask("a pond"))
        await upstream.until_sent(2)
        samples = await gateway.client.metrics()
        for scope, name in subjects:
            for window in ("day", "week", "month"):
                shown = samples[sample("spend_usd", scope=scope, name=name, window=window)]
                assert shown == pytest.approx(spent)
            assert samples[sample("reserved_usd", scope=scope, name=name)] > spent
    await asking
    for scope, name in subjects:
        assert await read(gateway.client, "reserved_usd", scope=scope, name=name) == 0.0


async def test_limits_show_their_maximum_and_how_much_of_it_is_used(gateway: InProcess) -> None:
    limits = {"usd_per_day": 2.5, "images_per_minute": 4, "tokens_per_day": 0}
    bob = await gateway.client.with_key("bob", limits={**limits, "tokens_per_day": 10**6})
    shadow = {"max": 3, "mode": "shadow"}
    await gateway.client.with_key("carol", limits={"tokens_per_day": 0, "images_per_day": shadow})
    await bob.ask("an otter")
    spent = sum(record.cost_micros for record in await gateway.ledger()) / 1e6
    samples = await gateway.client.metrics()
    found = {
        limit: samples[sample("limit_max", scope="key", name="bob", limit=limit)]
        for limit in limits
    }
    assert found == {"usd_per_day": 2.5, "images_per_minute": 4, "tokens_per_day": 10**6}
    ratio = sample("limit_used_ratio", scope="key", name="bob", limit="usd_per_day")
    assert samples[ratio] == pytest.approx(spent / 2.5)
    nothing = sample("limit_used_ratio", scope="key", name="carol", limit="tokens_per_day")
    assert samples[nothing] == 1.0
    shadowed = {name: value for name, value in samples.items() if "limit_shadow" in name}
    assert shadowed == {
        sample("limit_shadow", scope="key", name="carol", limit="images_per_day"): 1.0
    }
    await gateway.client.admin("DELETE", f"/admin/keys/{bob.key_id}")
    assert ratio not in await gateway.client.metrics()


async def test_the_last_verification_shows(open_gateway: OpenGateway) -> None:
    async with open_gateway() as gateway, open_gateway() as other:
        alice = await gateway.client.with_key()
        await alice.ask("an otter")
        assert await read(other.client, "ledger_balanced") is None
        verified = await gateway.gateway.verification.run()
        assert verified.records == 1
        for one in (gateway, other):
            assert await read(one.client, "ledger_balanced") == 1.0
            at = await read(one.client, "ledger_verified_timestamp_seconds")
            assert at == pytest.approx(time.time(), abs=60)


async def test_keys_of_one_name_show_their_exact_sum(gateway: InProcess) -> None:
    """An expired key and its successor: 0.016 and 0.02 dollars are 0.036, not 0.036…04."""
    for name, size in (("alice", "256x256"), ("bob", "1024x1024")):
        client = await gateway.client.with_key(name)
        assert (await client.ask("a pond", model="dall-e-2", size=size)).status == 200
    gauges = gateway.gateway.services.limit_gauges
    await gateway.client.metrics()
    keys = [replace(one, shown_as="one") for one in gauges.subjects if one.kind == "key"]
    assert len(keys) == 2
    gauges.subjects = keys
    assert (await gauges.read()).spend_usd["key", "one", "day"] == 0.036


async def test_everyone_shows_also_without_a_key(gateway: InProcess) -> None:
    async def everyone(metric: str, **labels: str) -> float | None:
        return await read(gateway.client, metric, scope="everyone", name="", **labels)

    assert await everyone("spend_usd", window="month") == 0.0
    alice = await gateway.client.with_key("alice")
    await alice.ask("an otter", model="dall-e-2", size="256x256")
    await gateway.client.admin("DELETE", f"/admin/keys/{alice.key_id}")
    limits = {"scope": "everyone", "limits": {"usd_per_month": 0.032}}
    changed = await gateway.client.admin("PATCH", "/admin/limits", limits)
    assert changed.status == 200, changed.body
    assert await everyone("spend_usd", window="month") == 0.016
    assert await everyone("limit_max", limit="usd_per_month") == 0.032
    assert await everyone("limit_used_ratio", limit="usd_per_month") == 0.5


async def test_money_of_teams_and_labels_outlives_their_last_key(
    open_gateway: OpenGateway,
) -> None:
    billing = {"metric_labels": ["cost_center"]}
    async with open_gateway(billing=billing) as gateway, open_gateway(billing=billing) as other:

        async def of_art() -> dict[str, float]:
            samples = await other.client.metrics()
            names = [
                sample("charged_usd_total", scope="team", name="art"),
                sample("charged_usd_total", scope="cost_center", name="cc-1"),
                sample("spend_usd", scope="team", name="art", window="month"),
            ]
            return {name: samples[name] for name in names if name in samples}

        labels = {"cost_center": "cc-1"}
        alice = await gateway.client.with_key("alice", team="art", labels=labels)
        await alice.ask("an otter", model="dall-e-2", size="256x256")
        spent = await of_art()
        assert [*spent.values()] == [0.016] * 3
        await gateway.client.admin("DELETE", f"/admin/keys/{alice.key_id}")
        assert await of_art() == spent
        bob = await gateway.client.with_key("bob", team="art")
        await bob.ask("a pond", model="dall-e-2", size="256x256")
        assert [*(await of_art()).values()] == [0.032, 0.016, 0.032]


async def test_a_name_shows_the_totals_of_the_key_that_has_it(gateway: InProcess) -> None:
    """A sum with the expired key's would fall when that is revoked."""
    charged = sample("charged_usd_total", scope="key", name="alice")
    first = sample("first_charge_timestamp_seconds", scope="key", name="alice")
    expired = await gateway.client.with_key("alice", expires_at="3s")
    await expired.ask("an otter", model="dall-e-2", size="1024x1024")
    before = await gateway.client.metrics()

    async def take_name() -> Client | None:
        taken = await gateway.client.admin("POST", "/admin/keys", {"name": "alice"})
        secret = taken.json.get("key")
        return secret and replace(gateway.client, secret=secret)

    alice = await eventually(take_name)
    await alice.ask("a pond", model="dall-e-2", size="256x256")
    shown = await gateway.client.metrics()
    assert (before[charged], shown[charged]) == (0.02, 0.016)
    assert shown[first] > before[first]
    await gateway.client.admin("DELETE", f"/admin/keys/{expired.key_id}")
    later = await gateway.client.metrics()
    assert (later[charged], later[first]) == (shown[charged], shown[first])
