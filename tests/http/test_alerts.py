"""The alerts of `deploy/prometheus/`, caused for real: a gateway, its store, upstream, Prometheus.

The rules are those that ship, with shorter ranges and without waiting. Every alert, also those that
take days, has a test with series in `deploy/prometheus/tests/`.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tests.gateways import (
    CONFIG,
    Client,
    Processes,
    Upstream,
    each_connection,
    run_processes,
    run_upstream,
)
from tests.prometheus_rules import ALERTS, RECORDS, write_shortened
from tests.prometheus_server import Prometheus, run_prometheus, scrape
from tests.redis_server import DurableRedis, run_durable_redis

RANGE_SECONDS = 5
WORKERS = 2
IMAGE = {"model": "dall-e-2", "size": "256x256"}
"""Costs 0.016 dollars."""
EXPECTED = {
    "ImageGatewayBudgetNearlyUsed",
    "ImageGatewayBudgetExhausted",
    # From a tenth of the month on.
    "ImageGatewayBudgetProjectedOver",
    # dall-e-2 was shut down in May 2026.
    "ImageGatewayModelRetiresSoon",
    # From 90 days after the date of the shipped prices on.
    "ImageGatewayPricesOld",
    # There is the time for one every hour only.
    "ImageGatewayLedgerNeverVerified",
    "ImageGatewayLedgerNotVerified",
}


@dataclass(frozen=True)
class Watched:
    """A gateway that Prometheus watches."""

    processes: Processes
    client: Client
    upstream: Upstream
    store: DurableRedis
    prometheus: Prometheus


@asynccontextmanager
async def run_watched(folder: Path) -> AsyncIterator[Watched]:
    rules = write_shortened(folder, range_seconds=RANGE_SECONDS, for_seconds=1)
    gateway, data = folder / "gateway", folder / "redis"
    for each in (gateway, data):
        each.mkdir()
    shutil.copy(CONFIG / "models.yaml", gateway / "models.yaml")
    with run_durable_redis(data) as store:
        async with (
            run_upstream() as upstream,
            run_processes(gateway, upstream.base_url, workers=WORKERS, redis_url=store.url) as (
                processes,
                client,
            ),
            run_prometheus(folder / "prometheus", scrape(client.url), rules=rules) as prometheus,
        ):
            yield Watched(processes, client, upstream, store, prometheus)


async def test_alerts_fire_when_their_cause_happens_and_end_with_it(tmp_path: Path):
    async with run_watched(tmp_path) as watched:
        # Series that are born later are told from a target that is found later.
        await watched.prometheus.until_scraped_times(2 * RANGE_SECONDS + 2)
        bob = await a_budget_is_used(watched)
        await records_show_the_books(watched.prometheus)
        await nothing_else_fires(watched)
        await upstream_fails(watched)
        await a_file_has_a_fault(watched)
        await the_books_differ(watched)
        await the_store_is_lost(watched, bob)
        await every_rule_was_evaluated(watched)
        watched.processes.kill_all()
        await watched.prometheus.until_firing("ImageGatewayDown", job="image-gateway")
        await watched.prometheus.until_firing("ImageGatewayAbsent", severity="critical")


async def a_budget_is_used(watched: Watched) -> Client:
    """One image is all of bob's budget, 80 % of carol's, and more than dan's, in shadow mode."""
    budgets = {"bob": 0.016, "carol": 0.02, "dan": {"max": 0.015, "mode": "shadow"}}
    clients = [
        await watched.client.with_key(name, limits={"usd_per_month": most})
        for name, most in budgets.items()
    ]
    for client in clients:
        assert (await client.ask(f"an otter of {client.key_id}", **IMAGE)).status == 200
    budget = {"scope": "key", "limit": "usd_per_month"}
    exhausted = await watched.prometheus.until_firing("ImageGatewayBudgetExhausted", name="bob")
    assert exhausted.labels.items() >= budget.items()
    assert (
        "key bob has used or reserved 100% of usd_per_month."
        in exhausted.annotations["description"]
    )
    await watched.prometheus.until_firing("ImageGatewayBudgetNearlyUsed", name="carol", **budget)
    await watched.prometheus.until_firing("ImageGatewayModelRetiresSoon", model="dall-e-2")
    return clients[0]


async def records_show_the_books(prometheus: Prometheus) -> None:
    """Three images were bought, for 0.048 dollars."""
    used = "job_scope_name_limit:gateway_budget_used:ratio"
    shown = {one.labels["name"]: one.value for one in await prometheus.query(used)}
    assert shown == {"bob": 1, "carol": 0.8}
    assert await prometheus.value("job_upstream:gateway_queue_length:sum") == 0
    assert await prometheus.value("sum(gateway_workers) - max(gateway_workers_configured)") == 0
    elapsed = await prometheus.query("job_window:gateway_window:elapsed_ratio")
    passed = {one.labels["window"]: one.value for one in elapsed}
    assert passed.keys() == {"day", "week", "month"}
    everyone = 'job_scope_name_window:gateway_spend_usd:projected{scope="everyone"}'
    projected = {one.labels["window"]: one.value for one in await prometheus.query(everyone)}
    assert projected.keys() == {window for window, ratio in passed.items() if 0.1 < ratio <= 1}
    for window in projected.keys() & {"month"}:
        assert projected[window] * passed[window] == pytest.approx(0.048, rel=0.01)


async def nothing_else_fires(watched: Watched) -> None:
    found = {(alert.name, alert.labels.get("name")) for alert in await watched.prometheus.alerts()}
    assert {name for name, _ in found} <= EXPECTED
    assert "dan" not in {name for _, name in found}


async def upstream_fails(watched: Watched) -> None:
    """Five failures open a worker's breaker; of 14 purchases a worker gets as many at least."""
    alice = await watched.client.with_key("alice")
    bodies = [{"prompt": f"[[sim:status=500]] {count}"} for count in range(14)]
    replies = await each_connection(alice, len(bodies), bodies=bodies)
    assert {reply.status for reply in replies} <= {500, 503}
    upstream = {"job": "image-gateway", "upstream": "default"}
    await watched.prometheus.until_firing("ImageGatewayUpstreamDown", **upstream)
    await watched.prometheus.until_firing("ImageGatewayUpstreamFailing", **upstream)
    await watched.prometheus.until_firing("ImageGatewayBreakerOpen", **upstream)
    names = {alert.name for alert in await watched.prometheus.alerts()}
    assert "ImageGatewayFaults" not in names, "upstream's failures are not the gateway's"


async def a_file_has_a_fault(watched: Watched) -> None:
    models = watched.processes.log_file.parent / "models.yaml"
    text = models.read_text()
    models.write_text(text.replace("default_model:", "defalt_model:", 1))
    await watched.prometheus.until_firing("ImageGatewayConfigReloadFailed")
    models.write_text(text)
    await watched.prometheus.until_silent("ImageGatewayConfigReloadFailed")


async def the_books_differ(watched: Watched) -> None:
    """A running total is changed by another program than the gateway."""
    with redis.Redis.from_url(watched.store.url) as client:
        changed = client.hincrby("igw:{books}:running-totals", "everyone:charged", 1_000_000)
        assert changed > 1_000_000, "it is another field"
        assert (await watched.processes.run("ledger", "verify")).returncode == 1
        await watched.prometheus.until_firing("ImageGatewayLedgerUnbalanced", severity="critical")
        client.hincrby("igw:{books}:running-totals", "everyone:charged", -1_000_000)
    assert (await watched.processes.run("ledger", "verify")).returncode == 0
    await watched.prometheus.until_silent("ImageGatewayLedgerUnbalanced")


async def the_store_is_lost(watched: Watched, bob: Client) -> None:
    watched.store.kill()
    bodies = [{"prompt": f"a pond {count}", **IMAGE} for count in range(10)]
    replies = await each_connection(bob, len(bodies), bodies=bodies)
    assert {reply.status for reply in replies} == {503}
    await watched.prometheus.until_firing("ImageGatewayStoreUnavailable", severity="critical")
    await watched.prometheus.until_firing("ImageGatewayFaults", job="image-gateway")
    watched.store.start_again()
    await watched.prometheus.until_silent("ImageGatewayStoreUnavailable")


async def every_rule_was_evaluated(watched: Watched) -> None:
    await watched.prometheus.until_evaluated()
    rules = [rule for group in await watched.prometheus.rules() for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {*ALERTS, *RECORDS}
    assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []
