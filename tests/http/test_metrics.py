"""`/metrics` through the front door: what is there from the start, and what no restart bends."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import aiohttp
import pytest

from gateway.api import scraping
from gateway.metrics.families import FETCH_OUTCOMES, SEEDED_STATUSES
from tests.gateways import ADMIN_TOKEN, Client, InProcess, Upstream, run_processes
from tests.http.conftest import OpenGateway
from tests.http.test_book_gauges import sample
from tests.http.test_store_down import redis_arena
from tests.http.test_supervision import restart_workers
from tests.metrics.folders import Process
from tests.processes import is_running
from tests.waiting import eventually, generous

MODEL = "gpt-image-1-mini"
UPSTREAM = {"upstream": "default"}
BOOKS = ("charged_usd_total", "corrected_usd_total", "saved_usd_total")

SEEDED = (
    *map(sample, ("store_errors_total", "config_reload_failures_total", "flights")),
    sample("queue_wait_seconds_count"),
    *(sample("rehost_total", outcome=outcome) for outcome in FETCH_OUTCOMES),
    *(sample("connections_refused_total", reason=one) for one in ("connections", "address")),
    *(
        sample("upstream_requests_total", **UPSTREAM, model=MODEL, status=status)
        for status in SEEDED_STATUSES
    ),
    *(sample(one, **UPSTREAM) for one in ("upstream_retries_total", "queue_length")),
    sample("upstream_breaker_open", **UPSTREAM),
    *(sample(one, scope="everyone", name="") for one in BOOKS),
    *(sample(one, scope="model", name=MODEL) for one in BOOKS),
)
"""What is 0 before anything has happened, so that `increase` shows its first event."""


async def scraped(client: Client, *, encoding: str) -> tuple[bytes, str | None]:
    """The body as it was sent, and its encoding."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Accept-Encoding": encoding}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.get(f"{client.url}/metrics", headers=headers) as response,
    ):
        return await response.read(), response.headers.get("content-encoding")


def check_metrics(text: bytes) -> str:
    """The complaints of `promtool check metrics`."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False
    )
    return (checked.stdout + checked.stderr).decode()


def fallen(before: dict[str, float], after: dict[str, float]) -> dict[str, tuple[float, object]]:
    """The counters that fell or went."""
    is_counter = ("_total", "_count", "_sum", "_bucket")
    return {
        name: (value, after.get(name))
        for name, value in before.items()
        if name.partition("{")[0].endswith(is_counter) and after.get(name, -1.0) < value
    }


async def test_counters_begin_at_zero_and_never_fall(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """Through a rolling restart, and the death of a worker that is replaced.

    The folder for metrics that the environment names has files of a gateway that was killed.
    """
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    killed = Process(metrics, 1)
    killed.gauge("gateway_workers", "livesum", 1)
    killed.count("gateway_store_errors", 5)
    killed.end()
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    async with run_processes(
        tmp_path, upstream.base_url, workers=2, redis_url=store_url, environ=environ
    ) as (processes, client):
        before = await client.metrics()
        assert {name: before.get(name) for name in SEEDED} == dict.fromkeys(SEEDED, 0.0)
        assert before[sample("upstream_up", **UPSTREAM)] == 1
        assert before["gateway_workers"] == before["gateway_workers_configured"] == 2
        assert not any("first_charge" in name or "last_success" in name for name in before)

        alice = await client.with_key("alice")
        begun = time.time()
        for prompt in ("an otter", "an otter", "a pond"):
            assert (await alice.ask(prompt, model=MODEL)).status == 200
        assert (await alice.ask(model="unknown")).status == 400
        bought = await client.metrics()
        for scope, name in (("key", "alice"), ("everyone", ""), ("model", MODEL)):
            at = bought[sample("first_charge_timestamp_seconds", scope=scope, name=name)]
            assert begun - 5 < at < time.time() + 5
        charged = bought[sample("charged_usd_total", scope="key", name="alice")]
        assert charged > 0
        assert bought["gateway_queue_wait_seconds_count"] == 2
        ok = sample("upstream_requests_total", **UPSTREAM, model=MODEL, status="200")
        assert bought[ok] == 2

        shown = [before, bought]
        await restart_workers(processes)
        shown.append(await client.metrics())
        os.kill(min(processes.serving()[-1]), signal.SIGKILL)
        await eventually(lambda: len(processes.serving()[-1]) == 2)
        shown.append(await client.metrics())
        await alice.ask("an otter", model=MODEL)

        async def has_workers() -> bool:
            return (await client.metrics())["gateway_workers"] == 2

        await eventually(has_workers)
        shown.append(await client.metrics())
        for one, later in itertools.pairwise(shown):
            assert fallen(one, later) == {}
        last = shown[-1]
        assert last[sample("charged_usd_total", scope="key", name="alice")] == charged
        assert last[ok] == 2
        cost = sample("cost_usd_total", key="alice", team="", model=MODEL)
        assert last[cost] == pytest.approx(charged)
        assert last["gateway_worker_memory_bytes"] > 2 * 20e6
        assert last["gateway_worker_cpu_seconds_total"] > 0
        folder = await eventually(lambda: metrics_folder(max(processes.serving()[-1])))

        def are_those_of_the_living() -> bool:
            found = {path.name.rpartition("_")[2] for path in folder.glob("counter_*.db")}
            return found == {"dead.db"} | {f"{pid}.db" for pid in processes.serving()[-1]}

        # Of the three workers that ended nothing is left but what they counted, once it is moved.
        await eventually(are_those_of_the_living)

        plain, encoding = await scraped(client, encoding="identity")
        assert encoding is None
        assert check_metrics(plain) == ""
        packed, encoding = await scraped(client, encoding="deflate, gzip;q=0.5")
        assert encoding == "gzip"
        heads = [line for line in plain.splitlines() if line.startswith(b"#")]
        unpacked = gzip.decompress(packed).splitlines()
        assert [line for line in unpacked if line.startswith(b"#")] == heads
        assert (await scraped(client, encoding="gzip;q=0, identity"))[1] is None


def metrics_folder(pid: int) -> Path | None:
    """Where a worker writes what it counts."""
    environ = Path(f"/proc/{pid}/environ").read_bytes() if is_running(pid) else b""
    for path in Path(f"/proc/{pid}/map_files").iterdir() if environ else ():
        if (target := path.readlink()).name == f"counter_{pid}.db":
            return target.parent
    return None


async def test_a_retry_waits_in_the_queue(gateway: InProcess, upstream: Upstream) -> None:
    alice = await gateway.client.with_key()
    clock = gateway.stop_time()
    waiting = asyncio.Event()
    wait, go_on = clock.pace.sleep, asyncio.Event()

    async def sleep(seconds: float) -> object:
        waiting.set()
        await go_on.wait()
        return await wait(seconds)

    pace = clock.pace
    gateway.set_pace(
        type(pace)(clock=pace.clock, sleep=sleep, random=pace.random, wall_clock=pace.wall_clock)
    )
    await upstream.play("status=503")
    asking = asyncio.create_task(alice.ask("an otter"))
    await waiting.wait()
    samples = await gateway.client.metrics()
    assert samples[sample("queue_length", **UPSTREAM)] == 1
    assert samples["gateway_queue_wait_seconds_count"] == 0
    go_on.set()
    assert (await asking).status == 200
    samples = await gateway.client.metrics()
    assert samples[sample("queue_length", **UPSTREAM)] == 0
    assert samples[sample("upstream_retries_total", **UPSTREAM)] == 1
    assert samples["gateway_queue_wait_seconds_count"] == 1
    assert samples["gateway_queue_wait_seconds_sum"] > 0.1


async def test_every_gateway_shows_that_upstream_fails(
    open_gateway: OpenGateway, upstream: Upstream
) -> None:
    up = sample("upstream_up", **UPSTREAM)
    async with open_gateway() as gateway, open_gateway() as other:
        alice = await gateway.client.with_key()
        await upstream.play("status=401")
        assert (await alice.ask("a pond")).status == 502

        async def both(value: float) -> bool:
            return [(await one.client.metrics())[up] for one in (gateway, other)] == [value] * 2

        await eventually(lambda: both(0))
        assert (await alice.ask("an otter")).status == 200
        await eventually(lambda: both(1))
        at = (await other.client.metrics())[
            sample("upstream_last_success_timestamp_seconds", **UPSTREAM)
        ]
        assert abs(time.time() - at) < 60


async def test_windows_and_shutdowns_show_their_times(open_gateway: OpenGateway) -> None:
    async with open_gateway(billing={"time_zone": "Asia/Kolkata"}) as gateway:
        now, samples = time.time(), await gateway.client.metrics()
    for window, longest_days in (("day", 1), ("week", 7), ("month", 31)):
        start = samples[sample("window_start_timestamp_seconds", window=window)]
        end = samples[sample("window_end_timestamp_seconds", window=window)]
        assert start <= now < end
        assert 0 < end - start <= longest_days * 86_400
        assert (start + 5.5 * 3600) % 86_400 == (end + 5.5 * 3600) % 86_400 == 0
    retiring = gateway.gateway.services.policy().retiring_models
    assert retiring
    for model in retiring:
        at = samples[sample("model_shutdown_timestamp_seconds", model=model)]
        assert time.strftime("%F %T", time.gmtime(at)) == f"{retiring[model]} 00:00:00"


async def test_the_bound_of_the_cache_shows(open_gateway: OpenGateway) -> None:
    async with open_gateway(cache={"total_bytes": 12_345_678}) as gateway:
        await gateway.gateway.cache.blobs.evict_to_bound()
        assert (await gateway.client.metrics())["gateway_cache_limit_bytes"] == 12_345_678


async def test_money_is_the_same_after_a_restart_of_the_gateway(open_gateway: OpenGateway) -> None:
    def money(samples: dict[str, float]) -> dict[str, float]:
        names = (*BOOKS, "first_charge_timestamp_seconds", "spend_usd")
        starts = tuple(f"gateway_{name}" for name in names)
        return {name: value for name, value in samples.items() if name.startswith(starts)}

    async with open_gateway() as gateway:
        alice = await gateway.client.with_key("alice", team="art")
        for prompt in ("an otter", "an otter", "a pond"):
            await alice.ask(prompt)
        spent = sum(record.cost_micros for record in await gateway.ledger()) / 1e6
        before = money(await gateway.client.metrics())
    async with open_gateway() as gateway:
        assert money(await gateway.client.metrics()) == before
    assert before[sample("charged_usd_total", scope="team", name="art")] == spent > 0
    assert before[sample("saved_usd_total", scope="team", name="art")] > 0


async def test_scrapes_at_the_same_time_share_the_work(gateway: InProcess) -> None:
    """Also if the first of them hangs up."""
    metrics = gateway.gateway.services.metrics
    render, gate, rendered = metrics.render, threading.Event(), []

    def held() -> bytes:
        rendered.append(1)
        gate.wait(60)
        return render()

    metrics.render = held  # type: ignore[method-assign]
    first = asyncio.create_task(scraped(gateway.client, encoding="identity"))
    await eventually(lambda: rendered)
    first.cancel()
    others = [
        asyncio.create_task(scraped(gateway.client, encoding=encoding))
        for encoding in ("identity", "gzip") * 5
    ]
    inflight = metrics.requests._inflight
    await eventually(lambda: inflight._value.get() >= len(others))
    gate.set()
    async with generous():
        bodies = await asyncio.gather(*others)
    assert len(rendered) == 1
    texts = {gzip.decompress(body) if encoding else body for body, encoding in bodies}
    assert len(texts) == 1


@pytest.mark.timed
async def test_a_slow_store_does_not_keep_a_scrape(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls may each be quick enough: all of them together have one bound."""
    async with redis_arena(tmp_path, upstream, is_hung=True) as arena:
        everyone = sample("charged_usd_total", scope="everyone", name="")
        assert everyone in await arena.here.client.metrics()
        monkeypatch.setattr(scraping, "BOOKS_SECONDS", 0.1)
        with arena.outage():
            started = time.monotonic()
            samples = await arena.here.client.metrics()
            assert time.monotonic() - started < 1.5  # less than one call of the store
        assert everyone not in samples
        assert sample("window_end_timestamp_seconds", window="day") in samples
        monkeypatch.undo()

        async def is_back() -> bool:
            return everyone in await arena.here.client.metrics()

        await eventually(is_back)
