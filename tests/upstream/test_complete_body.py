"""A body that has come is taken out of aiohttp's reader as its own methods would give it."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.net.complete_body import take_complete

PIECES = ((), (b"otter",), (b"o", b"tter"), (b"o" * 99,), (b"o" * 99, b"t"))


class Peer(BaseProtocol):
    """A connection that a full reader stops."""

    def pause_reading(self) -> None:
        self._reading_paused = True

    def resume_reading(self, resume_parser: bool = True) -> None:
        self._reading_paused = False


def fed(*pieces: bytes) -> tuple[StreamReader, Peer]:
    loop = asyncio.get_running_loop()
    peer = Peer(loop)
    content = StreamReader(peer, 16, loop=loop)
    for piece in pieces:
        content.feed_data(piece)
    content.feed_eof()
    return content, peer


@pytest.mark.parametrize("is_stopped", [False, True])
@pytest.mark.parametrize("pieces", PIECES)
async def test_it_is_all_that_is_left(pieces: tuple[bytes, ...], is_stopped: bool) -> None:
    content, peer = fed(*pieces)
    peer._reading_paused = is_stopped
    assert take_complete(content) == b"".join(pieces)
    assert content.at_eof()
    assert content.read_nowait() == b""
    # A connection that was stopped because its reader was full goes on.
    assert not peer._reading_paused or not pieces


async def test_some_of_it_may_have_been_read() -> None:
    content, _ = fed(b"an otter")
    assert await content.read(3) == b"an "
    assert take_complete(content) == b"otter"
    assert content.at_eof()


async def test_there_may_be_no_body_at_all() -> None:
    assert take_complete(EMPTY_PAYLOAD) == b""


async def test_a_reader_that_has_failed_fails() -> None:
    content, _ = fed(b"otter")
    content.set_exception(ValueError("cut"))
    with pytest.raises(ValueError, match="cut"):
        take_complete(content)
