"""`server.admin_listen`: operators have an address of their own, and clients cannot use it."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from gateway.api.openapi.document import path_template
from gateway.api.routes import admin_routes, client_routes, health_routes
from gateway.configuration.fields import parse_address
from gateway.configuration.settings import Settings
from gateway.process.listener import PortInUse, bind_listeners
from tests.gateways import (
    ADMIN_TOKEN,
    InProcess,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
)
from tests.ports import free_port
from tests.waiting import eventually

APART = {"server": {"admin_listen": "127.0.0.1:0"}}
TOKENS = {
    "none": {},
    "bearer": {"Authorization": f"Bearer {ADMIN_TOKEN}"},
    "api-key": {"Authorization": "", "api-key": ADMIN_TOKEN},
    "metrics": {"Authorization": "Bearer a-metrics-token-of-tests"},
}
ADMIN_PATHS = [
    (route.method, path_template(route.path)[0].replace("{id}", "x")) for route in admin_routes()
]
SPELLINGS = [
    *("//admin/keys", "/admin/keys/", "/v1/admin/keys", "/./admin/keys", "/x/../admin/keys"),
    *("/%61dmin/keys", "/admin%2Fkeys", "/admin/./keys", "/ADMIN/keys", "/metrics/", "//metrics"),
    *("/admin", "/admin/", "/healthz/../metrics", "/images/img-../../metrics", "/metrics?x=/v1/"),
    *("/v1//metrics", "/healthz/metrics", "/metrics%00", "/metrics;/healthz"),
]


@pytest.fixture
async def apart(tmp_path: Path, upstream: Upstream) -> AsyncIterator[InProcess]:
    """A gateway with two addresses."""
    server = {"admin_listen": "127.0.0.1:0", "metrics_token": "a-metrics-token-of-tests"}
    async with run_gateway(
        make_settings(tmp_path / "data", upstream.base_url, server=server)
    ) as here:
        yield here


async def at(here: InProcess, base: str, method: str, path: str, **headers: str) -> Reply:
    async with here.client.session.request(
        method, URL(base + path, encoded=True), headers=headers
    ) as response:
        return Reply(response.status, response.headers, await response.read())


def shape(reply: Reply, path: str) -> object:
    """An answer without its path and time."""
    changing = {"x-request-id", "openai-processing-ms", "date", "content-length"}
    headers = {name: value for name, value in reply.headers.items() if name.lower() not in changing}
    return reply.status, headers, reply.body.replace(path.partition("?")[0].encode(), b"PATH")


@pytest.mark.parametrize("token", TOKENS)
async def test_no_token_opens_an_admin_path_on_the_address_of_clients(
    apart: InProcess, token: str
) -> None:
    """They are answered exactly as a path that does not exist."""
    assert len(ADMIN_PATHS) >= 9
    for method, path in ADMIN_PATHS:
        reply = await at(apart, apart.client.url, method, path, **TOKENS[token])
        # A path of the API is answered as the service words it; others name a similar path.
        nonsense = path.replace("/admin/", "/zzzzz/").replace("/metrics", "/scirtem")
        nonsense = "/v1/nonsense" if path.startswith("/v1/") else nonsense
        unknown = await at(apart, apart.client.url, method, nonsense, **TOKENS[token])
        assert reply.status == 404
        assert reply.error["code"] == unknown.error["code"]
        assert shape(reply, path) == shape(unknown, nonsense)


async def test_no_spelling_of_an_admin_path_opens_it_on_the_address_of_clients(
    apart: InProcess,
) -> None:
    for method, path in itertools.product(("GET", "HEAD", "POST", "OPTIONS"), SPELLINGS):
        reply = await at(apart, apart.client.url, method, path, **TOKENS["bearer"])
        assert 400 <= reply.status < 500, (method, path, reply.body)
        assert b"gateway_" not in reply.body


async def test_the_admin_token_is_an_unknown_key_on_paths_of_the_api(apart: InProcess) -> None:
    for path in ("/v1/models", "/models", "/v1/images/generations"):
        method = "POST" if "images" in path else "GET"
        reply = await at(apart, apart.client.url, method, path, **TOKENS["bearer"])
        other = await at(apart, apart.client.url, method, path, Authorization="Bearer x" + "y" * 20)
        assert reply.status == other.status == 401
        assert reply.error["code"] == other.error["code"] == "invalid_api_key"
        assert ADMIN_TOKEN not in reply.body.decode()


async def test_operators_do_everything_on_their_address(apart: InProcess) -> None:
    admin = apart.client.admin_url
    assert admin != apart.client.url
    alice = await apart.client.with_key()  # by the admin address
    assert (await alice.ask()).status == 200
    keys = await apart.client.admin("GET", "/admin/keys")
    samples = await apart.client.metrics()
    by_metrics_token = await at(apart, admin, "GET", "/metrics", **TOKENS["metrics"])
    without = await at(apart, admin, "GET", "/metrics")
    assert [key["name"] for key in keys.json["data"]] == ["alice"]
    assert sum(v for name, v in samples.items() if "generations" in name and "_total" in name) == 1
    assert (by_metrics_token.status, without.status) == (200, 401)


async def test_no_path_of_clients_is_on_the_admin_address(apart: InProcess) -> None:
    alice = await apart.client.with_key()
    bought = await alice.ask(model="dall-e-3")
    link = bought.json["data"][0]["url"].removeprefix(apart.client.url)
    bearer = {"Authorization": f"Bearer {alice.secret}"}
    here = await at(apart, apart.client.url, "GET", link)
    there = await at(apart, apart.client.admin_url, "GET", link)
    assert (here.status, there.status) == (200, 404)
    paths = [*("/v1/models", "/models", "/v1/models/dall-e-3", "/v1//models/", "/models/x/")]
    for path in paths:
        reply = await at(apart, apart.client.admin_url, "GET", path, **bearer)
        assert reply.status == 404, path
    for path in ("/v1/images/generations", "/images/generations", "//v1/images/generations/"):
        for headers in (bearer, TOKENS["bearer"]):
            reply = await at(apart, apart.client.admin_url, "POST", path, **headers)
            assert reply.status == 404, path


async def test_health_is_on_both_addresses(apart: InProcess) -> None:
    for base in (apart.client.url, apart.client.admin_url):
        for path in ("/healthz", "/readyz"):
            assert (await at(apart, base, "GET", path)).status == 200


def test_every_route_is_in_one_table() -> None:
    """A path that both tables have would be on both addresses."""
    tables = [{route.path for route in table()} for table in (client_routes, admin_routes)]
    assert not tables[0] & tables[1]
    assert {route.path for route in health_routes()} == {"/healthz", "/readyz"}
    usual = {path_template(path)[0] for path in tables[1]} - {"/metrics"}
    assert all(path.startswith(("/admin/", "/v1/organization/")) for path in usual)


def test_every_route_has_an_endpoint_in_log_and_metrics() -> None:
    """Without a name of its own, `GET /admin/keys` would be logged like an unknown path."""
    routes = [*client_routes(), *admin_routes(), *health_routes()]
    assert [route.path for route in routes if not route.kwargs.get("name")] == []


async def test_without_the_setting_everything_is_on_one_address(embedded: InProcess) -> None:
    assert embedded.client.admin_url == ""
    assert (await embedded.client.admin("GET", "/admin/keys")).status == 200


# ── addresses ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("listen", "admin_listen"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "127.0.0.1:8080"),
        ("127.0.0.1:8080", "0.0.0.0:8080"),
        ("127.0.0.1:8080", "[::]:8080"),
        ("localhost:8080", "LOCALHOST:8080"),
    ],
)
def test_the_same_address_is_refused(listen: str, admin_listen: str) -> None:
    """Rather than ignored: the operator wants admin paths to be apart, and they would not be."""
    with pytest.raises(ValueError, match=re.escape(f"are {admin_listen} and {listen}")):
        Settings.model_validate({"server": {"listen": listen, "admin_listen": admin_listen}})


@pytest.mark.parametrize(
    ("listen", "admin_listen"),
    [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("10.0.0.1:8080", "127.0.0.1:8080"),
        ("0.0.0.0:8080", "0.0.0.0:9090"),
    ],
)
def test_other_addresses_are_not_refused(listen: str, admin_listen: str) -> None:
    Settings.model_validate({"server": {"listen": listen, "admin_listen": admin_listen}})


def test_a_used_port_of_the_admin_address_is_named_with_its_variable() -> None:
    free = parse_address("127.0.0.1:0")
    with bind_listeners(free, free) as listeners:
        assert listeners.admin is not None
        port = listeners.admin.getsockname()[1]
        with (
            pytest.raises(PortInUse, match=rf"Port {port} .* GATEWAY_ADMIN_LISTEN=127\.0\.0\.1:"),
            bind_listeners(free, parse_address(f"127.0.0.1:{port}")),
        ):
            pass


# ── processes ───────────────────────────────────────────────────────────────────────────────


async def test_two_workers_serve_both_addresses_through_a_rolling_restart(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with run_processes(tmp_path, upstream.base_url, workers=2, options=APART) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        assert (await alice.ask()).status == 200
        assert (await client.admin("GET", "/admin/keys")).json["data"]
        first = {line["pid"] for line in processes.log("worker_ready")}
        processes.signal_parent(signal.SIGUSR2)
        statuses: set[int] = set()
        while len(processes.log("worker_replaced")) < 2:
            statuses.add((await client.admin("GET", "/admin/cache")).status)
            statuses.add((await alice.ask()).status)
        assert statuses == {200}
        await eventually(lambda: len(processes.log("worker_ready")) == 4)
        assert (await client.admin("GET", "/metrics")).status == 200
        bearer = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        assert (await client.send("GET", "/metrics", headers=bearer)).status == 404
        assert first.isdisjoint({line["pid"] for line in processes.log("worker_ready")[2:]})


async def test_admin_paths_stay_where_the_parent_bound_them_until_a_restart(
    tmp_path: Path, upstream: Upstream
) -> None:
    """A rolling restart reads the file again, but cannot bind or close an address."""
    async with run_processes(tmp_path, upstream.base_url, workers=1, options=APART) as (
        processes,
        client,
    ):
        config = tmp_path / "gateway.yaml"
        config.write_text(config.read_text().replace("admin_listen: 127.0.0.1:0", "max_body: 1MB"))
        processes.signal_parent(signal.SIGUSR2)
        await eventually(lambda: processes.log("worker_replaced"))
        bearer = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        here = await client.send("GET", "/admin/keys", headers=bearer)
        there = await client.admin("GET", "/admin/keys")
    assert (here.status, there.status) == (404, 200)


async def test_both_addresses_drain(tmp_path: Path, upstream: Upstream) -> None:
    """While a purchase is open, operators still see the worker; then both ports close."""
    async with run_processes(tmp_path, upstream.base_url, workers=2, options=APART) as (
        processes,
        client,
    ):
        alice = await client.with_key()
        async with upstream.hold():
            buying = asyncio.create_task(alice.ask())
            await upstream.until_sent()
            processes.signal_parent(signal.SIGTERM)

            async def are_draining() -> bool:
                """Each answer closes its connection, so the next one may be of the other worker."""
                replies = [await client.admin("GET", "/readyz") for _ in range(10)]
                return {reply.status for reply in replies} == {503}

            await eventually(are_draining)
            last = await client.admin("GET", "/metrics")
        assert (await buying).status == 200
        assert (last.status, last.headers["Connection"]) == (200, "close")
        assert await processes.wait() == 0
    for url in (client.url, client.admin_url):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))


async def test_the_doctor_uses_both_addresses(tmp_path: Path, upstream: Upstream) -> None:
    ports = {"listen": f"127.0.0.1:{free_port()}", "admin_listen": f"127.0.0.1:{free_port()}"}
    async with run_processes(tmp_path, upstream.base_url, workers=1, options={"server": ports}) as (
        processes,
        client,
    ):
        result = await processes.run("doctor", "--format", "csv")
        assert client.admin_url == f"http://{ports['admin_listen']}"
    assert result.returncode == 0, result.stdout
