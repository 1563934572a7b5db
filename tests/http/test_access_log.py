"""The access log: one line for each request, also an unusual one, and no secret in any line."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ServerDisconnectedError, web
from structlog.testing import capture_logs

from gateway.api.dashboard.routes import dashboard_admin_routes, dashboard_routes
from gateway.api.routes import ALL_TABLES, admin_routes, health_routes
from tests.docs.pages import codes, read_page, rows_with
from tests.gateways import ADMIN_TOKEN, InProcess, Reply, Upstream, make_settings, run_gateway
from tests.http.image_links import open_album
from tests.raw_http import talk
from tests.waiting import eventually

PROMPT = "a very secret pearl of the otter"
UPSTREAM_KEY = "sk-upstream-secret"
SIGNATURE = "A" * 43

DOCUMENTED = {
    name
    for row in rows_with(read_page("log.md"), "field", "of", "value")
    for name in codes(row["field"])
} | {"event", "log_level"}

Log = list[MutableMapping[str, Any]]


def lines_of(log: Log) -> Log:
    return [line for line in log if line["event"] == "request_answered"]


async def until_logged(log: Log, count: int) -> Log:
    await eventually(lambda: len(lines_of(log)) >= count)
    return lines_of(log)


def _under_sessions() -> list[web.RouteDef]:
    return dashboard_admin_routes(admin_routes())


def every_path() -> Iterator[tuple[str, str]]:
    """A method and a path for each route."""
    for table in (*ALL_TABLES, dashboard_routes, _under_sessions, health_routes):
        for route in table():
            path = re.sub(r"\{_[^}]*\}", "/", route.path)
            path = re.sub(r"\{link:.*\}$", f"kid.1790000000.{SIGNATURE}/img-x.png", path)
            yield route.method, re.sub(r"/+", "/", re.sub(r"\{[^/]*\}", "x", path))


async def test_no_line_has_a_secret_a_prompt_an_image_or_a_signature(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Every endpoint, with secrets where clients put them by mistake."""
    with capture_logs() as log:
        async with open_album(tmp_path, upstream) as album:
            gateway = album.gateway
            alice = await gateway.client.with_key("bob")
            other = await gateway.client.with_key("other")
            bought = await alice.ask(PROMPT, user=f"user {PROMPT}")
            streamed = await alice.ask(f"{PROMPT} 2", stream=True, partial_images=1)
            await alice.ask(PROMPT, size=PROMPT, headers={"X-Client-Request-Id": other.secret})
            await alice.ask(f"{PROMPT} [[sim:tiny-png]]")
            await alice.ask(f"{PROMPT} [[sim:moderation]]")
            await alice.ask("an otter", model=PROMPT)
            link = album.path
            headers = {"Authorization": f"Bearer {alice.secret}", "tracestate": other.secret}
            for method, path in every_path():
                for credential in (alice.secret, ADMIN_TOKEN):
                    sent = headers | {"Authorization": f"Bearer {credential}"}
                    await alice.send(method, f"{path}?key={other.secret}", headers=sent)
            for path in (
                *(link, f"/x{link}", f"/imagez{link}", f"/v1{link}", f"{link}?{other.secret}"),
                *(f"/v1/{other.secret}", f"/{other.secret}/v1/images/generations"),
                f"/v1/images/generations?prompt={PROMPT.replace(' ', '+')}",
            ):
                for client_request_id in (link, other.secret, f"{other.secret}"):
                    sent = headers | {"X-Client-Request-Id": client_request_id}
                    await alice.send("GET", path, headers=sent)
            await talk(alice, f"GET {link}\r\n{other.secret}: {PROMPT}\r\n\r\n".encode())
            await until_logged(log, 90)

    text = json.dumps(log, default=str)
    signature = link.split("/")[2].rpartition(".")[2]
    base64 = bought.images[0]
    assert len(signature) > 40
    assert streamed.status == 200
    for secret in (
        *(alice.secret, other.secret, alice.secret[3:], ADMIN_TOKEN, UPSTREAM_KEY, signature),
        *(SIGNATURE, PROMPT, "pearl", base64[:40], base64[-40:]),
    ):
        assert secret not in text
    assert set().union(*lines_of(log)) <= DOCUMENTED


# ── exactly one line ────────────────────────────────────────────────────────────────────────


async def test_an_unusual_request_has_one_line_too(tmp_path: Path, upstream: Upstream) -> None:
    """Under the id of its answer, if there is one."""
    server = {"read_timeout": "0.3s", "max_connections_per_address": 3}
    settings = make_settings(tmp_path, upstream.base_url, server=server)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        with capture_logs() as log:
            malformed = (
                await talk(alice, b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n")
            ).reply
            late = (await talk(alice, b"GET /v1/models HTTP/1.1\r\n")).reply
            unexpected = (
                await talk(alice, b"GET / HTTP/1.1\r\nHost: a\r\nExpect: magic\r\n\r\n")
            ).reply
            unknown = await alice.send("GET", "/v1/nothing")
            refused = await beside_open_connections(gateway)
            lines = await until_logged(log, 5)

    replies = [malformed, late, unexpected, unknown, refused]
    assert [reply.status for reply in replies] == [400, 408, 417, 404, 429]
    assert [line["request_id"] for line in lines] == [
        reply.headers["x-request-id"] for reply in replies
    ]
    assert [(line["status"], line["endpoint"], line["error"]) for line in lines] == [
        (400, "none", "invalid_request_error"),
        (408, "none", "request_timeout"),
        (417, "none", "invalid_request_error"),
        (404, "none", "invalid_request_error"),
        (429, "none", "too_many_open"),
    ]
    assert {line["outcome"] for line in lines} == {"refused"}
    assert {line["client_address"] for line in lines} == {"127.0.0.1"}


async def beside_open_connections(gateway: InProcess) -> Reply:
    """The answer on the first connection beyond the bound of an address."""
    host, port = gateway.client.url.removeprefix("http://").split(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
    try:
        return (await talk(gateway.client, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")).reply
    finally:
        for _, writer in opened:
            writer.close()


async def test_malformed_http_of_a_trusted_proxy_is_answered_and_has_one_line(
    tmp_path: Path, upstream: Upstream
) -> None:
    """Its address is the proxy's: no header was read."""
    server = {"trusted_proxies": "127.0.0.1"}
    settings = make_settings(tmp_path, upstream.base_url, server=server)
    async with run_gateway(settings) as gateway:
        alice = await gateway.client.with_key("alice")
        with capture_logs() as log:
            reply = (await talk(alice, b"GET / HTTP/9.9\r\nHost\r\n\r\n")).reply
            (line,) = await until_logged(log, 1)

    assert (reply.status, line["client_address"]) == (400, "127.0.0.1")
    assert line["request_id"] == reply.headers["x-request-id"]


@pytest.mark.parametrize("streams", [False, True], ids=["plain", "stream"])
async def test_a_client_that_leaves_has_one_line(
    embedded: InProcess, upstream: Upstream, streams: bool
) -> None:
    alice = await embedded.client.with_key("alice")
    with capture_logs() as log:
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("an otter", stream=streams))
            await gate.until(1)
            asking.cancel()
            await asyncio.wait({asking})
            await until_disconnected(embedded)
        await until_logged(log, 1)
        await embedded.gateway.tasks.drain()
        hit = await alice.ask("an otter")
        lines = await until_logged(log, 2)

    assert [line["outcome"] for line in lines] == ["bought", "hit"]
    assert lines[0]["client_disconnected"] is True
    assert lines[0]["cost_usd"] > 0
    assert "client_disconnected" not in lines[1]
    assert lines[1]["request_id"] == hit.headers["x-request-id"]


async def until_disconnected(gateway: InProcess) -> None:
    """Waits until no connection has a request that is not answered."""
    await eventually(lambda: not open_connections(gateway))


def open_connections(gateway: InProcess) -> list[Any]:
    server = gateway.runner.server
    assert isinstance(server, web.Server)
    return [one for one in server.connections if one.transport and one._current_request]


async def test_a_request_that_is_cancelled_has_one_line(
    embedded: InProcess, upstream: Upstream
) -> None:
    alice = await embedded.client.with_key("alice")
    with capture_logs() as log:
        async with upstream.hold() as gate:
            asking = asyncio.create_task(alice.ask("an otter"))
            await gate.until(1)
            (connection,) = open_connections(embedded)
            connection._task_handler.cancel()
            with pytest.raises(ServerDisconnectedError):
                await asking
        await embedded.gateway.tasks.drain()
    (line,) = lines_of(log)
    assert (line["outcome"], line["error"]) == ("failed", "cancelled")
    assert "status" not in line
