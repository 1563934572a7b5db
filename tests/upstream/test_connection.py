"""Connections to upstream and to links: no answer is taken from bytes that no request asked for.

Each test runs on both event loops and with both of aiohttp's parsers. They fail if a new aiohttp no
longer calls what `gateway.upstream.connection` replaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import aiohttp.client_proto
import aiohttp.http_parser
import pytest
import uvloop

from gateway.errors import Charge, UpstreamFailure
from gateway.images import ImageRequest
from gateway.net.guard import LinkBlocked
from gateway.upstream import connection
from gateway.upstream.client import UpstreamClient, open_client
from gateway.upstream.connection import (
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MAX_INTERIM_RESPONSES,
    Connection,
)
from gateway.upstream.fetch import FetchSettings, LinkFetcher, open_link_fetcher
from gateway.upstream.observer import Pace
from gateway.upstream.session import ClientSettings
from tests.examples import some_rows
from tests.inner_server import TLS
from tests.scripted_upstream import KEY, Notes, images
from tests.waiting import eventually, generous, turns

Run = Callable[[Coroutine[Any, Any, None]], None]
REQUEST = ImageRequest(model="painter", prompt="otter")


@pytest.fixture(params=["compiled parser", "Python's parser"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    python = aiohttp.http_parser.HttpResponseParserPy
    if request.param == "Python's parser":
        monkeypatch.setattr(aiohttp.client_proto, "HttpResponseParser", python)
    else:
        assert aiohttp.client_proto.HttpResponseParser is not python


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, parser: None) -> Run:
    def run_on_loop(story: Coroutine[Any, Any, None]) -> None:
        async def bounded() -> None:
            async with generous():
                await story

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded())

    return run_on_loop


# ── a server with stray bytes ───────────────────────────────────────────────────────────────


@dataclass
class Server:
    """Answers its n-th request with the image `image n`, in the form that `framing` names."""

    kind: str
    framing: str = "length"
    url: str = ""
    stray: bytes = b""
    """Sent in one segment with the next answer."""
    raw: list[bytes] = field(default_factory=list)
    """Sent in place of the next answers."""
    requests: int = 0
    connections: int = 0
    open: int = 0
    writer: asyncio.StreamWriter | None = None
    """Of the newest connection."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writer = writer
        self.connections += 1
        self.open += 1
        try:
            while True:
                await self.receive(reader)
                self.requests += 1
                reply = self.raw.pop(0) if self.raw else self.answer(b"image %d" % self.requests)
                stray, self.stray = self.stray, b""
                writer.write(reply + stray)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()

    async def receive(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, _, length = head.partition(b"content-length: ")
        await reader.readexactly(int(length.split(b"\r\n")[0] or 0))

    def answer(self, image: bytes) -> bytes:
        if self.kind == "link":
            return http(image, "image/png", framing=self.framing)
        if self.kind == "stream":
            return http(completed(image), "text/event-stream", framing=self.framing)
        return http(images(image), "application/json", framing=self.framing)


def completed(image: bytes) -> bytes:
    name = "image_generation.completed"
    event = {"type": name, "b64_json": b64encode(image).decode()}
    return f"event: {name}\ndata: {json.dumps(event)}\n\n".encode()


def http(body: bytes, kind: str, *, framing: str = "length", status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n".encode()
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if framing == "length, close":
        return head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    chunks = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    trailer = b"x-trailer: 1\r\n" if framing == "chunked, trailer" else b""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + trailer + b"\r\n"


@contextlib.asynccontextmanager
async def serving(server: Server, *, tls: bool = False) -> AsyncIterator[Server]:
    context = None
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(TLS / "server.pem", TLS / "server-key.pem")
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listener.sockets[0].getsockname()[1]
    server.url = f"http{'s' * tls}://127.0.0.1:{port}/v1"
    try:
        yield server
    finally:
        listener.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)


@dataclass
class Buyer:
    """Gets images of one server, each by the same kind of request."""

    server: Server
    client: UpstreamClient
    links: LinkFetcher
    notes: Notes

    async def buy(self) -> bytes | None:
        if self.server.kind == "link":
            return await self.links.fetch(f"{self.server.url}/image.png")
        if self.server.kind == "stream":
            answer = await self.client.stream(REQUEST, on_partial=ignore, on_open=ignore)
        else:
            answer = await self.client.generate(REQUEST, images=1)
        return answer.images[0].data

    async def fail(self) -> UpstreamFailure | LinkBlocked:
        with pytest.raises((UpstreamFailure, LinkBlocked)) as caught:
            await self.buy()
        assert isinstance(caught.value, UpstreamFailure | LinkBlocked)
        return caught.value


async def ignore(*_: object) -> None:
    pass


@contextlib.asynccontextmanager
async def buying(
    server: Server, *, sleep: Callable[[float], Any] = ignore, tls: bool = False
) -> AsyncIterator[Buyer]:
    notes = Notes()
    async with serving(server, tls=tls):
        ca_file = TLS / "authority.pem" if tls else None
        settings = ClientSettings(base_url=server.url, api_key=KEY, ca_file=ca_file)
        fetch = FetchSettings(upstream_url=server.url, max_bytes=10**6, ca_file=ca_file)
        async with (
            open_client(settings, observer=notes, pace=Pace(sleep=sleep)) as client,
            open_link_fetcher(fetch) as links,
        ):
            yield Buyer(server, client, links, notes)


# ── unsolicited bytes ───────────────────────────────────────────────────────────────────────

KINDS = ["purchase", "stream", "link"]
FRAMINGS = ["length", "chunked", "chunked, trailer", "length, close"]


def strays(server: Server) -> list[bytes]:
    whole = server.answer(b"a stray image")
    return [
        whole,
        whole + whole,
        whole[:20],  # a part of a head
        whole[: whole.index(b"\r\n\r\n") + 4],
        whole.replace(b"200 OK", b"503 No"),
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"220 mail.example ESMTP\r\n",
        b"\r\n",
        b"\n",
        b"0",
        b"\x00" * 300_000,
    ]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_in_one_segment_with_an_answer_are_no_answer(
    run: Run, kind: str, framing: str
) -> None:
    async def story() -> None:
        server = Server(kind, framing)
        async with buying(server, tls=framing == "chunked") as buyer:
            for stray in strays(server):
                server.stray = stray
                assert await buyer.buy() == b"image %d" % server.requests
                connections = server.connections
                assert await buyer.buy() == b"image %d" % server.requests
                assert server.connections == connections + 1
            assert server.requests == 2 * len(strays(server))

    run(story())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_on_an_idle_connection_close_it(run: Run, kind: str, tls: bool) -> None:
    async def story() -> None:
        server = Server(kind)
        async with buying(server, tls=tls) as buyer:
            for stray in strays(server):
                assert await buyer.buy() == b"image %d" % server.requests
                assert server.writer is not None
                assert server.open == 1
                server.writer.write(stray)
                await eventually(lambda: server.open == 0)
                assert await buyer.buy() == b"image %d" % server.requests
                assert server.writer is not None
                server.writer.write(stray)
                await eventually(lambda: server.open == 0)
            assert server.requests == 2 * len(strays(server))

    run(story())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_the_event_loop_has_not_read_yet_are_no_answer_either(
    run: Run, kind: str, tls: bool
) -> None:
    async def story() -> None:
        server = Server(kind)
        async with buying(server, tls=tls) as buyer:
            for stray in strays(server):
                assert await buyer.buy() == b"image %d" % server.requests
                assert server.writer is not None
                connections = server.connections
                server.writer.write(stray)
                assert await buyer.buy() == b"image %d" % server.requests
                assert server.connections == connections + 1

    run(story())


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_rests_until_late_bytes_have_arrived(
    run: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second request comes at once, and the stray answer to the first one after it."""

    async def story() -> None:
        server = Server(kind)
        async with buying(server) as buyer:
            monkeypatch.setattr(connection, "REST_SECONDS", 60.0)
            await buyer.buy()
            first = server.writer
            assert first is not None
            assert await buyer.buy() == b"image 2"
            first.write(server.answer(b"a stray image"))
            await eventually(lambda: server.open == 1)
            monkeypatch.setattr(connection, "REST_SECONDS", 0.0)
            assert await buyer.buy() == b"image 3"
            assert server.connections == 2

    run(story())


@pytest.mark.parametrize("kind", KINDS)
def test_without_stray_bytes_a_connection_is_reused(run: Run, kind: str) -> None:
    async def story() -> None:
        for framing in ("length", "chunked", "chunked, trailer"):
            server = Server(kind, framing)
            async with buying(server) as buyer:
                for _ in range(3):
                    assert await buyer.buy() == b"image %d" % server.requests
            assert server.connections == 1

    run(story())


def test_an_answer_in_single_bytes_is_followed_by_no_stray_one(run: Run) -> None:
    async def story() -> None:
        for framing in ("length", "chunked", "chunked, trailer"):
            server = Server("purchase", framing)
            whole = server.answer(b"by bytes")
            async with serving(server), piecemeal(server, whole) as buyer:
                assert await buyer.buy() == b"by bytes"
                assert server.open == 1

    run(story())


@contextlib.asynccontextmanager
async def piecemeal(server: Server, whole: bytes) -> AsyncIterator[Buyer]:
    async with buying(server) as buyer:

        async def receive(reader: asyncio.StreamReader) -> None:
            await Server.receive(server, reader)
            assert server.writer is not None
            for i in range(len(whole) - 1):
                server.writer.write(whole[i : i + 1])
                await asyncio.sleep(0)
            server.raw = [whole[-1:]]

        server.receive = receive  # type: ignore[method-assign]
        yield buyer


@pytest.mark.parametrize(
    "bad",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 304 Not Modified\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_an_answer_without_a_body_or_with_a_short_one_is_no_answer(
    run: Run, kind: str, bad: bytes
) -> None:
    async def story() -> None:
        server = Server(kind)
        stray = server.answer(b"a stray image")
        async with buying(server) as buyer:
            server.raw = [bad + stray]
            with contextlib.suppress(UpstreamFailure, LinkBlocked):
                assert await buyer.buy() != b"a stray image"
            assert await buyer.buy() == b"image 2"
            assert (server.requests, server.connections) == (2, 2)

    run(story())


def test_a_second_answer_during_the_wait_before_a_retry_is_no_answer(run: Run) -> None:
    async def story() -> None:
        server = Server("purchase")

        async def sleep(_: float) -> None:
            assert server.writer is not None
            server.writer.write(server.answer(b"a stray image"))

        async with buying(server, sleep=sleep) as buyer:
            server.raw = [http(b"{}", "application/json", status="503 No")] * 2
            assert await buyer.buy() == b"image 3"
            assert (server.requests, server.connections) == (3, 3)

    run(story())


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_to_a_cancelled_request_is_no_answer(run: Run, kind: str) -> None:
    async def story() -> None:
        server = Server(kind)
        async with buying(server) as buyer:
            whole = server.answer(b"too late")
            for length in (0, 20, len(whole) - 1):
                server.raw = [whole[:length]]
                asked = server.requests
                task = asyncio.create_task(buyer.buy())
                await eventually(lambda asked=asked: server.requests > asked)
                await turns()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert server.writer is not None
                server.writer.write(whole[length:])
                assert await buyer.buy() == b"image %d" % server.requests
                await eventually(lambda: server.open == 1)

    run(story())


REFUSED = http(b'{"error":{"message":"m"}}', "application/json", status="400 No")


async def buy_refused_then_another(server: Server, buyer: Buyer, refused: ImageRequest) -> None:
    """The first purchase costs nothing, and the second one goes over another connection."""
    with pytest.raises(UpstreamFailure) as caught:
        await buyer.client.generate(refused, images=1)
    assert (caught.value.status, caught.value.charge) == (400, Charge.FREE)
    server.receive = Server.receive.__get__(server)  # type: ignore[method-assign]
    assert await buyer.buy() == b"image %d" % server.requests
    assert server.connections == 2


def test_an_answer_before_the_whole_request_was_sent_is_the_last_on_its_connection(
    run: Run,
) -> None:
    async def story() -> None:
        server = Server("purchase")
        large = ImageRequest(model="painter", prompt="otter" * 200_000)

        async def refuse(reader: asyncio.StreamReader) -> None:
            await reader.readuntil(b"\r\n\r\n")

        async with buying(server) as buyer:
            server.receive = refuse  # type: ignore[method-assign]
            server.raw = [REFUSED + server.answer(b"a stray image")]
            await buy_refused_then_another(server, buyer, large)

    run(story())


def test_an_upstream_that_reads_no_body_may_answer_before_it_was_sent(run: Run) -> None:
    async def story() -> None:
        server = Server("purchase")
        large = ImageRequest(model="painter", prompt="otter" * 2_000_000)

        async def refuse(reader: asyncio.StreamReader) -> None:
            if server.requests:  # the body, which it never reads
                await asyncio.Event().wait()
            await reader.readuntil(b"\r\n\r\n")

        async with buying(server) as buyer:
            server.receive = refuse  # type: ignore[method-assign]
            server.raw = [REFUSED]
            await buy_refused_then_another(server, buyer, large)

    run(story())


def test_bytes_before_the_first_request_close_a_new_connection(run: Run) -> None:
    async def story() -> None:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(http(b"{}", "application/json"))
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as listener:
            address = listener.sockets[0].getsockname()
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: Connection(loop), *address)
            await eventually(lambda: connection.transport is None)
            connection.set_response_params()
            with pytest.raises(aiohttp.ClientConnectionResetError):
                connection.expect_answer()

    run(story())


def test_the_check_of_doctor_leaves_no_bytes_for_a_purchase(run: Run) -> None:
    async def story() -> None:
        server = Server("purchase")
        async with buying(server) as buyer:
            server.stray = server.answer(b"a stray image")
            assert (await buyer.client.check(str(buyer.client._base))).status == 200
            assert await buyer.buy() == b"image 2"

    run(story())


# ── bounds ──────────────────────────────────────────────────────────────────────────────────


def interim(count: int) -> bytes:
    return b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * count


def padded(length: int) -> bytes:
    """A head of so many bytes."""
    start = b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n"
    room = length - len(start) - len(b"\r\n")
    lines = [b"x-%04d: " % n + b"x" * 4086 + b"\r\n" for n in range(room // 4096)]
    last = b"y: " + b"y" * (room % 4096 - 5) + b"\r\n"
    return start + b"".join(lines) + last + b"\r\n"


def in_chunks(body: bytes, size: int, extension: bytes = b"") -> bytes:
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks) + b"0\r\n\r\n"


CONTENT_TYPES = {
    "purchase": b"application/json",
    "stream": b"text/event-stream",
    "link": b"image/png",
}
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: "


@pytest.mark.parametrize("kind", KINDS)
def test_heads_and_framing_may_be_as_large_as_their_bounds(run: Run, kind: str) -> None:
    async def story() -> None:
        server = Server(kind)
        whole = server.answer(b"an image")
        body = whole.partition(b"\r\n\r\n")[2]
        content_type = CONTENT_TYPES[kind]
        head = padded(MAX_HEAD_BYTES - len(content_type) + 2) % content_type
        assert len(head) == MAX_HEAD_BYTES
        good = [
            interim(MAX_INTERIM_RESPONSES) + whole,
            head + in_chunks(body, 10**6),
            CHUNKED + content_type + b"\r\n\r\n" + in_chunks(body, 1),
            CHUNKED + content_type + b"\r\n\r\n" + in_chunks(body, 10**6, b";" + b"e" * 8000),
        ]
        async with buying(server) as buyer:
            for answer in good:
                server.raw = [answer]
                assert await buyer.buy() == b"an image"
        assert server.connections == 1

    run(story())


@pytest.mark.parametrize("size", [64, 76])
def test_a_large_answer_in_chunks_of_a_line_of_base64_is_complete(run: Run, size: int) -> None:
    async def story() -> None:
        server, image = Server("purchase"), bytes(2_000_000)
        async with buying(server) as buyer:
            head = CHUNKED + CONTENT_TYPES["purchase"] + b"\r\n\r\n"
            server.raw = [head + in_chunks(images(image), size)]
            assert await buyer.buy() == image

    run(story())


BEYOND = {
    "interim responses": lambda _: interim(MAX_INTERIM_RESPONSES + 1),
    "interim responses of many bytes": lambda _: interim(100).replace(b"/x", b"x" * 1000),
    "a large head": lambda kind: padded(MAX_HEAD_BYTES + 3) % kind + b"0\r\n\r\n",
    "a line without end": lambda _: b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000,
    "line ends before a head": lambda _: b"\r\n" * MAX_HEAD_BYTES,
    "single bytes as chunks": lambda kind: (
        CHUNKED + kind + b"\r\n\r\n" + in_chunks(b" " * (MAX_FRAMING_BYTES // 4), 1)
    ),
    "an endless chunk extension": lambda kind: (
        CHUNKED + kind + b"\r\n\r\n1;" + b"e" * 2 * MAX_FRAMING_BYTES
    ),
    "many trailers": lambda kind: (
        CHUNKED + kind + b"\r\n\r\n0\r\n" + (b"x: " + b"x" * 1000 + b"\r\n") * 60
    ),
}


@pytest.mark.parametrize("beyond", some_rows(BEYOND.values()), ids=some_rows(BEYOND))
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_with_larger_heads_or_framing_is_rejected_and_presumed_charged(
    run: Run, kind: str, beyond: Callable[[bytes], bytes]
) -> None:
    async def story() -> None:
        server = Server(kind)
        async with buying(server) as buyer:
            server.raw = [beyond(CONTENT_TYPES[kind])]
            failed = await buyer.fail()
            await eventually(lambda: server.open == 0)
            if isinstance(failed, UpstreamFailure):
                assert failed.charge is Charge.PRESUMED
                assert failed.status == 502
                assert [status for _, status in buyer.notes.attempts] in (["rejected"], ["cut"])
            else:
                assert failed.reason in ("cut", "unreachable")
            assert await buyer.buy() == b"image 2"

    run(story())
