"""`gateway doctor` and the checks before serving: each check, with and without a fault.

The stores, the gateways, the upstreams and the links are real.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.catalog import Catalog, parse_catalog
from gateway.configuration.files import ConfigFiles, Configuration
from gateway.configuration.settings import Settings
from gateway.process.bootstrap import prepare
from gateway.process.checks import (
    Finding,
    check_before_serving,
    examine,
    judge_bound,
    judge_clock,
    judge_parser,
    judge_persistence,
    judge_prices,
    judge_public_url,
    judge_trusted_proxies,
    judge_unknown_prices,
)
from gateway.store.batch import execute
from gateway.store.commands import Inspect, ReadLruTotals, StoreFacts
from gateway.wiring.stores import open_store
from tests.catalogs import read_shipped, served_by_openai
from tests.forks import run_fork
from tests.gateways import (
    CONFIG,
    InProcess,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
    run_upstream,
)
from tests.ports import closed_port, free_port
from tests.redis_masters import open_masters
from tests.redis_server import DurableRedis, restricted, run_durable_redis
from tests.stores import TOPOLOGIES

MIB = 1 << 20
FILES = ConfigFiles(CONFIG / "gateway.yaml", CONFIG / "models.yaml")
IN_ORDER = [
    "configuration",
    "store",
    "clock",
    "eviction policy",
    "persistence",
    "cache bound",
    "open purchases",
    "upstream",
    "prices",
    "parser",
    "public URL",
    "plain text",
    "private files",
    "own link",
]
IGNORED = {"prices"}
"""The age of the shipped prices depends on the calendar, so these tests ignore it."""


async def findings_of(settings: Settings) -> dict[str, Finding]:
    """Every finding, by its check."""
    configuration = Configuration(FILES, {}, adjust=lambda _: settings)
    return {finding.name: finding for finding in await examine(configuration)}


def levels(findings: Mapping[str, Finding], level: str) -> set[str]:
    return {name for name, f in findings.items() if f.level == level} - IGNORED


def at(here: InProcess, **server: Any) -> Settings:
    """The settings of a running gateway, with its public URL."""
    changed = here.settings.server.model_copy(update={"public_url": here.client.url, **server})
    return here.settings.model_copy(update={"server": changed})


@pytest.fixture(params=["sqlite", "redis"])
def durable_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | None]:
    """The embedded store, or a Redis that is configured as the README says."""
    if request.param == "sqlite":
        yield None
        return
    (tmp_path / "redis").mkdir()
    with run_durable_redis(tmp_path / "redis") as server:
        yield server.url


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[DurableRedis]:
    """A Redis that a test may configure."""
    (tmp_path / "redis").mkdir()
    with run_durable_redis(tmp_path / "redis") as server:
        yield server


def configure(url: str, **given: object) -> None:
    with redis.Redis.from_url(url) as client:
        for name, value in given.items():
            client.config_set(name.replace("_", "-"), str(value))


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with run_upstream(api_key="sk-upstream-secret") as opened:
        yield opened


# ── no fault ─────────────────────────────────────────────────────────────────────────────


async def test_a_healthy_gateway_has_no_findings(
    tmp_path: Path, durable_url: str | None, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url, durable_url)
    async with run_gateway(settings) as here:
        found = await findings_of(at(here))
    assert list(found) == IN_ORDER
    assert levels(found, "ok") | IGNORED == set(IN_ORDER)
    where = "redis://127.0.0.1" if durable_url else f"{tmp_path}/data/gateway.sqlite"
    assert where in found["store"].message
    assert here.client.url in found["own link"].message


async def test_the_doctor_removes_its_test_image(
    tmp_path: Path, durable_url: str | None, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url, durable_url)
    async with run_gateway(settings) as here:
        await findings_of(at(here))  # creates the signing key, which remains
        before = await contents(settings)
        found = await findings_of(at(here))
        after = await contents(settings)
    assert found["own link"].level == "ok"
    assert after == before


async def contents(settings: Settings) -> object:
    """The LRU totals, and the keys or files that the doctor could have left in the store."""
    async with open_store(settings) as (store, _):
        lru_totals = await execute(store, ReadLruTotals())
    if settings.store.redis_url is not None:
        with redis.Redis.from_url(settings.store.redis_url.get_secret_value()) as client:
            return lru_totals, {key for key in client.scan_iter("*") if b"{books}" not in key}
    return lru_totals, [
        path for path in settings.store.data_dir.glob("blobs/??/*") if path.is_file()
    ]


# ── the store ───────────────────────────────────────────────────────────────────────────────


async def test_a_missing_store_is_a_fault_and_is_not_created(
    tmp_path: Path, redis_url: str
) -> None:
    embedded = await findings_of(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1"))
    empty = await findings_of(make_settings(tmp_path / "data", "http://127.0.0.1:9/v1", redis_url))
    for found, where in ((embedded, str(tmp_path)), (empty, "redis://127.0.0.1")):
        assert found["store"].level == "fault"
        assert where in found["store"].message
        assert {"clock", "own link"}.isdisjoint(found)
    assert not (tmp_path / "data").exists()
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


async def test_a_store_with_another_schema_version_is_a_fault(
    tmp_path: Path, redis_url: str
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("igw:schema", "999")
    found = await findings_of(make_settings(tmp_path, "http://127.0.0.1:9/v1", redis_url))
    assert found["store"].level == "fault"
    assert "999" in found["store"].message


async def test_an_unavailable_redis_is_named_without_its_password(tmp_path: Path) -> None:
    with closed_port() as port:
        url = f"redis://ann:secret@127.0.0.1:{port}/0"
        found = await findings_of(make_settings(tmp_path, "http://127.0.0.1:9/v1", url))
    assert found["store"].level == "fault"
    assert url.partition("@")[2] in found["store"].message
    assert "secret" not in str(found)


async def facts_of(settings: Settings) -> StoreFacts:
    async with open_store(settings) as (store, _):
        return await execute(store, Inspect())


async def test_a_wrong_clock_is_a_fault(tmp_path: Path, durable_url: str | None) -> None:
    """In either direction."""
    settings = make_settings(tmp_path / "data", "http://127.0.0.1:9/v1", durable_url)
    prepare(settings)
    facts, now = await facts_of(settings), time.time()
    assert judge_clock(facts, host_now=now).level == "ok"
    for host_now in (now - 5, now + 5):
        finding = judge_clock(facts, host_now=host_now)
        assert finding.level == "fault"
        assert "5.0 s" in finding.message


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_evicts_is_a_fault(
    tmp_path: Path, durable: DurableRedis, upstream: Upstream, policy: str
) -> None:
    configure(durable.url, maxmemory_policy=policy)
    settings = make_settings(tmp_path / "data", upstream.base_url, durable.url)
    async with run_gateway(settings) as here:
        found = await findings_of(at(here))
    assert levels(found, "fault") == {"eviction policy"}
    assert policy in found["eviction policy"].message
    assert "noeviction" in found["eviction policy"].message


@pytest.mark.parametrize("policy", ["allkeys-lfu", "volatile-lru"])
async def test_eviction_that_is_allowed_is_a_warning(
    tmp_path: Path, durable: DurableRedis, upstream: Upstream, policy: str
) -> None:
    configure(durable.url, maxmemory_policy=policy, maxmemory=100 * MIB)
    store = {"allow_eviction": True}
    settings = make_settings(tmp_path / "data", upstream.base_url, durable.url, store=store)
    async with run_gateway(settings) as here:
        found = await findings_of(at(here))
    assert levels(found, "warning") == {"eviction policy"}
    assert policy in found["eviction policy"].message


async def test_what_a_power_cut_may_lose_is_said(tmp_path: Path, durable_url: str | None) -> None:
    settings = make_settings(tmp_path / "data", "http://127.0.0.1:9/v1", durable_url)
    prepare(settings)
    finding = judge_persistence(await facts_of(settings))
    assert finding.level == "ok"
    assert "a power cut loses" in finding.message
    assert ("appendfsync always" if durable_url else "no reservation") in finding.message


async def test_a_separate_redis_for_images_may_evict(
    tmp_path: Path, durable: DurableRedis, redis_url: str, upstream: Upstream
) -> None:
    configure(redis_url, maxmemory_policy="allkeys-lru")
    store = {"blobs_url": redis_url}
    settings = make_settings(tmp_path / "data", upstream.base_url, durable.url, store=store)
    try:
        async with run_gateway(settings) as here:
            found = await findings_of(at(here))
    finally:
        configure(redis_url, maxmemory_policy="noeviction")
    assert levels(found, "ok") | IGNORED == set(IN_ORDER)
    assert "of their own" in found["cache bound"].message


async def test_a_redis_without_persistence_is_a_warning(
    tmp_path: Path, redis_url: str, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url, redis_url)
    async with run_gateway(settings) as here:
        found = await findings_of(at(here))
    assert levels(found, "warning") == {"persistence"}
    assert levels(found, "fault") == set()
    assert "appendonly yes" in found["persistence"].message


@pytest.mark.parametrize(
    ("total", "level", "words"),
    [
        (None, "ok", "half of Redis' maxmemory of 100 MiB"),
        ("50MiB", "ok", "50 MiB"),
        ("51MiB", "warning", "more than half"),
        ("101MiB", "fault", "will fill it"),
    ],
)
async def test_images_must_leave_room_in_redis(
    tmp_path: Path, durable: DurableRedis, total: str | None, level: str, words: str
) -> None:
    configure(durable.url, maxmemory=100 * MIB)
    cache = {"total_bytes": total}
    settings = make_settings(tmp_path, "http://127.0.0.1:9/v1", durable.url, cache=cache)
    finding = judge_bound(settings, await facts_of(settings))
    assert finding.level == level
    assert words in finding.message


@pytest.mark.parametrize(("total", "words"), [(None, ""), ("20GiB", "20,480 MiB")])
async def test_any_bound_is_ok_if_the_store_has_no_limit(
    tmp_path: Path, durable_url: str | None, total: str | None, words: str
) -> None:
    cache = {"total_bytes": total}
    settings = make_settings(tmp_path, "http://127.0.0.1:9/v1", durable_url, cache=cache)
    prepare(settings)
    finding = judge_bound(settings, await facts_of(settings))
    assert finding.level == "ok"
    assert (words or ("1,024 MiB" if durable_url else "10,240 MiB")) in finding.message


# ── rights ───────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["redis", *TOPOLOGIES])
def url_without_wait(request: pytest.FixtureRequest) -> str:
    """A Redis whose user may do everything that the gateway needs, except wait for replicas."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    if request.param == "redis":
        url = restricted(url)
    with open_masters(url.replace("gateway:right@", "")) as masters:
        for master in masters:
            master.execute_command("ACL", "SETUSER", "gateway", "-wait")
    return url


async def test_a_user_who_may_not_wait_for_replicas_is_named_with_the_fix(
    tmp_path: Path, upstream: Upstream, url_without_wait: str
) -> None:
    """Only where replicas are promoted: nothing waits for those of a single Redis."""
    settings = make_settings(tmp_path / "data", upstream.base_url, url_without_wait)
    async with run_gateway(settings) as here:
        found = await findings_of(at(here))
        at_start = {finding.name for finding in await check_before_serving(settings)}
    is_elected = not url_without_wait.startswith("redis://")
    assert ("wait for replicas" in found, "wait for replicas" in at_start) == (is_elected,) * 2
    if is_elected:
        finding = found["wait for replicas"]
        assert finding.level == "warning"
        assert "refuses its user gateway the command WAIT" in finding.message
        assert "ACL SETUSER gateway +wait" in finding.message


@pytest.mark.parametrize("url_without_wait", TOPOLOGIES, indirect=True)
async def test_the_redis_of_images_needs_the_right_to_wait_too(
    tmp_path: Path, upstream: Upstream, url_without_wait: str
) -> None:
    store = {"blobs_url": url_without_wait}
    settings = make_settings(tmp_path / "data", upstream.base_url, store=store)
    async with run_gateway(settings) as here:
        found = await findings_of(at(here))
    assert "ACL SETUSER gateway +wait" in found["wait for replicas"].message


# ── upstream, prices, parser ────────────────────────────────────────────────────────────────


async def upstream_finding(folder: Path, base_url: str, **upstream: Any) -> Finding:
    return (await findings_of(make_settings(folder, base_url, upstream=upstream)))["upstream"]


async def test_an_unreachable_upstream_or_a_missing_key_is_a_fault(tmp_path: Path) -> None:
    with closed_port() as port:
        unavailable = await upstream_finding(tmp_path, f"http://127.0.0.1:{port}/v1")
    keyless = await upstream_finding(tmp_path, "http://127.0.0.1:9/v1", api_key=None)
    assert (unavailable.level, keyless.level) == ("fault", "fault")
    assert "does not respond" in unavailable.message
    assert "UPSTREAM_API_KEY" in keyless.message


def test_prices_are_out_of_date_after_ninety_days() -> None:
    today = date(2026, 6, 1)
    assert judge_prices(today, today=today).level == "ok"
    assert judge_prices(today - timedelta(days=90), today=today).level == "ok"
    old = judge_prices(today - timedelta(days=91), today=today)
    assert old.level == "warning"
    assert "2026-03-02, 91 days ago" in old.message


def catalog_of(table: dict[str, Any]) -> Catalog:
    """As an account at OpenAI serves it: no price of Together's models is known."""
    return served_by_openai(parse_catalog(table, file=""))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["dall-e-2, dall-e-3", "are refused", "`billing`", "`unknown_price`"]),
        ({"unknown_price": {"usd_per_image": "0.70"}}, ["dall-e-2, dall-e-3", "$0.70"]),
    ],
)
def test_models_without_a_price_are_a_warning(changes: dict[str, Any], words: list[str]) -> None:
    table = read_shipped() | changes
    assert judge_unknown_prices(catalog_of(table)) == []
    for name in ("dall-e-2", "dall-e-3"):
        del table["models"][name]["billing"]
    (finding,) = judge_unknown_prices(catalog_of(table))
    assert (finding.name, finding.level) == ("prices", "warning")
    assert [word for word in words if word not in finding.message] == []


def test_a_slow_parser_is_a_warning() -> None:
    assert judge_parser(is_compiled=True).level == "ok"
    assert judge_parser(is_compiled=False).level == "warning"


# ── links ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("server", "level"),
    [
        ({"listen": "127.0.0.1:8080"}, "ok"),
        ({"listen": "0.0.0.0:8080"}, "warning"),
        ({"listen": "[::]:8080"}, "warning"),
        ({"listen": "0.0.0.0:8080", "public_url": "https://images.example.com"}, "ok"),
    ],
)
def test_links_need_an_address_that_clients_can_reach(
    tmp_path: Path, server: dict[str, str], level: str
) -> None:
    finding = judge_public_url(make_settings(tmp_path, "http://127.0.0.1:9/v1", server=server))
    assert finding.level == level
    assert level == "ok" or "GATEWAY_PUBLIC_URL" in finding.message


async def test_the_own_link_is_a_fault_if_no_gateway_responds(
    tmp_path: Path, upstream: Upstream
) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        settings = make_settings(tmp_path / "data", upstream.base_url, server={"public_url": url})
        prepare(settings)
        found = await findings_of(settings)
    assert levels(found, "fault") == {"own link"}
    assert f"No gateway responds at {url}" in found["own link"].message


async def test_the_own_link_is_a_fault_if_the_gateway_has_other_keys_or_another_store(
    tmp_path: Path, durable_url: str | None, upstream: Upstream
) -> None:
    settings = make_settings(tmp_path / "data", upstream.base_url, durable_url)
    async with (
        run_gateway(settings) as here,
        run_gateway(make_settings(tmp_path / "other", upstream.base_url)) as there,
    ):
        elsewhere = await findings_of(at(here, public_url=there.client.url))
        keys = make_settings(tmp_path, "http://x/v1", server={"signing_keys": f"k:{'x' * 20}"})
        otherwise = await findings_of(at(here, signing_keys=keys.server.signing_keys))
    for found in (elsewhere, otherwise):
        assert levels(found, "fault") == {"own link"}
        assert "(status)" in found["own link"].message


async def test_the_own_link_of_a_wildcard_address_is_fetched_from_this_machine(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_gateway(make_settings(tmp_path / "data", upstream.base_url)) as here:
        port = int(here.client.url.rpartition(":")[2])
        listen = replace(here.settings.server.listen, host="0.0.0.0", port=port)
        found = await findings_of(at(here, public_url=None, listen=listen))
        unknown = await findings_of(at(here, public_url=None))
    assert levels(found, "warning") == {"public URL", "server.listen"}
    assert found["own link"].level == "ok"
    assert levels(unknown, "warning") == {"public URL", "own link"}


# ── as a command, and before serving ────────────────────────────────────────────────────────


async def test_the_command_prints_a_line_per_check_and_fails_on_a_fault(
    tmp_path: Path, upstream: Upstream
) -> None:
    listen = {"server": {"listen": f"127.0.0.1:{free_port()}"}}
    async with run_processes(tmp_path, upstream.base_url, workers=1, options=listen) as (
        processes,
        _,
    ):
        as_json = await processes.run("doctor", "--format", "json")
        as_table = await processes.run("doctor")
        processes.kill_all()
        stopped = await processes.run("doctor", "--format", "csv")

    rows = json.loads(as_json.stdout)
    assert [row["check"] for row in rows] == IN_ORDER
    assert {row["level"] for row in rows if row["check"] not in IGNORED} == {"ok"}
    assert (as_json.returncode, as_table.returncode, stopped.returncode) == (0, 0, 1)
    lines = as_table.stdout.splitlines()
    assert [c for c in IN_ORDER for line in lines if line.startswith(f"│ {c} ")] == IN_ORDER
    *_, last = csv.DictReader(stopped.stdout.splitlines())
    assert (last["check"], last["level"]) == ("own link", "fault")
    assert last["finding"].startswith("No gateway responds at http://127.0.0.1:")
    for result in (as_json, as_table, stopped):
        assert "Traceback" not in result.stderr
        assert "sk-upstream-secret" not in result.stdout + result.stderr


def run_doctor(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "GATEWAY_DATA_DIR": str(folder / "data"), **environ}
    return run_fork("doctor", "--format", "json", cwd=folder, env=env)


def test_in_an_empty_folder_it_reports_faults_and_creates_nothing(tmp_path: Path) -> None:
    env = {
        **os.environ,
        "GATEWAY_DATA_DIR": str(tmp_path / "data"),
        "UPSTREAM_BASE_URL": "http://127.0.0.1:9/v1",
        "AIOHTTP_NO_EXTENSIONS": "1",  # which aiohttp reads when it is imported
    }
    result = subprocess.run(
        [sys.executable, "-m", "gateway", "doctor", "--format", "json"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = {row["check"]: row["level"] for row in json.loads(result.stdout)}
    assert result.returncode == 1
    assert found["store"] == found["upstream"] == "fault"
    assert found["parser"] == "warning"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("networks", "named"),
    [
        ("0.0.0.0/0", ["0.0.0.0/0"]),
        ("10.0.0.0/8, ::/0", ["::/0"]),
        ("0.0.0.0/1, 128.0.0.0/1", ["0.0.0.0/1, 128.0.0.0/1"]),
        ("10.0.0.0/8, fc00::/7, 173.245.48.0/20, 192.0.2.1", []),
        ("", []),
    ],
)
def test_a_network_of_proxies_that_contains_all_clients_is_a_warning(
    tmp_path: Path, networks: str, named: list[str]
) -> None:
    settings = make_settings(tmp_path, "https://a.test/v1", server={"trusted_proxies": networks})
    found = judge_trusted_proxies(settings)
    assert [finding.message.partition(" contains ")[0] for finding in found] == named
    assert {finding.level for finding in found} <= {"warning"}


def test_a_token_file_with_which_no_gateway_starts_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "admin-token").write_text("hunter2")
    with closed_port() as port:
        result = run_doctor(tmp_path, UPSTREAM_BASE_URL=f"http://127.0.0.1:{port}/v1")
    (row,) = [row for row in json.loads(result.stdout) if row["check"] == "admin token"]
    assert row["level"] == "fault"
    assert "admin-token" in row["finding"]
    assert "hunter2" not in result.stdout + result.stderr


def test_an_invalid_configuration_is_the_only_finding(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gateway.yaml").write_text("workers:\n  cuont: 2\n")
    result = run_doctor(tmp_path)
    (row,) = json.loads(result.stdout)
    assert result.returncode == 1
    assert (row["check"], row["level"]) == ("configuration", "fault")
    assert "workers.count" in row["finding"]


async def test_serve_logs_findings_once_and_serves_nevertheless(
    tmp_path: Path, redis_url: str, upstream: Upstream
) -> None:
    configure(redis_url, maxmemory_policy="allkeys-lru", maxmemory=100 * MIB)
    options = {
        "server": {"listen": "0.0.0.0:0"},
        "cache": {"total_bytes": "200MiB"},
        "store": {"allow_eviction": True},
    }
    try:
        async with run_processes(
            tmp_path, upstream.base_url, workers=2, redis_url=redis_url, options=options
        ) as (processes, client):
            status = (await client.send("GET", "/readyz")).status
            logged = processes.log("self_check")
    finally:
        configure(redis_url, maxmemory_policy="noeviction", maxmemory=0)

    assert status == 200
    assert {line["check"]: line["level"] for line in logged} == {
        "public URL": "warning",
        "server.listen": "warning",
        "eviction policy": "warning",
        "persistence": "warning",
        "cache bound": "error",
    }
    assert len(logged) == 5


async def test_before_serving_an_unavailable_redis_is_skipped(tmp_path: Path) -> None:
    with closed_port() as port:
        url = f"redis://127.0.0.1:{port}/0"
        settings = make_settings(tmp_path, "http://127.0.0.1:9/v1", url)
        (finding,) = await check_before_serving(settings)
    assert finding.name == "public URL"
