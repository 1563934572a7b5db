"""A whole response has the bytes that aiohttp sends for the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.api.http.server import Runner
from gateway.api.http.whole import JOIN_BYTES, WholeResponse
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
