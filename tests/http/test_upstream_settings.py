"""The settings of connections to upstream: certificate authorities, proxy, headers, key header."""

from __future__ import annotations

import asyncio
import base64
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml
from aiohttp import web

from gateway.cli.demo import demo_settings
from gateway.images import Record
from gateway.simulator import SimulatorSettings, create_simulator
from tests.catalogs import shipped_catalog
from tests.forks import run_fork
from tests.gateways import (
    InProcess,
    Reply,
    Upstream,
    make_settings,
    run_gateway,
    run_processes,
)
from tests.ports import closed_port
from tests.waiting import turns

TLS = Path(__file__).parent.parent / "tls"
AUTHORITY = str(TLS / "authority.pem")
USER, PASSWORD = "ann", "p@ss:word-of-the-proxy"
CREDENTIALS = f"{USER}:p%40ss%3Aword-of-the-proxy"
PROXY_AUTHORIZATION = f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"


# ── proxies and TLS ─────────────────────────────────────────────────────────────────────────


@dataclass
class Proxy:
    """An HTTP proxy: tunnels CONNECT, forwards absolute URLs, and records its requests."""

    authorization: str | None = None
    """The required Proxy-Authorization; None accepts every request."""
    port: int = 0
    heads: list[str] = field(default_factory=list)
    connections: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await self.forward(reader, writer)
            writer.close()
        finally:
            if task.cancelling():  # the test ends, and what was written is of no use
                writer.transport.abort()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        if self.authorization and f"Proxy-Authorization: {self.authorization}\r\n" not in head:
            writer.write(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
            return
        method, target, _ = head.split(" ", 2)
        is_tunnel = method == "CONNECT"
        there = urlsplit(f"//{target}" if is_tunnel else target)
        onward = await asyncio.open_connection(there.hostname, there.port)
        if is_tunnel:
            writer.write(b"HTTP/1.1 200 Go ahead\r\n\r\n")
        else:
            onward[1].write(without_proxy_headers(head).replace(target, there.path, 1).encode())
        try:
            await asyncio.gather(relay(reader, onward[1]), relay(onward[0], writer))
        finally:
            onward[1].transport.abort()

    @property
    def request_lines(self) -> list[str]:
        """The first lines of its requests."""
        return [head.partition("\r\n")[0] for head in self.heads]


def without_proxy_headers(head: str) -> str:
    lines = head.split("\r\n")
    return "\r\n".join(line for line in lines if not line.startswith("Proxy-"))


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def run_proxy(**given: Any) -> AsyncIterator[Proxy]:
    proxy = Proxy(**given)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for connection in proxy.connections:
            connection.cancel()
        await asyncio.gather(*proxy.connections, return_exceptions=True)
        await turns()  # until their sockets are closed


@asynccontextmanager
async def run_tls_upstream() -> AsyncIterator[Upstream]:
    """A simulated upstream with TLS, and a certificate that the system does not trust."""
    settings = SimulatorSettings(latency_scale=0, small_images=True)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(TLS / "server.pem", TLS / "server-key.pem")
    trusting = ssl.create_default_context(cafile=AUTHORITY)
    runner = web.AppRunner(
        create_simulator(shipped_catalog(), settings), access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=serving).start()
        url = f"https://127.0.0.1:{runner.addresses[0][1]}/v1"
        connector = aiohttp.TCPConnector(ssl=trusting)
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Upstream(url, session)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def ask_once(
    folder: Path, upstream: Upstream, prompt: str = "an otter", **settings: Any
) -> AsyncIterator[tuple[Reply, InProcess]]:
    """The answer of a new gateway with these `upstream:` settings, and that gateway."""
    async with run_gateway(make_settings(folder, upstream.base_url, upstream=settings)) as gateway:
        alice = await gateway.client.with_key("alice")
        yield await alice.ask(prompt), gateway


async def headers_at(upstream: Upstream) -> dict[str, str]:
    """The headers of the only request that upstream received."""
    (call,) = await upstream.calls()
    return call["headers"]


def assert_never_sent(reply: Reply, records: list[Record]) -> None:
    assert (reply.status, reply.error["code"]) == (502, "upstream_error")
    assert reply.headers["x-gateway-cost-usd"] == "0.000000"
    (record,) = records
    assert (record.outcome, record.flags, record.cost_micros) == ("failed", (), 0)


# ── ca_file ─────────────────────────────────────────────────────────────────────────────────


async def test_the_authority_of_ca_file_is_trusted(tmp_path: Path) -> None:
    async with (
        run_tls_upstream() as upstream,
        ask_once(tmp_path, upstream, ca_file=AUTHORITY) as (reply, _),
    ):
        assert reply.status == 200
        assert len(await upstream.bodies()) == 1


async def test_without_ca_file_nothing_is_sent_and_nothing_charged(tmp_path: Path) -> None:
    async with (
        run_tls_upstream() as upstream,
        ask_once(tmp_path, upstream) as (reply, gateway),
    ):
        assert_never_sent(reply, await gateway.ledger())
        assert await upstream.calls() == []


def test_a_missing_ca_file_is_reported_at_the_start_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "gateway.yaml"
    config.write_text(yaml.safe_dump({"upstream": {"api_key": "sk-x", "ca_file": "own.pem"}}))
    started = run_fork("serve", "--config", str(config), cwd=tmp_path, env=os.environ)
    assert started.returncode == 1
    assert started.stderr == (
        f"Error: {config}: upstream.ca_file: 'own.pem' is not valid; expected a file with "
        "certificates in PEM; it cannot be read: No such file or directory.\n"
    )


# ── proxy ───────────────────────────────────────────────────────────────────────────────────


async def test_through_a_proxy_tls_is_tunnelled_and_only_the_proxy_gets_its_password(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(run_tls_upstream())
        proxy = await stack.enter_async_context(run_proxy(authorization=PROXY_AUTHORIZATION))
        url = f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}"
        reply, _ = await stack.enter_async_context(
            ask_once(tmp_path, upstream, proxy=url, ca_file=AUTHORITY)
        )
        host = urlsplit(upstream.base_url).netloc
        headers = await headers_at(upstream)

    assert reply.status == 200
    assert proxy.request_lines == [f"CONNECT {host} HTTP/1.1"]
    assert "proxy-authorization" not in headers
    assert "sk-upstream-secret" not in proxy.heads[0]


async def test_through_a_proxy_plain_http_is_requested_by_absolute_url(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(run_proxy(authorization=PROXY_AUTHORIZATION))
        url = f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}"
        reply, _ = await stack.enter_async_context(ask_once(tmp_path, upstream, proxy=url))
        headers = await headers_at(upstream)

    assert reply.status == 200
    assert proxy.request_lines == [f"POST {upstream.base_url}/images/generations HTTP/1.1"]
    assert headers["authorization"] == "cret"  # the simulated upstream shows the end of keys


@pytest.mark.parametrize("is_tls", [True, False], ids=["https", "http"])
async def test_a_proxy_that_rejects_the_connection_costs_nothing(
    tmp_path: Path, upstream: Upstream, is_tls: bool
) -> None:
    async with AsyncExitStack() as stack:
        there = await stack.enter_async_context(run_tls_upstream()) if is_tls else upstream
        proxy = await stack.enter_async_context(run_proxy(authorization=PROXY_AUTHORIZATION))
        url = f"http://ann:wrong@127.0.0.1:{proxy.port}"
        reply, gateway = await stack.enter_async_context(
            ask_once(tmp_path, there, proxy=url, ca_file=AUTHORITY)
        )
        assert_never_sent(reply, await gateway.ledger())
        assert await there.calls() == []
    assert not any(word in reply.body.decode() for word in ("ann", "wrong", "127.0.0.1"))


async def test_an_unreachable_proxy_costs_nothing(tmp_path: Path, upstream: Upstream) -> None:
    with closed_port() as port:
        url = f"http://127.0.0.1:{port}"
        async with ask_once(tmp_path, upstream, proxy=url) as (reply, gateway):
            assert_never_sent(reply, await gateway.ledger())
            assert await upstream.calls() == []


# ── headers, auth_header ────────────────────────────────────────────────────────────────────


async def test_extra_headers_are_sent_unchanged_and_no_headers_of_clients_are(
    tmp_path: Path, upstream: Upstream
) -> None:
    extra = {"OpenAI-Organization": "org-of-the-team", "X-Entry": "a b"}
    settings = make_settings(tmp_path, upstream.base_url, upstream={"headers": extra})
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        theirs = {"OpenAI-Organization": "org-of-alice", "OpenAI-Project": "proj-of-alice"}
        assert (await alice.ask("an otter", headers=theirs)).status == 200
    headers = await headers_at(upstream)
    assert headers["openai-organization"] == "org-of-the-team"
    assert headers["x-entry"] == "a b"
    assert "openai-project" not in headers
    assert headers["authorization"] == "cret"


async def test_auth_header_sends_the_key_in_another_header_without_a_scheme(
    tmp_path: Path, upstream: Upstream
) -> None:
    async with ask_once(tmp_path, upstream, auth_header="x-api-key") as (reply, _):
        headers = await headers_at(upstream)
    assert reply.status == 200
    assert headers["x-api-key"] == "sk-upstream-secret"
    assert "authorization" not in headers


# ── secrets ─────────────────────────────────────────────────────────────────────────────────


async def test_no_secret_of_these_settings_reaches_a_log_or_an_answer(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Also if upstream, the connection through the proxy, or the proxy itself fails."""
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(run_proxy(authorization=PROXY_AUTHORIZATION))
        options = {
            "proxy": f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}",
            "headers": {"X-Entry": "password-of-the-entry"},
        }
        processes, client = await stack.enter_async_context(
            run_processes(tmp_path, upstream.base_url, workers=1, options={"upstream": options})
        )
        alice = await client.with_key()
        replies = [await alice.ask(f"[[sim:{fault}]]") for fault in ("none", "status=500", "reset")]
        proxy.authorization = "Basic bm9ib2R5"
        replies += [await alice.ask("refused"), await alice.ask("an otter", size="1x1")]
        log = processes.log_file.read_text()

    assert [reply.status for reply in replies] == [200, 500, 502, 502, 400]
    for text in (log, *(f"{reply.headers}{reply.body.decode()}" for reply in replies)):
        for secret in ("p%40ss", PASSWORD, PROXY_AUTHORIZATION.split()[1], "password-of"):
            assert secret not in text


def test_the_demo_stores_nothing_where_the_gateway_does(tmp_path: Path) -> None:
    """Neither its state nor its images."""
    real = make_settings(
        tmp_path,
        "https://api.example.com/v1",
        store={"blobs_url": "s3://images"},
        cache={"links": "redirect"},
    )
    demo = demo_settings("http://127.0.0.1:9000/v1", real)
    assert demo.store.blobs_url is demo.store.redis_url is None
    assert demo.cache.links == "serve"


def test_the_demo_uses_no_settings_of_the_real_upstream(tmp_path: Path) -> None:
    """Its simulated upstream is on this machine, where a proxy cannot reach it."""
    real = make_settings(
        tmp_path,
        "https://api.example.com/v1",
        upstream={
            "proxy": "http://proxy:3128",
            "ca_file": AUTHORITY,
            "headers": {"X-Entry": "password"},
            "auth_header": "api-key",
        },
    )
    demo = demo_settings("http://127.0.0.1:9000/v1", real).upstream
    assert (demo.base_url, demo.name) == ("http://127.0.0.1:9000/v1", "simulated")
    assert demo.proxy is demo.ca_file is None
    assert demo.headers == {}
    assert demo.auth_header is None
