"""Large answers are received into one buffer, and in turns with other work of the event loop.

Each test runs on both event loops and with both of aiohttp's parsers, as those of
`test_connection`, whose server and client they use.
"""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Charge, UpstreamFailure
from gateway.net.guard import LinkBlocked
from gateway.upstream import connection, receiving
from gateway.upstream.connection import MAX_WHOLE_BYTES, MIN_WHOLE_BYTES
from gateway.upstream.receiving import may_end_chunks
from tests.scripted_upstream import images
from tests.upstream.test_connection import (
    Run,
    Server,
    buying,
    http,
    parser,
    run,
)
from tests.waiting import eventually, turns

__all__ = ["parser", "run"]  # fixtures

SIZES = (100_000, 700_000, 2_000_000)
FRAMINGS = ("length", "chunked", "length, close")


def picture(number: int, size: int) -> bytes:
    """Different bytes for each number."""
    start = hashlib.sha256(b"%d" % number).digest()
    return (start * (size // len(start) + 1))[:size]


def with_large_answers(server: Server, size: int) -> None:
    own = server.answer
    server.answer = lambda _: own(picture(server.requests, size))  # type: ignore[method-assign]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("framing", FRAMINGS)
def test_large_answers_are_complete_one_after_the_other(run: Run, framing: str, tls: bool) -> None:
    async def story() -> None:
        server = Server("purchase", framing)
        async with buying(server, tls=tls) as buyer:
            for size in (*SIZES, *SIZES):
                with_large_answers(server, size)
                assert await buyer.buy() == picture(server.requests, size)
                del server.answer  # type: ignore[method-assign]
        if framing != "length, close":
            assert server.connections == 1

    run(story())


def test_a_large_image_behind_a_link_is_complete(run: Run) -> None:
    async def story() -> None:
        server = Server("link")
        with_large_answers(server, 900_000)
        async with buying(server) as buyer:
            for _ in range(3):
                assert await buyer.buy() == picture(server.requests, 900_000)
            assert server.connections == 1

    run(story())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_bytes_behind_a_large_answer_are_no_answer(run: Run, tls: bool) -> None:
    async def story() -> None:
        server = Server("purchase")
        with_large_answers(server, 1_000_000)
        async with buying(server, tls=tls) as buyer:
            for stray in (b"0", http(images(b"stray"), "application/json"), b"\x00" * 600_000):
                server.stray = stray
                assert await buyer.buy() == picture(server.requests, 1_000_000)
                connections = server.connections
                assert await buyer.buy() == picture(server.requests, 1_000_000)
                assert server.connections == connections + 1

    run(story())


@pytest.mark.parametrize("sent", [0, 1, 250_000, 900_000, -1])
@pytest.mark.parametrize("kind", ["purchase", "link"])
def test_a_large_answer_that_is_cut_off_is_no_image(run: Run, kind: str, sent: int) -> None:
    async def story() -> None:
        server = Server(kind)
        whole = server.answer(picture(1, 1_000_000))
        head = whole.index(b"\r\n\r\n") + 4
        async with buying(server) as buyer:
            server.raw = [whole[: head + sent] if sent >= 0 else whole[:sent]]
            task = asyncio.create_task(buyer.fail())
            await eventually(lambda: server.requests == 1)
            await turns()
            assert server.writer is not None
            await server.writer.drain()
            server.writer.close()
            failed = await task
            if isinstance(failed, UpstreamFailure):
                assert failed.charge is Charge.PRESUMED
            else:
                assert isinstance(failed, LinkBlocked)
                assert failed.reason == "cut"
            assert await buyer.buy() == b"image 2"

    run(story())


@pytest.mark.parametrize("size", [MIN_WHOLE_BYTES - 1, MIN_WHOLE_BYTES, MAX_WHOLE_BYTES + 1])
def test_the_bounds_of_what_is_received_whole(run: Run, size: int) -> None:
    async def story() -> None:
        server = Server("purchase")
        body = images(picture(1, 3000))
        async with buying(server) as buyer:
            server.raw = [http(body + b" " * (size - len(body)), "application/json")]
            assert await buyer.buy() == picture(1, 3000)
            assert await buyer.buy() == b"image 2"
            assert server.connections == 1

    run(story())


def test_a_large_error_and_a_204_with_a_large_length_are_no_images(run: Run) -> None:
    async def story() -> None:
        server = Server("purchase")
        body = images(picture(1, 1_000_000))
        async with buying(server) as buyer:
            for status in ("400 Bad", "204 No Content"):
                server.raw = [http(body, "application/json", status=status)]
                assert isinstance(await buyer.fail(), UpstreamFailure)
                assert await buyer.buy() == b"image %d" % server.requests

    run(story())


def test_a_large_answer_in_pieces_and_one_to_a_cancelled_request(run: Run) -> None:
    async def story() -> None:
        server = Server("purchase")
        whole = server.answer(picture(1, 1_000_000))
        async with buying(server) as buyer:
            server.raw = [whole[:300]]
            task = asyncio.create_task(buyer.buy())
            await eventually(lambda: server.requests == 1)
            assert server.writer is not None
            for start in range(300, len(whole), 77_777):
                server.writer.write(whole[start : start + 77_777])
                await asyncio.sleep(0.001)
            assert await task == picture(1, 1_000_000)
            server.raw = [whole[:500_000]]
            task = asyncio.create_task(buyer.buy())
            await eventually(lambda: server.requests == 2)
            await turns()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await buyer.buy() == b"image 3"
            await eventually(lambda: server.open == 1)

    run(story())


def test_many_large_answers_at_once_are_received_in_turns(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small share of each turn, every answer takes many, and none is lost."""

    async def story() -> None:
        monkeypatch.setattr(receiving, "TURN_BYTES", 64 << 10)
        seen: list[int] = []
        spend = receiving.ReceiveTurns.spend

        def note(self: receiving.ReceiveTurns, size_bytes: int) -> bool:
            seen.append(size_bytes)
            return spend(self, size_bytes)

        monkeypatch.setattr(receiving.ReceiveTurns, "spend", note)
        monkeypatch.setattr(connection, "REST_SECONDS", 0.0)
        for framing in ("length", "chunked"):
            server = Server("purchase", framing)
            with_large_answers(server, 700_000)
            async with buying(server) as buyer:
                found = await asyncio.gather(*(buyer.buy() for _ in range(12)))
                assert {len(image or b"") for image in found} == {700_000}
                assert len(set(found)) > 1
                again = await asyncio.gather(*(buyer.buy() for _ in range(4)))
                assert {len(image or b"") for image in again} == {700_000}
        assert max(seen) <= 256 * 1024  # of what came with a head
        assert sum(seen) > 2 * 16 * 700_000

    run(story())


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=9) | st.text("a\r\n", min_size=1)),
    line_end=st.sampled_from([b"\r\n", b"\n"]),
    trailers=st.sampled_from([b"", b"a: b"]),
    behind=st.sampled_from([b"", b"x", b"\r\n", b"HTTP/1.1 200 OK\r\n"]),
    data=st.data(),
)
def test_a_chunked_body_ends_only_where_it_may_end(chunks, line_end, trailers, behind, data):
    sizes = [(f"{len(chunk):x}".encode(), chunk) for chunk in map(to_bytes, chunks)]
    lines = [line for size, chunk in sizes for line in (size, chunk)] + [b"0"]
    lines += [trailers] if trailers else []
    body = line_end.join([*lines, b"", b""])
    cuts = data.draw(st.lists(st.integers(0, len(body) - 1), unique=True))
    last = max(cuts, default=0)
    assert may_end_chunks((body + behind)[last:])


def to_bytes(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("data", [b"", b"aGk=", b"aGk=\r\n8000\r\nYWJj", b"\r", b"8\r\nabc\r"])
def test_a_chunked_body_does_not_end_without_an_empty_line(data):
    assert not may_end_chunks(data)
