"""Reads one stream of upstream to its end: reports partial images, returns the final one.

One event at a time is in memory. A stream has a bounded number of lines and bytes, and the event
loop gets a turn after a few of them, so that a hostile one delays no other request. Splitting bytes
into events is `net.sse`, the meaning of an event is the dialect, and sending, deadlines and retries
are `client`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from gateway.errors import Charge, UpstreamFailure
from gateway.images import PartialImage, UpstreamAnswer
from gateway.net.sse import Event, FrameTooLarge, Splitter, has_lines
from gateway.tasks import Turns
from gateway.upstream import failures
from gateway.upstream.dialect import ParsedEvent

MAX_LINES_AT_ONCE: Final = 1024
MAX_LINES_PER_SECOND: Final = 16
"""Of one stream, since its purchase began. Upstream's events have three lines each, and there are
at most four. Some services add an event or a comment each second. A proxy may hold them back, even
the whole response until its end."""

_EVENTS_PER_TURN: Final = 16
_LINES_PER_TURN: Final = 128
"""Read before the event loop gets a turn: about a millisecond's work."""

_PIECE_BYTES: Final = 512
"""Of a chunk of many lines, read in one turn."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamReader:
    """The bounds of one stream, and the callbacks for its events."""

    max_event_bytes: int
    max_total_bytes: int
    max_partial_images: int
    """Further ones are ignored, and repeated ones."""
    clock: Callable[[], float]
    """In seconds."""
    started: float
    """When the purchase began, by this clock."""
    turns: Turns
    """Shared by all streams, so that many hostile ones delay other requests no more than one."""
    parse: Callable[[Event], Awaitable[ParsedEvent | None]]
    """Asynchronous, so that the client can parse large events in a thread."""
    on_partial: Callable[[PartialImage], Awaitable[None]]
    """The next event is not read before it returns."""

    async def read(self, chunks: AsyncIterable[bytes]) -> UpstreamAnswer | UpstreamFailure:
        """The final image, or the failure that the stream reports. Reading stops there.

        Raises `ConnectionError` if the stream ends without either, or within it. That is treated
        like a connection that was cut off.
        """
        splitter = Splitter(max_frame_bytes=self.max_event_bytes)
        counts = _Counts()
        try:
            async for chunk in chunks:
                counts.bytes += len(chunk)
                # Ignored events and comments count too: a stream could consist of them without end.
                if counts.bytes > self.max_total_bytes:
                    return failures.oversized()
                for piece in _pieces(chunk):
                    events = splitter.feed(piece)
                    _check_lines(splitter.lines, seconds=self.clock() - self.started)
                    result = await self._handle(events, counts)
                    if result is not None:
                        return result
                    if piece is not chunk:
                        await self.turns.next()
        except FrameTooLarge as error:
            log.warning("upstream_stream_rejected", reason=str(error))
            return failures.oversized()
        # The last event may lack only its line ends. If it lacks more, it is unreadable.
        result = await self._handle(splitter.close(), counts)
        if result is None or (
            isinstance(result, UpstreamFailure) and result.charge is Charge.UNDELIVERED
        ):
            raise ConnectionAbortedError("the stream ended before its image")
        return result

    async def _handle(
        self, frames: Iterable[Event], counts: _Counts
    ) -> UpstreamAnswer | UpstreamFailure | None:
        """Reports partial images, and returns the event that ends the stream."""
        for frame in frames:
            counts.events += 1
            if counts.events % _EVENTS_PER_TURN == 0:
                await self.turns.next()
            parsed = await self.parse(frame)
            if isinstance(parsed, PartialImage):
                is_full = len(counts.partial_images) >= self.max_partial_images
                if not is_full and parsed.index not in counts.partial_images:
                    counts.partial_images.add(parsed.index)
                    await self.on_partial(parsed)
            elif parsed is not None:
                return parsed
        return None


@dataclass(slots=True)
class _Counts:
    """What a stream has had so far."""

    bytes: int = 0
    events: int = 0
    partial_images: set[int] = field(default_factory=set)
    """The indices of those that were reported."""


def _check_lines(lines: int, *, seconds: float) -> None:
    if lines > MAX_LINES_AT_ONCE + MAX_LINES_PER_SECOND * seconds:
        raise FrameTooLarge(f"{lines} lines in {seconds:.1f} s")


def _pieces(chunk: bytes) -> Iterator[bytes]:
    """The chunk, or parts of it if it has many lines."""
    if not has_lines(chunk, _LINES_PER_TURN):
        yield chunk
        return
    for start in range(0, len(chunk), _PIECE_BYTES):
        yield chunk[start : start + _PIECE_BYTES]
