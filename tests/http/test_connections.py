"""Connections of hostile clients: heads, bodies, pipelines and hosts without bounds.

The limits are tested with both of aiohttp's parsers, because they divide the bytes differently.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web, web_protocol
from aiohttp.http import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser, HttpRequestParserPy

from gateway.api.http import sending
from gateway.api.http import server as http_server
from gateway.api.http.connection_limits import ConnectionLimits, OpenConnections
from gateway.api.http.server import Runner
from gateway.cli import serve
from gateway.net.client_address import TrustedProxies
from tests.examples import some_rows
from tests.gateways import (
    MODEL,
    Client,
    InProcess,
    Upstream,
    make_settings,
    needs_asyncio_that_pauses,
    run_gateway,
    run_processes,
    run_upstream,
)
from tests.http.conftest import OpenGateway
from tests.http.test_bad_input import (
    GENERATIONS,
    assert_error,
    assert_is_error,
    body_of,
    error,
    head,
)
from tests.raw_http import Raw, talk
from tests.waiting import GENEROUS_SECONDS, eventually, generous, turns

KIB = 1024
MAX_HEAD = 64 * KIB
HEAD_TOO_LARGE = error(
    "The head of the request is too large: this gateway accepts up to 65536 bytes "
    "(server.max_head).",
    None,
    "head_too_large",
)
NOT_HTTP = error("The request is not valid HTTP.")
BAD_HOST = error(
    "The request needs exactly one valid host: Host: name, or name:port (RFC 9112 §3.2)."
)
CHUNKED = b"Transfer-Encoding: chunked"
GET = b"GET /v1/nowhere HTTP/1.1\r\nHost: here\r\n"


@pytest.fixture(params=["compiled", "python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test runs with both parsers."""
    parser = HttpRequestParser if request.param == "compiled" else HttpRequestParserPy
    monkeypatch.setattr(web_protocol, "HttpRequestParser", parser)


both_parsers = pytest.mark.usefixtures("_parser")


async def echo(request: web.Request) -> web.Response:
    """Answers with the length of the body, or 400 if it cannot be read."""
    try:
        return web.Response(text=str(len(await request.read())))
    except (web_protocol.RequestPayloadError, HttpProcessingError):
        return web.Response(status=400)


@asynccontextmanager
async def run_server(
    handler: Callable[[web.Request], Any] = echo,
    *,
    head_seconds: float = 30,
    keepalive_timeout: float = 620,
    **limits: Any,
) -> AsyncIterator[tuple[Runner, Client]]:
    """A server of `handler` alone; `limits` are those of its connections."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = Runner(
        app,
        head_seconds=head_seconds,
        keepalive_timeout=keepalive_timeout,
        limits=ConnectionLimits(**limits),
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner, Client("http://{}:{}".format(*runner.addresses[0][:2]), None)  # type: ignore[arg-type]
    finally:
        await runner.cleanup()


def statuses(raw: Raw) -> list[int]:
    return [reply.status for reply in raw.replies]


# ── heads ───────────────────────────────────────────────────────────────────────────────────

LARGE_HEADS = {
    "one endless line": GET + b"X: " + b"x" * 2 * MAX_HEAD,
    "an endless first line": b"GET /" + b"x" * 2 * MAX_HEAD,
    "an endless method": b"x" * 2 * MAX_HEAD,
    "long lines": GET + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(9)),
    "many short lines": GET + b"x:y\r\n" * 20_000,
    "complete": GET + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(9)) + b"\r\n",
    "complete and 1 MB": GET + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(120)),
    "empty lines in front": b"\r\n" * MAX_HEAD,
    "behind another request": GET
    + b"\r\n"
    + GET
    + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(9)),
}


@both_parsers
@pytest.mark.parametrize("start", LARGE_HEADS.values(), ids=list(LARGE_HEADS))
async def test_a_head_over_the_limit_is_431_and_the_connection_is_closed(start: bytes) -> None:
    async with run_server() as (_, client):
        raw = await talk(client, start)

    *_, last = raw.replies
    assert_error(last, 431, HEAD_TOO_LARGE)
    assert raw.was_closed


@both_parsers
async def test_a_head_that_is_trickled_is_bounded_too() -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(9))
    data = GET + lines
    async with run_server() as (runner, client):
        before = set(runner.server.connections)
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        (here,) = await eventually(lambda: set(runner.server.connections) - before)
        for position in range(len(data)):
            here.data_received(data[position : position + 1])
        answer = await reader.read()
        writer.close()

    assert answer.startswith(b"HTTP/1.1 431 ")


@both_parsers
@pytest.mark.parametrize(
    "size", [60 * KIB, MAX_HEAD - 1, MAX_HEAD], ids=["60 KiB", "nearly the limit", "the limit"]
)
@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "split"])
async def test_a_head_within_the_limit_is_read(size: int, is_split: bool) -> None:
    start = GET + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 7500) for i in range(8))
    data = start + b"Connection: close\r\nY: " + b"y" * (size - len(start) - 26) + b"\r\n\r\n"
    assert len(data) == size
    parts = (data[:30_000], data[30_000:]) if is_split else (data,)
    async with run_server() as (_, client):
        raw = await talk(client, *parts)

    assert statuses(raw) == [200]


@pytest.mark.timed
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
async def test_200_heads_of_a_megabyte_leave_the_memory_as_it_is(tmp_path: Path) -> None:
    """They took 380 MB while a head was bounded line by line."""
    start = GET + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 8000) for i in range(120))
    async with (
        run_upstream() as upstream,
        run_processes(tmp_path / "it", upstream.base_url, workers=1) as (processes, client),
    ):
        (worker,) = processes.workers()
        await talk(client, GET + b"\r\n", listen_seconds=0)
        before = rss_mb(worker)
        raws = await asyncio.gather(*(talk(client, start) for _ in range(200)))
        growth = rss_mb(worker) - before

    assert {raw.reply.status for raw in raws if raw.replies} == {431}
    assert growth < 40


def rss_mb(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) // 1024


@both_parsers
async def test_incomplete_heads_of_all_connections_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They need no key, so they take nothing from the memory of bodies."""
    monkeypatch.setattr(http_server, "MAX_EARLY_BYTES", 20_000)
    start = GET + b"X: " + b"x" * 7_000
    async with run_server() as (runner, client), AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(open_after(client, start))
        await eventually(
            lambda: runner.server.shared.early_memory.hold(0) and _held(runner) > 14_000
        )
        refused = await talk(client, start)
        served = await talk(client, GET + b"Connection: close\r\n\r\n")
        await stack.aclose()
        await eventually(lambda: _held(runner) == 0)

    assert_is_error(refused.reply, 503)
    assert refused.reply.error["code"] == "overloaded"
    assert statuses(served) == [200]


def _held(runner: Runner) -> int:
    return runner.server.shared.early_memory._held_bytes


@asynccontextmanager
async def open_after(client: Client, data: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """A connection that has sent some bytes and stays open."""
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        yield reader
    finally:
        writer.transport.abort()


# ── clocks ──────────────────────────────────────────────────────────────────────────────────

HALF_HEADS = {
    "alone": (b"GET / HT",),
    "behind a request": (GET + b"\r\n" + b"GET / HT",),
    "behind a body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcdGET",),
    "with the end of a body": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab",
        b"cdGET / HTTP/1.1\r\nHo",
    ),
    "with the end of chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
        b"cd\r\n0\r\n\r\nGET / HTTP/1.1\r\nHo",
    ),
    "after the answer": (GET + b"\r\n", b"G"),
    "empty lines": (b"\r\n\r\n",),
}


@both_parsers
@pytest.mark.parametrize("parts", HALF_HEADS.values(), ids=list(HALF_HEADS))
async def test_a_half_head_is_408_wherever_it_stands(parts: tuple[bytes, ...]) -> None:
    async with run_server(head_seconds=0.3) as (_, client):
        raw = await talk(client, *parts)

    assert raw.was_closed
    *complete, last = statuses(raw)
    assert complete == ([200] if b"Host" in parts[0] else [])
    assert last == 408


@both_parsers
async def test_the_clock_of_a_head_that_was_sent_ahead_starts_with_the_answer() -> None:
    """A client may send the start of its next request while a long one is answered."""
    may_answer = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await may_answer.wait()
        return web.Response()

    async with (
        run_server(slow, head_seconds=0.3) as (_, client),
        open_after(client, GET + b"\r\n" + GET) as reader,
    ):
        await asyncio.sleep(0.6)
        may_answer.set()
        async with generous():
            received = await reader.read()

    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"408"]


@both_parsers
async def test_an_empty_line_behind_a_body_starts_no_clock() -> None:
    """Some clients send one, RFC 9112 §2.2."""
    request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab\r\n"
    async with run_server(head_seconds=0.2) as (_, client):
        idle = await talk(client, request, listen_seconds=0.6)
        again = await talk(client, request, GET + b"Connection: close\r\n\r\n")

    assert (statuses(idle), idle.was_closed) == ([200], False)
    assert statuses(again) == [200, 200]


@both_parsers
async def test_a_connection_without_a_request_is_closed_after_the_time_of_a_head() -> None:
    """After a request it stays open for longer: clients keep connections for the next one."""
    async with run_server(head_seconds=0.3, keepalive_timeout=30) as (_, client):
        fresh = await talk(client)
        used = await talk(client, GET + b"\r\n", listen_seconds=0.8)

    assert (fresh.replies, fresh.was_closed) == ([], True)
    assert (statuses(used), used.was_closed) == ([200], False)


@both_parsers
async def test_a_head_that_begins_when_the_idle_time_ends_still_has_its_own_time() -> None:
    async with run_server(head_seconds=GENEROUS_SECONDS, keepalive_timeout=1.0) as (_, client):
        # One part is sent every 0.05 s, so the head begins after 0.1 s and ends after 1.2 s.
        parts = GET + b"\r\n", b"", GET, *(b"" for _ in range(21)), b"\r\n"
        raw = await talk(client, *parts, listen_seconds=0.1)

    assert statuses(raw)[:2] == [200, 200]


@both_parsers
@pytest.mark.parametrize(
    "start",
    [
        b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
    ],
    ids=["a tunnel", "HTTP/2", "TLS", "SSH"],
)
async def test_another_protocol_ends_the_connection(start: bytes) -> None:
    async with run_server(head_seconds=0.5) as (_, client):
        raw = await talk(client, start, GET + b"\r\n")

    assert raw.was_closed
    assert len(raw.replies) == 1


@both_parsers
async def test_an_upgrade_is_ignored_and_the_connection_stays_http() -> None:
    upgrade = GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    body = b"Content-Length: 2\r\n\r\nab"
    last = GET + b"Connection: close\r\n\r\n"
    async with run_server() as (_, client):
        raw = await talk(client, upgrade + upgrade[:-2] + body + last)

    assert [(reply.status, reply.body) for reply in raw.replies] == [
        *((200, b"0"), (200, b"2"), (200, b"0"))
    ]


# ── pipelines ───────────────────────────────────────────────────────────────────────────────


@both_parsers
async def test_pipelined_requests_are_answered_in_order_with_their_bodies() -> None:
    plain = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s"
    chunked = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    )
    requests = [
        (chunked if size % 2 else plain) % (size, b"G" * size) for size in range(1, 2_000, 7)
    ]
    last = GET + b"Connection: close\r\n\r\n"
    async with run_server() as (_, client):
        raw = await talk(client, b"".join(requests) + last)

    assert [int(reply.body) for reply in raw.replies] == [*range(1, 2_000, 7), 0]


@both_parsers
async def test_a_request_is_not_read_before_the_one_in_front_is_answered() -> None:
    started = 0
    may_answer = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        nonlocal started
        started += 1
        await may_answer.wait()
        return web.Response()

    async with run_server(slow) as (runner, client), AsyncExitStack() as stack:
        await stack.enter_async_context(open_after(client, (GET + b"\r\n") * 1_000))
        await eventually(lambda: started)
        await turns()
        (here,) = runner.server.connections
        waiting = len(here._messages)
        may_answer.set()
        await eventually(lambda: started == 1_000)

    assert waiting == 0


@needs_asyncio_that_pauses
@pytest.mark.parametrize("answer_bytes", [10, 300_000])
async def test_a_pipelining_client_that_reads_nothing_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, answer_bytes: int
) -> None:
    monkeypatch.setattr(sending, "WRITE_STALL_SECONDS", 0.5)

    async def small(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * answer_bytes)

    async with run_server(small) as (runner, client):
        await flood(client, GET + b"\r\n", until=lambda: _is_stalled(runner))
        await eventually(lambda: not runner.server.connections)


@needs_asyncio_that_pauses
async def test_a_closing_connection_whose_client_reads_nothing_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise it would wait for the client for ever, with a descriptor and the answer."""
    monkeypatch.setattr(sending, "WRITE_STALL_SECONDS", 0.5)

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 10_000_000)

    async with run_server(large) as (runner, client):
        with stalling_socket(client) as opened:
            await asyncio.get_running_loop().sock_sendall(
                opened, GET + b"Connection: close\r\n\r\n"
            )
            await eventually(lambda: runner.server.connections)
            await eventually(lambda: not runner.server.connections)


def _is_stalled(runner: Runner) -> bool:
    """Whether a client has to read before it gets another answer."""
    return any(here.writing_paused or here._held for here in runner.server.connections)


def stalling_socket(client: Client) -> socket.socket:
    """A connected socket with a small buffer."""
    host, port = client.url.removeprefix("http://").split(":")
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect((host, int(port)))
    opened.setblocking(False)
    return opened


async def flood(client: Client, request: bytes, *, until: Callable[[], bool]) -> None:
    """Sends requests without reading the answers."""
    with stalling_socket(client) as opened:
        sender = asyncio.create_task(_send_for_ever(opened, request * 100))
        await eventually(until)
        await eventually(lambda: sender.done() or not until())
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)


async def _send_for_ever(opened: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await loop.sock_sendall(opened, data)


@pytest.mark.timed
async def test_a_client_that_leaves_behind_a_refused_body_is_forgotten_at_once() -> None:
    """aiohttp would wait ten seconds for the rest of the body, also without a connection."""

    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=413)

    async with run_server(refuse) as (runner, client):
        start = head(client, "Content-Length: 5000000", key="gk-x") + b"x" * 1000
        async with open_after(client, start) as reader:
            assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        left_at = time.monotonic()
        await eventually(lambda: not runner.server.connections)
    assert time.monotonic() - left_at < 5


@needs_asyncio_that_pauses
@pytest.mark.timed
async def test_a_pipelining_client_that_reads_slowly_is_not_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "WRITE_STALL_SECONDS", 0.5)

    async def small(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 20_000)

    loop = asyncio.get_running_loop()
    async with run_server(small) as (runner, client):
        with stalling_socket(client) as opened:
            sender = asyncio.create_task(_send_for_ever(opened, (GET + b"\r\n") * 10))
            received = 0
            async with generous():
                while received < 400_000:
                    received += len(await loop.sock_recv(opened, 4096))
                    await asyncio.sleep(0.02)
            still_open = len(runner.server.connections)
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    assert still_open == 1


# ── bodies ──────────────────────────────────────────────────────────────────────────────────

FOLLOWED = {
    "a length": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab",
        b"cd\x00garbage\r\n\r\n",
    ),
    "a length in one": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd\x00garbage\r\n\r\n",
    ),
    "chunks": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab",
        b"cd\r\n0\r\n\r\n\x00garbage\r\n\r\n",
    ),
    "trailers": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\nA: b",
        b"\r\n\r\nGET / HTTP/9.9\r\n\r\n",
    ),
    "no Host": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab",
        b"cdGET / HTTP/1.1\r\n\r\n",
    ),
    "an invalid host": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab",
        b"cdGET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    ),
}


@both_parsers
@pytest.mark.parametrize("parts", FOLLOWED.values(), ids=list(FOLLOWED))
async def test_a_valid_request_is_answered_although_garbage_follows(
    parts: tuple[bytes, ...],
) -> None:
    async with run_server() as (_, client):
        raw = await talk(client, *parts)

    valid, garbage = raw.replies
    assert (valid.status, valid.body) == (200, b"4")
    assert garbage.status == 400
    assert raw.was_closed


FRAMINGS = {
    "no coding": b"Transfer-Encoding:",
    "two codings": b"Transfer-Encoding: gzip, chunked",
    "chunked twice": b"Transfer-Encoding: chunked, chunked",
    "an unknown coding": b"Transfer-Encoding: xchunked",
    "identity": b"Transfer-Encoding: identity",
    "a parameter": b"Transfer-Encoding: chunked;a=b",
    "with a length": b"Transfer-Encoding: chunked\r\nContent-Length: 12",
}


@both_parsers
@pytest.mark.parametrize("line", FRAMINGS.values(), ids=list(FRAMINGS))
async def test_a_body_whose_end_is_open_is_400(line: bytes) -> None:
    start = b"POST / HTTP/1.1\r\nHost: a\r\n" + line
    async with run_server() as (_, client):
        raw = await talk(client, start + b"\r\n\r\n2\r\nab\r\n0\r\n\r\n" + GET + b"\r\n")

    assert statuses(raw) == [400]
    assert raw.was_closed


@both_parsers
@pytest.mark.parametrize("version", [b"", b" HTTP/0.9", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/3"])
async def test_another_version_than_10_and_11_is_400(version: bytes) -> None:
    async with run_server() as (_, client):
        raw = await talk(client, b"GET /" + version + b"\r\nHost: a\r\n\r\n")

    assert statuses(raw) == [400]
    assert raw.was_closed


@both_parsers
async def test_chunks_in_http_10_are_400() -> None:
    start = b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with run_server() as (_, client):
        raw = await talk(client, start + b"2\r\nab\r\n0\r\n\r\n")

    assert statuses(raw) == [400]


@both_parsers
@pytest.mark.parametrize(
    "chunks",
    [
        b"2\r\nab\r\n0\r\nX: y\n\r\n",
        b"2\r\nab\r\n0\r\n\r\r\n",
        b"2\r\nab\r\n0\n\n",
        b"2\nab\r\n0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("is_split", [False, True], ids=["whole", "split"])
async def test_a_chunked_body_with_a_bare_line_break_is_400_at_once(
    chunks: bytes, is_split: bool
) -> None:
    start = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    data = start + chunks + GET + b"\r\n"
    parts = (data[: len(start) + 5], data[len(start) + 5 :]) if is_split else (data,)
    async with run_server() as (_, client):
        raw = await talk(client, *parts)

    assert statuses(raw) == [400]
    assert raw.was_closed


@both_parsers
@pytest.mark.parametrize("framing", ["length", "chunks"])
async def test_a_body_that_is_read_slowly_is_read_to_its_end(framing: str) -> None:
    """The parser keeps bytes while the reader is full, also those at the end."""

    async def read_slowly(request: web.Request) -> web.Response:
        size = 0
        while part := await request.content.read(50_000):
            size += len(part)
            await asyncio.sleep(0)
        return web.Response(text=str(size))

    head_lines = b"POST / HTTP/1.1\r\nHost: a\r\n"
    plain = head_lines + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000
    chunked = (
        head_lines
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + (b"493e0\r\n" + b"x" * 300_000 + b"\r\n") * 10
        + b"0\r\n\r\n"
    )
    data = plain if framing == "length" else chunked
    async with run_server(read_slowly) as (_, client):
        raw = await talk(client, data + data + GET + b"Connection: close\r\n\r\n")

    assert [reply.body for reply in raw.replies] == [b"3000000", b"3000000", b"0"]


@both_parsers
@pytest.mark.parametrize(
    ("framing", "rest"),
    [(b"Content-Length: 4", [b"ab", b"cd"]), (CHUNKED, [b"2\r\nab\r\n2", b"\r\ncd\r\n0\r\n\r\n"])],
)
async def test_a_body_that_arrives_while_the_worker_ends_is_read_to_its_end(
    framing: bytes, rest: list[bytes]
) -> None:
    """The worker waits for the answers to open requests, so their clients must be heard."""
    started = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        started.set()
        return await echo(request)

    async with run_server(slow) as (runner, client):
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        await started.wait()
        ending = asyncio.create_task(runner.cleanup())
        for part in rest:
            await turns(10)
            writer.write(part)
        async with generous():
            received = await reader.read()
            await ending
        writer.close()

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\n4")


async def test_the_memory_of_a_body_sent_ahead_is_free_again_when_its_client_is_gone() -> None:
    """The gateway notices with the answer in front, and the request behind is never answered."""
    release = asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with run_server(wait) as (runner, client):
        host, port = client.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        behind = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 90000\r\n\r\n" + b"x" * 50_000
        writer.write(GET + b"\r\n" + behind)
        await eventually(
            lambda: not runner.server.shared.early_memory.has_room(http_server.MAX_EARLY_BYTES)
        )
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()
        await turns(10)
        release.set()
        await eventually(lambda: not runner.server.connections)
        memory = runner.server.shared.body_memory

    assert memory.has_room(ConnectionLimits().max_body_memory_bytes)


@pytest.mark.parametrize(
    "body", [b"Content-Length: 9\r\n\r\nwhole", CHUNKED + b"\r\n\r\n5\r\nwhole\r\n"], ids=repr
)
async def test_a_request_whose_client_leaves_before_its_turn_is_not_begun(body: bytes) -> None:
    """Otherwise an incomplete body would be read as if it were complete."""
    begun: list[bytes] = []

    async def read(request: web.Request) -> web.Response:
        begun.append(await request.read())
        return web.Response()

    async with run_server(read) as (runner, client):
        shared = runner.server.shared
        host, port = client.url.removeprefix("http://").split(":")

        def is_held() -> bool:
            return not shared.body_memory.has_room(ConnectionLimits().max_body_memory_bytes)

        async with shared.turns._lock:
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + body)
            await eventually(is_held)
            writer.transport.abort()
            await eventually(lambda: not is_held())
        later = await talk(client, GET + b"Connection: close\r\n\r\n")

    assert later.reply.status == 200
    assert begun == [b""]
    assert not is_held()


CHUNKS = {
    "an endless extension": b"5;" + b"x" * 2 * MAX_HEAD,
    "extensions": (b"1;" + b"x" * 1000 + b"\r\nx\r\n") * 100,
    "tiny chunks": b"1\r\nx\r\n" * 20_000,
    "trailers": b"0\r\n" + b"x:y\r\n" * 20_000,
    "an endless trailer": b"0\r\nX: " + b"x" * 2 * MAX_HEAD,
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=list(CHUNKS))
async def test_the_framing_of_a_chunked_body_is_bounded_like_a_head(
    embedded: InProcess, chunks: bytes
) -> None:
    alice = await embedded.client.with_key()

    raw = await talk(alice, head(alice, "Transfer-Encoding: chunked") + chunks)

    assert raw.was_closed
    # Both bound the lines of trailers; the parser's own fault has no code of its own.
    if raw.reply.status != 400:
        assert_error(raw.reply, 431, HEAD_TOO_LARGE)


async def test_bodies_in_flight_are_bounded(
    tmp_path: Path, upstream: Upstream, store_url: str | None
) -> None:
    """A further one is refused before it is sent, or while it arrives in chunks."""
    settings = make_settings(
        tmp_path / "data", upstream.base_url, store_url, server={"max_body_memory": "1MiB"}
    )
    async with run_gateway(settings) as here:
        alice = await here.client.with_key()
        large = body_of(prompt="an otter in wide margins").ljust(700 * KIB)
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
        expect = "Expect: 100-continue", "Content-Length: 700000"
        async with upstream.hold():
            first = asyncio.create_task(send_body(alice, large))
            await upstream.until_sent()
            announced = await talk(alice, head(alice, f"Content-Length: {len(large)}") + large)
            in_chunks = await talk(alice, head(alice, "Transfer-Encoding: chunked") + chunked)
            expected = await talk(alice, head(alice, *expect))
            small = await alice.send("GET", "/v1/models")
            malformed = await alice.ask(n=11)
        bought = await first
        again = await send_body(alice, large)

    for raw in (announced, in_chunks, expected):
        assert_is_error(raw.reply, 503)
        assert raw.reply.error["code"] == "overloaded"
        assert raw.reply.headers["Retry-After"] == "1"
        assert raw.was_closed
    assert (small.status, malformed.status) == (200, 400)
    assert (bought.status, again.status) == (200, 200)
    assert len(await upstream.bodies()) == 1


async def send_body(client: Client, body: bytes) -> Any:
    return await client.send(
        "POST", GENERATIONS, data=body, headers={"Content-Type": "application/json"}
    )


@pytest.mark.parametrize("end", ["refused", "disconnected", "unread", "cut off"])
async def test_the_memory_of_a_body_is_free_again_however_its_request_ends(
    embedded: InProcess, end: str
) -> None:
    alice = await embedded.client.with_key()
    memory = embedded.runner.server.shared.body_memory
    whole, part = b"x" * 100_000, b"x" * 50_000
    line = "Content-Length: 100000"
    match end:
        case "refused":
            await talk(alice, head(alice, line) + whole, listen_seconds=0)
        case "disconnected":
            async with open_after(alice, head(alice, line) + part):
                await eventually(lambda: memory._held_bytes)
        case "unread":
            await talk(alice, head(alice, line, key="gk-wrong") + whole, listen_seconds=0)
        case "cut off":
            await talk(alice, head(alice, "Transfer-Encoding: chunked") + b"5\r\nhelloXX")

    await eventually(lambda: memory._held_bytes == 0)


# ── hosts ───────────────────────────────────────────────────────────────────────────────────

BAD_HOSTS = {
    "none": (b"", None),
    "two": (b"Host: a\r\nHost: b\r\n", None),
    "two alike": (b"Host: a\r\nhOST: a\r\n", None),
    "empty": (b"Host:\r\n", BAD_HOST),
    "not UTF-8": (b"Host: a\xff\r\n", BAD_HOST),
    "not ASCII": ("Host: bücher.example\r\n".encode(), BAD_HOST),
    "a user": (b"Host: user:secret@a\r\n", BAD_HOST),
    "a path": (b"Host: a/b\r\n", BAD_HOST),
    "a quote": (b'Host: a"b\r\n', BAD_HOST),
    "a space": (b"Host: a b\r\n", BAD_HOST),
    "a list": (b"Host: a, b\r\n", BAD_HOST),
    "port 0": (b"Host: a:0\r\n", BAD_HOST),
    "port 65536": (b"Host: a:65536\r\n", BAD_HOST),
    "a long name": (b"Host: " + b"a" * 256 + b"\r\n", BAD_HOST),
}
BAD_TARGETS = [
    *("http://", "http:///v1/images/generations", "http://user@a/v1/images/generations"),
    *("http://a:0/v1/images/generations", "ftp://a/v1/images/generations"),
    "http://a b/v1/images/generations",
]


def image_request(client: Client, *lines: bytes, target: bytes = GENERATIONS.encode()) -> bytes:
    """A purchase of a link, with exactly these lines about its host."""
    body = json.dumps(
        {"model": "dall-e-2", "prompt": "an otter", "response_format": "url"}
    ).encode()
    return (
        b"POST %s HTTP/1.1\r\n" % target
        + b"".join(lines)
        + b"Authorization: Bearer %s\r\n" % client.secret.encode()
        + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        + body
    )


@both_parsers
@pytest.mark.parametrize(("line", "expected"), BAD_HOSTS.values(), ids=list(BAD_HOSTS))
async def test_a_request_without_one_valid_host_is_400_and_buys_nothing(
    embedded: InProcess, upstream: Upstream, line: bytes, expected: dict[str, Any] | None
) -> None:
    alice = await embedded.client.with_key()

    raw = await talk(alice, image_request(alice, line))
    health = await talk(alice, b"GET /healthz HTTP/1.1\r\n" + line + b"\r\n")

    for reply in (raw.reply, health.reply):
        assert_error(reply, 400, expected or NOT_HTTP)
    assert raw.was_closed
    assert await upstream.bodies() == []


@both_parsers
@pytest.mark.parametrize("target", BAD_TARGETS)
async def test_an_absolute_target_needs_a_valid_host_too(
    embedded: InProcess, upstream: Upstream, target: str
) -> None:
    alice = await embedded.client.with_key()

    raw = await talk(alice, image_request(alice, b"Host: a\r\n", target=target.encode()))

    assert_is_error(raw.reply, 400)
    assert await upstream.bodies() == []


@pytest.mark.parametrize(
    ("lines", "target", "start"),
    [
        (b"Host: images.example.com\r\n", "", "http://images.example.com/images/"),
        (b"Host: [2001:db8::7]:81\r\n", "", "http://[2001:db8::7]:81/images/"),
        (b"Host: a\r\n", "http://b:8080", "http://b:8080/images/"),
        (b"Host: a\r\n", "HTTP://b", "http://b/images/"),
    ],
)
async def test_a_link_starts_with_the_host_that_the_request_was_sent_to(
    embedded: InProcess, lines: bytes, target: str, start: str
) -> None:
    """In the absolute form that is the target's (RFC 9112 §3.2.2)."""
    alice = await embedded.client.with_key()

    raw = await talk(alice, image_request(alice, lines, target=(target + GENERATIONS).encode()))

    assert raw.reply.status == 200
    assert raw.reply.json["data"][0]["url"].startswith(start)


async def test_a_client_of_http_10_without_a_host_gets_a_link_that_works(
    embedded: InProcess,
) -> None:
    alice = await embedded.client.with_key()
    request = image_request(alice).replace(b"HTTP/1.1", b"HTTP/1.0")

    raw = await talk(alice, request)
    link = raw.reply.json["data"][0]["url"]
    async with alice.session.get(link) as image:
        status = image.status

    assert link.startswith(f"{alice.url}/images/")
    assert status == 200


ECHOED_HEADERS = [
    *("X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-For", "Forwarded", "Idempotency-Key"),
    *("X-Gateway-Tags", "X-Gateway-Variation", "X-Gateway-Max-Cost-USD", "Cache-Control", "Pragma"),
    *("Prefer", "User-Agent", "Origin", "Accept", "x-stainless-retry-count", "Cookie", "Expect"),
    *("X-Request-Id", "Range", "If-None-Match", "Connection", "Upgrade", "TE", "X-Any"),
]
STRANGE_VALUES = [
    b"\xff\xfe",
    b"a\x80",
    "é".encode(),
    b"\xed\xa0\x80",
    b'"\\',
    b"\xc3",
    b"a" * 8000,
]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", some_rows(ECHOED_HEADERS))
async def test_a_header_of_strange_bytes_is_refused_before_the_purchase_or_answered(
    embedded: InProcess, upstream: Upstream, name: str
) -> None:
    """No request is charged and then fails because its own bytes cannot be part of an answer."""
    alice = await embedded.client.with_key()
    for number, value in enumerate(STRANGE_VALUES):
        for stream in (False, True):
            await upstream.forget()
            body = json.dumps(
                {"model": MODEL, "prompt": f"otter {number} {stream}", "stream": stream}
            ).encode()
            request = (
                b"POST /v1/images/generations HTTP/1.1\r\nHost: a\r\n"
                + b"Authorization: Bearer %s\r\n" % alice.secret.encode()
                + b"Content-Length: %d\r\n" % len(body)
                + (b"" if name == "Connection" else b"Connection: close\r\n")
                + b"%s: %s\r\n\r\n" % (name.encode(), value)
                + body
            )
            async with open_after(alice, request) as reader, generous():
                received = await reader.readuntil(b"\r\n\r\n")

            status = int(received.split()[1])
            assert status in (200, 400, 417), (value, received)
            assert (status == 200) == (len(await upstream.bodies()) == 1), (value, received)


# ── how many connections ────────────────────────────────────────────────────────────────────


async def test_a_connection_beyond_the_limit_is_503_and_a_closed_one_makes_room(
    open_gateway: OpenGateway,
) -> None:
    async with open_gateway(server={"max_connections": 3}) as here, AsyncExitStack() as stack:
        alice = await here.client.with_key()  # its connection stays open
        for _ in range(2):
            await stack.enter_async_context(open_after(alice, b""))
        await eventually(lambda: len(here.runner.server.connections) == 3)
        refused = await talk(alice, head(alice, "Content-Length: 2") + b"{}")
        only_head = await talk(alice, b"HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        health = await talk(alice, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        metrics = await here.client.metrics()
        await stack.aclose()
        await eventually(lambda: len(here.runner.server.connections) == 1)
        served = await talk(alice, GET + b"Connection: close\r\n\r\n")

    assert_is_error(refused.reply, 503)
    assert refused.reply.error["code"] == "overloaded"
    assert refused.reply.headers["Retry-After"] == "1"
    assert refused.reply.headers["Connection"] == "close"
    assert refused.was_closed
    assert (only_head.reply.status, only_head.reply.body) == (503, b"")
    assert (health.reply.status, health.reply.json) == (200, {"status": "ok"})
    assert metrics['gateway_connections_refused_total{reason="connections"}'] == 3
    assert served.reply.status == 404


async def test_a_refused_client_that_sends_a_large_request_still_reads_its_answer(
    embedded: InProcess,
) -> None:
    """A connection that is closed with unread bytes is reset, which can overtake the answer."""
    data = head(embedded.client, "Content-Length: 5000000", key="gk-x") + b"x" * 5_000_000
    async with run_server(max_connections=0) as (_, client):
        replies = [await talk(client, data) for _ in range(5)]

    assert [statuses(raw) for raw in replies] == [[503]] * 5


async def test_connections_of_one_address_are_limited_and_proxies_are_exempt() -> None:
    proxies = [ip_network("127.0.0.0/8")]
    async with run_server(max_per_address=2) as (runner, client), AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(open_after(client, b""))
        await eventually(lambda: len(runner.server.connections) == 2)
        refused = await talk(client, GET + b"\r\n")
    async with (
        run_server(max_per_address=2, proxies=TrustedProxies(proxies)) as (runner, client),
        AsyncExitStack() as stack,
    ):
        for _ in range(5):
            await stack.enter_async_context(open_after(client, b""))
        await eventually(lambda: len(runner.server.connections) == 5)

    assert_is_error(refused.reply, 429)
    assert refused.reply.error["code"] == "too_many_open"
    assert refused.reply.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("first", "second", "count_together"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_an_ipv6_network_of_64_bits_counts_as_one_address(
    first: str, second: str, count_together: bool
) -> None:
    connections = OpenConnections(ConnectionLimits(max_per_address=1))

    counted = [connections._counted_address(_Peer(address)) for address in (first, second)]  # type: ignore[arg-type]

    assert (len(set(counted)) == 1) == count_together


class _Peer:
    def __init__(self, address: str) -> None:
        self._address = address

    def get_extra_info(self, name: str) -> tuple[str, int]:
        return self._address, 1


def test_a_descriptor_limit_below_the_connections_is_a_warning() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        with structlog.testing.capture_logs() as logs:
            serve._raise_descriptor_limit(100)
            serve._raise_descriptor_limit(hard + 1)
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert raised == hard
    assert [line["event"] for line in logs] == ["descriptor_limit_low"]
