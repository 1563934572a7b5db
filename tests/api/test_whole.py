"""A whole response has the bytes that aiohttp sends for the same one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import SO_SNDBUF, SOL_SOCKET

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.api.http.parts import PART_BYTES
from gateway.api.http.server import Runner
from gateway.api.http.whole import JOIN_BYTES, WholeResponse
from tests.gateways import needs_asyncio_that_pauses
from tests.waiting import generous

NAMES = st.from_regex(r"\Ax-[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}\Z")
VALUES = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=20
)
CONTROLS = st.sampled_from([chr(code) for code in (*range(9), *range(10, 32), 0x7F)])
OWN_HEADERS = st.sampled_from(["Connection", "Date", "Server", "Cache-Control"])


@dataclass(frozen=True)
class Answer:
    """A response, and the request that asks for it."""

    pieces: list[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cookies: dict[str, str] = field(default_factory=dict)
    method: str = "GET"
    version: str = "1.1"
    connection: str | None = None
    closes: bool = False

    def request(self, path: str) -> bytes:
        lines = [f"{self.method} {path} HTTP/{self.version}", "Host: here"]
        if self.connection is not None:
            lines.append(f"Connection: {self.connection}")
        return "\r\n".join([*lines, "", ""]).encode()

    def finish(self, response: web.StreamResponse) -> web.StreamResponse:
        for name, value in self.cookies.items():
            response.set_cookie(name, value)
        if self.closes:
            response.force_close()
        return response


ANSWERS = st.builds(
    Answer,
    # aiohttp leaves the length out of an answer to HEAD that would have no body.
    pieces=st.lists(st.binary(max_size=40), max_size=3).map(lambda pieces: [b"a", *pieces]),
    status=st.sampled_from([200, 201, 202, 206, 400, 401, 413, 429, 500, 503]),
    headers=st.dictionaries(NAMES | OWN_HEADERS, VALUES, max_size=4).map(
        lambda headers: {**headers, "Content-Type": "text/plain"}
    ),
    cookies=st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["", "1 2"]), max_size=2),
    method=st.sampled_from(["GET", "POST", "HEAD"]),
    version=st.sampled_from(["1.0", "1.1"]),
    connection=st.sampled_from([None, "close", "keep-alive"]),
    closes=st.booleans(),
)


class Server:
    """A server of one answer at a time, as a `WholeResponse` and as aiohttp's own."""

    def __init__(self) -> None:
        self.answer = Answer([])
        app = web.Application()
        app.router.add_route("*", "/ours", self.ours)
        app.router.add_route("*", "/theirs", self.theirs)
        app.on_response_prepare.append(self.add_header)
        self.runner = Runner(app, head_seconds=60)

    async def ours(self, _: web.Request) -> web.StreamResponse:
        answer = self.answer
        return answer.finish(
            WholeResponse(answer.pieces, status=answer.status, headers=answer.headers)
        )

    async def theirs(self, _: web.Request) -> web.StreamResponse:
        answer, body = self.answer, b"".join(self.answer.pieces)
        return answer.finish(web.Response(body=body, status=answer.status, headers=answer.headers))

    async def add_header(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-of-every-response"] = "yes"

    async def send(self, answer: Answer, path: str) -> bytes:
        """What it sends for a path, and `(closed)` if it closed the connection behind it."""
        self.answer = answer
        reader, writer = await asyncio.open_connection(*self.runner.addresses[0][:2])
        # The second request is answered with 404, unless the connection was closed before.
        end = b"GET /end HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        writer.write(answer.request(path) + end)
        async with generous():
            received = await reader.read()
        writer.close()
        found, not_found, _ = received.partition(b"HTTP/1.1 404 ")
        return found if not_found else found + b"(closed)"


@pytest.fixture
def send() -> Iterator[Callable[[Answer, str], bytes]]:
    """`Server.send`, for tests that Hypothesis calls."""
    with asyncio.Runner() as loop:
        server = Server()
        loop.run(server.runner.setup())
        loop.run(web.TCPSite(server.runner, "127.0.0.1", 0).start())
        yield lambda answer, path: loop.run(server.send(answer, path))
        loop.run(server.runner.cleanup())


Send = Callable[[Answer, str], bytes]
same_server = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def lines_of(received: bytes) -> tuple[bytes, list[bytes], bytes]:
    """The status line, the header lines without the time, and the rest."""
    head, _, body = received.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    return status, sorted(line for line in headers if not line.startswith(b"Date: ")), body


@same_server
@given(answer=ANSWERS)
def test_a_whole_response_is_sent_as_aiohttp_sends_it(send: Send, answer: Answer) -> None:
    ours, theirs = send(answer, "/ours"), send(answer, "/theirs")
    assert ours.startswith(b"HTTP/" + answer.version.encode())
    assert lines_of(ours) == lines_of(theirs)


@same_server
@given(answer=ANSWERS, parts=st.tuples(VALUES, CONTROLS, VALUES), is_name=st.booleans())
def test_a_control_character_in_a_header_is_never_sent(
    send: Send, answer: Answer, parts: tuple[str, str, str], is_name: bool
) -> None:
    text = f"x-{''.join(parts)}\r\nx-injected: yes" if is_name else "".join(parts)
    header = {text: "a value"} if is_name else {"x-header": text}
    bad = Answer(answer.pieces, answer.status, header, method=answer.method)
    assert send(bad, "/ours") == b"(closed)"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_large_body_is_complete(send: Send, method: str) -> None:
    pieces = [bytes([number]) * JOIN_BYTES for number in range(40)]
    status, headers, body = lines_of(send(Answer(pieces, method=method), "/ours"))
    assert status == b"HTTP/1.1 200 OK"
    assert b"Content-Length: %d" % (40 * JOIN_BYTES) in headers
    assert body == (b"" if method == "HEAD" else b"".join(pieces))


@needs_asyncio_that_pauses
@pytest.mark.parametrize("size", [PART_BYTES - 100, 4 * PART_BYTES])
@pytest.mark.parametrize("disconnects", [False, True])
async def test_a_response_lasts_until_its_client_has_read_nearly_all(
    size: int, disconnects: bool
) -> None:
    """Otherwise the access log would have it before, and never say that the client left."""
    sent: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    transports: list[asyncio.Transport] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        transports.append(request.transport)
        socket = request.transport.get_extra_info("socket")
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, 64 * 1024)
        response = WholeResponse([bytes(size)], content_type="image/png")
        try:
            await response.prepare(request)
            sent.set_result("read")
        except ConnectionError:
            sent.set_result("disconnected")
        return response

    async with serving(answer) as address:
        reader, writer = await asyncio.open_connection(*address, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
        async with generous():
            assert await reader.readexactly(4) == b"HTTP"
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            # Long enough for a handler that does not wait.
            await asyncio.sleep(0.2)
            assert not sent.done()
            # A very large body is not given to the transport as a whole.
            assert transports[0].get_write_buffer_size() <= PART_BYTES
            if disconnects:
                writer.transport.abort()
            else:
                writer.transport.resume_reading()  # type: ignore[attr-defined]
                while await reader.read(1 << 16):
                    pass
            assert await sent == ("disconnected" if disconnects else "read")
        writer.close()


async def test_a_fault_behind_a_response_is_not_answered_with_another_one() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        await WholeResponse([b"an answer"], content_type="text/plain").prepare(request)
        raise RuntimeError("after the response")

    async with serving(answer) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        async with generous():
            received = await reader.read()
        writer.close()
    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(b"\r\n\r\nan answer")


@asynccontextmanager
async def serving(
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[tuple[str, int]]:
    """The address of a server whose only path is `/`."""
    app = web.Application()
    app.router.add_get("/", answer)
    runner = Runner(app, head_seconds=60)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][:2]
    finally:
        await runner.cleanup()
