"""Purchases are sent as aiohttp's session would send them, and fail in the same way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
from pydantic import SecretStr
from yarl import URL

from gateway.upstream.auth import BEARER
from gateway.upstream.direct import post
from gateway.upstream.session import ClientSettings, SendState, TrackedBody, open_session
from tests.waiting import generous

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b\r\n\r\nimage"
MOVED = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n"
BODY = b'{"prompt": "otter"}'


@contextlib.asynccontextmanager
async def run_server(answer: bytes, seen: list[bytes]) -> AsyncIterator[int]:
    """Answers each request with the same bytes, and closes without any."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                seen.append(head + await reader.readexactly(len(BODY)))
                if not answer:
                    break
                writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def settings_of(port: int, **given: object) -> ClientSettings:
    return ClientSettings.model_validate(
        {"base_url": f"http://127.0.0.1:{port}/v1", "api_key": "secret", **given}
    )


async def send_both(
    settings: ClientSettings, url: str, headers: Mapping[str, str]
) -> tuple[list[object], list[object]]:
    """What becomes of a purchase, and of the same request through aiohttp's session."""
    found: list[list[object]] = []
    for is_direct in (True, False):
        async with generous(), open_session(settings, True, auth=BEARER) as session:
            outcome: list[object] = []
            for _ in range(2):  # the second one on the same connection
                state = SendState()
                body = TrackedBody(BODY, state)
                try:
                    async with await (
                        post(session, URL(url), body, headers)
                        if is_direct
                        else session.post(url, data=body, headers=headers, allow_redirects=False)
                    ) as response:
                        outcome += [response.status, await response.read(), response.request_info]
                except (aiohttp.ClientError, OSError) as error:
                    outcome += [type(error), str(error)]
                outcome.append(state.is_sent)
        found.append(outcome)
    return found[0], found[1]


@pytest.mark.parametrize("answer", [ANSWER, MOVED, b"", b"HTTP/1.1 nonsense\r\n\r\n"])
@pytest.mark.parametrize("of_operator", [{}, {"Host": "images.example", "X-Team": "otters"}])
async def test_the_bytes_and_what_becomes_of_them_are_those_of_the_session(
    answer: bytes, of_operator: Mapping[str, str]
) -> None:
    seen: list[bytes] = []
    async with run_server(answer, seen) as port:
        settings = settings_of(
            port, headers={name: SecretStr(value) for name, value in of_operator.items()}
        )
        url, trace = f"http://127.0.0.1:{port}/v1/a%20b?c=d", {"traceparent": "00-1-2-01"}
        direct, of_session = await send_both(settings, url, trace)
    assert direct == of_session
    assert len(seen) == 4
    assert seen[:2] == seen[2:]
    assert seen[0].startswith(b"POST /v1/a%20b?c=d HTTP/1.1\r\nHost: ")
    assert b"traceparent: 00-1-2-01\r\n" in seen[0]


async def test_a_connection_that_is_refused_is_the_same_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        direct, of_session = await send_both(settings_of(port), f"http://127.0.0.1:{port}/", {})
    assert direct == of_session
    assert direct[0] is aiohttp.ClientConnectorError


async def test_a_server_that_does_not_take_the_connection_is_the_same_error() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:  # its queue is full, so further ones get no answer
            each.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                each.connect(("127.0.0.1", port))
        settings = settings_of(port, connect_timeout_seconds=0.1)
        direct, of_session = await send_both(settings, f"http://127.0.0.1:{port}/", {})
        for each in waiting:
            each.close()
    assert direct == of_session
    assert direct[0] is aiohttp.ConnectionTimeoutError


async def test_a_closed_session_sends_nothing() -> None:
    async with open_session(settings_of(1), True, auth=BEARER) as session:
        pass
    with pytest.raises(RuntimeError, match="Session is closed"):
        await post(session, URL("http://127.0.0.1:1/"), TrackedBody(BODY, SendState()), {})


async def test_a_proxy_gets_the_request() -> None:
    seen: list[bytes] = []
    async with run_server(ANSWER, seen) as port:
        settings = settings_of(9, proxy=f"http://127.0.0.1:{port}")
        async with generous(), open_session(settings, True, auth=BEARER) as session:
            body = TrackedBody(BODY, SendState())
            async with await post(session, URL("http://upstream.test/v1"), body, {}) as response:
                assert await response.read() == b"image"
    assert seen[0].startswith(b"POST http://upstream.test/v1 HTTP/1.1\r\n")
