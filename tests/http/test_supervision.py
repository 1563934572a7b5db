"""`gateway serve` over time: workers crash and are replaced, configuration changes.

Tests signal the parent and read its log, as an operator does.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.catalogs import shipped_catalog
from tests.gateways import (
    CONFIG,
    USUAL,
    Client,
    Processes,
    Reply,
    Upstream,
    each_connection,
    open_to_both,
    run_processes,
)
from tests.processes import is_running
from tests.stores import TOPOLOGIES, usually_on
from tests.waiting import eventually, generous
from tests.wrk import find_wrk, flood

CHEAP = {"model": "dall-e-2", "size": "256x256", "response_format": "b64_json"}
CHEAP_PRICE = shipped_catalog().models["dall-e-2"].billing.usd_per_image["256x256"]["standard"]
CHEAP_USD = f"{CHEAP_PRICE:.6f}"
RAISED_USD = "0.500000"
"""The price of a cheap image after `raise_price`."""


# ── observing ───────────────────────────────────────────────────────────────────────────────


def lines(processes: Processes, event: str) -> list[dict[str, Any]]:
    """The log lines of one event."""
    return [line for line in processes.log(event) if line["event"] == event]


def total(samples: dict[str, float], start: str) -> float:
    """The sum of the samples whose names start with `start`."""
    return sum(value for name, value in samples.items() if name.startswith(start))


async def restart_workers(processes: Processes) -> None:
    """Sends SIGUSR2, and waits until every worker is replaced."""
    old = processes.serving()[-1]
    processes.signal_parent(signal.SIGUSR2)

    def is_done() -> bool:
        now = processes.serving()[-1]
        return not now & old and len(now) == len(old)

    await eventually(is_done)


# ── changing files ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A copy of the model table beside the test's gateway.yaml."""
    return Path(shutil.copy(CONFIG / "models.yaml", tmp_path))


def change(file: Path, old: str, new: str, *, by_rename: bool = False) -> None:
    """Replaces a text that must occur exactly once in the file."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, old
    target = file.with_suffix(".new") if by_rename else file
    target.write_text(text.replace(old, new), encoding="utf-8")
    target.replace(file)


def raise_price(models: Path, *, by_rename: bool = False) -> None:
    change(
        models,
        f'256x256: {{standard: "{CHEAP_PRICE}"}}',
        '256x256: {standard: "0.5"}',
        by_rename=by_rename,
    )


def remove_model(models: Path) -> None:
    """Removes the last row of the table."""
    text = models.read_text(encoding="utf-8")
    models.write_text(text[: text.index("\n  chatgpt-image-latest:")] + "\n", encoding="utf-8")


def break_policy(models: Path) -> None:
    change(models, "default_gpt_model:", "default_gtp_model:")


def repair_policy(models: Path) -> None:
    change(models, "default_gtp_model:", "default_gpt_model:")


def change_settings(tmp_path: Path, **sections: Any) -> None:
    """Merges into the sections of the gateway.yaml of the running gateway."""
    file = tmp_path / "gateway.yaml"
    settings = yaml.safe_load(file.read_text())
    for name, section in sections.items():
        settings[name] = settings.get(name, {}) | section
    file.write_text(yaml.safe_dump(settings))


def misspell(tmp_path: Path) -> None:
    """Breaks gateway.yaml, so that no worker can start."""
    change_settings(tmp_path, cache={"tll": "2h"})


def spelling_message(tmp_path: Path) -> str:
    """The error for `misspell`."""
    return f"{tmp_path / 'gateway.yaml'}: unknown key 'cache.tll'. Did you mean 'cache.ttl'?"


def correct_spelling(tmp_path: Path) -> None:
    change(tmp_path / "gateway.yaml", "tll", "ttl")


# ── workers that crash ──────────────────────────────────────────────────────────────────────


@usually_on("sqlite", more=TOPOLOGIES)
async def test_a_killed_worker_is_replaced_and_the_others_keep_serving(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """The counts of the killed worker stay in the metrics."""
    async with run_processes(tmp_path, upstream.base_url, workers=3, redis_url=store_url) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        assert (await alice.ask()).status == 200
        await hit(alice, 12)
        first = processes.serving()[-1]
        victim = await processes.worker_of(await client.send("GET", "/healthz"))
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda: not is_running(victim))

        await hit(alice, 12)
        await eventually(lambda: len(processes.serving()[-1] - {victim}) == 3)
        await hit(alice, 12)

        (fresh,) = processes.serving()[-1] - first
        await until_answered(alice, processes, fresh)

        async def all_counted() -> bool:
            answered = total(
                await client.metrics(), 'gateway_requests_total{endpoint="generations"'
            )
            return sum(processes.answers_by_worker().values()) == answered

        await eventually(all_counted)
        assert (await client.metrics())["gateway_store_up"] == 1
        assert len(processes.workers()) == 3


async def hit(client: Client, count: int) -> list[Reply]:
    """Sends `count` requests on separate connections; all must be cache hits."""
    replies = await each_connection(client, count, bodies=[{}])
    assert {(reply.status, reply.cache_status[:3]) for reply in replies} == {(200, "hit")}
    return replies


async def until_answered(client: Client, processes: Processes, worker: int) -> None:
    """Sends requests until this worker has answered one."""
    async with generous():
        while worker not in processes.answers_by_worker():
            await hit(client, 6)


async def test_a_worker_that_cannot_start_is_retried_with_growing_delays_while_others_serve(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        await alice.ask()
        misspell(tmp_path)
        victim, other = processes.serving()[-1]
        os.kill(victim, signal.SIGKILL)

        await eventually(lambda: len(lines(processes, "worker_start_failed")) >= 3)
        await hit(alice, 8)
        assert processes.serving()[-1] == {other}
        faults = lines(processes, "worker_start_failed")
        assert {fault["reason"] for fault in faults} == {spelling_message(tmp_path)}
        first, second, third, *_ = (datetime.fromisoformat(f["timestamp"]) for f in faults)
        assert second - first >= timedelta(seconds=0.49)
        assert third - second >= timedelta(seconds=0.99)

        correct_spelling(tmp_path)
        await eventually(lambda: len(processes.serving()[-1]) == 2)
        assert other in processes.workers()


@pytest.mark.parametrize("is_busy", [False, True], ids=["idle", "busy"])
async def test_workers_drain_after_their_parent_is_killed(
    tmp_path: Path, upstream: Upstream, is_busy: bool
) -> None:
    """An open request is answered first."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        workers = processes.workers()
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("a long one" if is_busy else ""))
            await (gate.until(1) if is_busy else asyncio.wait([asking]))
            processes.process.kill()
            await processes.wait()
            await asyncio.sleep(0.5)  # they notice it, and wait for the open request

        assert (await asking).status == (200 if is_busy else 400)
        await client.session.close()
        await eventually(lambda: not any(map(is_running, workers)))
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorError):
                await Client(client.url, session).send("GET", "/healthz")


async def test_a_starting_worker_ends_after_its_parent_is_killed(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        await client.session.close()
        old = processes.workers()
        processes.signal_parent(signal.SIGUSR2)
        await eventually(lambda: bool(processes.workers() - old))
        workers = processes.workers()
        processes.process.kill()
        await processes.wait()
        await eventually(lambda: not any(map(is_running, workers)))


# ── rolling restarts ────────────────────────────────────────────────────────────────────────


@usually_on("redis", more=TOPOLOGIES)
async def test_a_rolling_restart_replaces_every_worker_and_never_runs_fewer_than_configured(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """New workers read all files again, and `/readyz` never fails."""
    async with run_processes(
        tmp_path,
        upstream.base_url,
        workers=3,
        redis_url=store_url,
        options={"cache": {"ttl": "1d"}},
    ) as (processes, client):
        alice = await client.with_key()
        await alice.ask("before")
        old = processes.workers()
        started = len(processes.serving())
        change_settings(tmp_path, cache={"ttl": "2h"})
        async with probes(client) as statuses:
            await restart_workers(processes)
        await client.session.close()

        await eventually(lambda: processes.workers() == processes.serving()[-1])
        assert not processes.workers() & old
        assert {len(workers) for workers in processes.serving()[started - 1 :]} == {3, 4}
        assert set(statuses) == {200}
        async with aiohttp.ClientSession() as session:
            again = Client(client.url, session, alice.secret)
            assert ttl_of(await again.ask("before")) > 20 * 3600
            assert (await again.ask("after")).cache_status == "fwd=miss; stored"
            assert ttl_of(await again.ask("after")) < 3 * 3600


@asynccontextmanager
async def probes(client: Client) -> AsyncIterator[Counter[int]]:
    """Polls `/readyz` like a load balancer; counts the statuses."""
    statuses: Counter[int] = Counter()

    async def probe() -> None:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector) as session:
            while True:
                statuses[(await Client(client.url, session).send("GET", "/readyz")).status] += 1

    probing = asyncio.create_task(probe())
    try:
        yield statuses
        assert not probing.done()
    finally:
        probing.cancel()
        with suppress(asyncio.CancelledError):
            await probing


def ttl_of(reply: Reply) -> int:
    assert reply.cache_status.startswith("hit; ttl=")
    return int(reply.cache_status.removeprefix("hit; ttl="))


async def last_reply(client: Client) -> Reply:
    """The reply after which the worker closes the connection.

    The parent counts a worker as replaced once it sent the signal; the worker handles it later.
    """
    while True:
        reply = await client.send("GET", "/readyz")
        if reply.headers.get("Connection") == "close":
            return reply


async def test_a_replaced_worker_answers_late_requests_and_closes_their_connections(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Open requests, and new ones on idle connections."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        async with open_to_both(processes, alice) as by_worker:
            async with upstream.hold() as gate, open_to_both(processes, alice) as idle:
                slow = [each.ask(f"for {pid}") for pid, each in by_worker.items()]
                asking = asyncio.gather(*slow)
                await gate.until(2)
                await restart_workers(processes)
                late = [await last_reply(each) for each in idle.values()]
                assert {await processes.worker_of(reply) for reply in late} == set(by_worker)
            answered = await asking

        assert {reply.status for reply in [*late, *answered]} == {200}
        assert {reply.headers["Connection"] for reply in answered} == {"close"}


async def test_an_invalid_gateway_yaml_keeps_the_old_workers(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        await alice.ask()
        old = processes.workers()
        misspell(tmp_path)
        processes.signal_parent(signal.SIGUSR2)
        await eventually(lambda: bool(lines(processes, "rolling_restart_cancelled")))

        (fault,) = lines(processes, "worker_start_failed")
        assert fault["reason"] == spelling_message(tmp_path)
        await hit(alice, 8)
        await eventually(lambda: processes.workers() == old)

        correct_spelling(tmp_path)
        await restart_workers(processes)
        assert not processes.serving()[-1] & old


# ── the policy ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["SIGHUP", "written", "renamed"])
async def test_every_worker_loads_a_changed_model_table(
    tmp_path: Path, upstream: Upstream, models: Path, how: str
) -> None:
    """On SIGHUP, and by itself."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        removed = "chatgpt-image-latest"
        assert (await alice.ask("before", model=removed)).status == 200
        remove_model(models)
        raise_price(models, by_rename=how == "renamed")
        if how == "SIGHUP":
            processes.signal_parent(signal.SIGHUP)
        await eventually(lambda: len(lines(processes, "policy_changed")) == 2)

        async with open_to_both(processes, alice) as by_worker:
            for worker, each in by_worker.items():
                refused = await each.ask("before", model=removed)
                bought = await each.ask(f"after {worker}", **CHEAP)
                assert await processes.worker_of(bought) == worker
                assert (refused.status, "does not exist" in refused.error["message"]) == (400, True)
                assert bought.headers["x-gateway-cost-usd"] == RAISED_USD
        assert processes.workers() == set(by_worker)


async def test_an_invalid_model_table_changes_nothing_until_it_is_repaired(
    tmp_path: Path, upstream: Upstream, models: Path
) -> None:
    """Not even its valid rows are used. The log has the reason."""
    async with run_processes(tmp_path, upstream.base_url, workers=2) as (processes, client):
        alice = await client.with_key()
        raise_price(models)
        break_policy(models)
        await eventually(lambda: len(lines(processes, "policy_reload_failed")) == 2)

        async with open_to_both(processes, alice) as by_worker:
            for worker, each in by_worker.items():
                bought = await each.ask(f"before {worker}", **CHEAP)
                assert bought.headers["x-gateway-cost-usd"] == CHEAP_USD
        reason = lines(processes, "policy_reload_failed")[0]["reason"]
        assert str(models) in reason
        assert "'default_gtp_model'; the nearest valid one is 'default_gpt_model'" in reason
        await asyncio.sleep(1.5)
        assert (await failures(client), len(lines(processes, "policy_reload_failed"))) == (2, 2)
        processes.signal_parent(signal.SIGHUP)
        await eventually(lambda: len(lines(processes, "policy_reload_failed")) == 4)
        assert await failures(client) == 4

        repair_policy(models)
        await eventually(lambda: len(lines(processes, "policy_changed")) == 2)
        assert (await alice.ask("after", **CHEAP)).headers["x-gateway-cost-usd"] == RAISED_USD
        assert await failures(client) == 4


async def failures(client: Client) -> float:
    return (await client.metrics())["gateway_config_reload_failures_total"]


async def test_an_open_request_keeps_the_policy_it_started_with(
    tmp_path: Path, upstream: Upstream, models: Path
) -> None:
    """Also if its model is removed or its price changes."""
    async with run_processes(tmp_path, upstream.base_url, workers=1) as (processes, client):
        alice = await client.with_key()
        async with upstream.hold() as gate:
            asking = [
                asyncio.create_task(alice.ask(model="chatgpt-image-latest")),
                asyncio.create_task(alice.ask(**CHEAP)),
            ]
            await gate.until(2)
            remove_model(models)
            raise_price(models)
            processes.signal_parent(signal.SIGHUP)
            await eventually(lambda: lines(processes, "policy_changed"))
        assert (await alice.ask("after", model="chatgpt-image-latest")).status == 400

        of_old_model, at_old_price = await asyncio.gather(*asking)
        assert of_old_model.status == at_old_price.status == 200
        assert at_old_price.headers["x-gateway-cost-usd"] == CHEAP_USD


# ── under load ──────────────────────────────────────────────────────────────────────────────


async def restart_twice(processes: Processes, models: Path) -> None:
    """Restarts early enough that workers of the first restart drain before the flood ends."""
    await asyncio.sleep(0.5)
    await restart_workers(processes)
    await asyncio.sleep(1.5)
    await restart_workers(processes)


async def change_policy(processes: Processes, models: Path) -> None:
    """Loads valid policies and an invalid one, with and without SIGHUP.

    After a late SIGHUP a worker can read a half-written file, and log one more event.
    """
    for _ in range(3):
        await asyncio.sleep(0.2)
        processes.signal_parent(signal.SIGHUP)
    raise_price(models)
    await eventually(lambda: len(lines(processes, "policy_changed")) >= 2)
    break_policy(models)
    await eventually(lambda: len(lines(processes, "policy_reload_failed")) >= 2)
    repair_policy(models)
    remove_model(models)
    processes.signal_parent(signal.SIGHUP)
    await eventually(lambda: len(lines(processes, "policy_changed")) >= 4)


@pytest.fixture
def wrk() -> str:
    """Skips the test if wrk is missing."""
    return find_wrk()


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("happens", "keep_alive"),
    [
        pytest.param(restart_twice, False, id="restart_twice-close"),
        pytest.param(change_policy, True, id="change_policy-keep-alive", marks=pytest.mark.long),
        pytest.param(restart_twice, True, id="restart_twice-keep-alive", marks=pytest.mark.long),
        pytest.param(change_policy, False, id="change_policy-close", marks=pytest.mark.long),
    ],
)
async def test_no_request_of_a_flood_fails_during_a_restart_or_policy_change(
    tmp_path: Path,
    upstream: Upstream,
    models: Path,
    wrk: str,
    request: pytest.FixtureRequest,
    happens: Callable[[Processes, Path], Awaitable[None]],
    keep_alive: bool,
    store: str,
) -> None:
    """No connection is refused or reset, and every status is 2xx."""
    url = request.getfixturevalue("redis_url") if store == "redis" else None
    async with run_processes(tmp_path, upstream.base_url, workers=2, redis_url=url) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        await alice.ask()
        before = processes.serving()[-1]
        body = {**USUAL, "prompt": "an otter"}
        async with flood(wrk, alice, body, keep_alive=keep_alive) as stop:
            await happens(processes, models)
            await asyncio.sleep(0.5)
            is_rolled = not processes.serving()[-1] & before
            seen = await stop()

        print(f"{happens.__name__}, {store}, keep-alive {keep_alive}: {seen}")  # noqa: T201
        assert seen.faults == []
        assert seen.requests > 10
        assert is_rolled == (happens is restart_twice)
        await eventually(lambda: sum(processes.answers_by_worker().values()) >= seen.requests)
        assert len(await upstream.bodies()) == 1
