"""Reads one stream of upstream to its end: reports partial images, returns the final one.

One event at a time is in memory. A stream has a bounded number of lines and bytes, and the event
loop gets a turn after a few of them, so that a hostile one delays no other request. Splitting bytes
into events is `net.sse`, the meaning of an event is the dialect, and sending, deadlines and retries
are `client`. `read_body` reads a complete answer that has events.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

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

_START_OF_EVENTS: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|(?:id|retry)?:[^\r\n]*[\r\n]){0,64}(?:event|data):"
)
"""In the first bytes of a body. JSON and web pages begin in other ways."""

log = structlog.get_logger(__name__)


class ParseEvent(Protocol):
    """How a dialect reads an event."""

    def __call__(self, event: Event, *, is_first: bool) -> ParsedEvent | None:
        """As `Dialect.parse_event`."""


def read_body(
    body: bytes, *, images: int, max_event_bytes: int, parse: ParseEvent
) -> UpstreamAnswer | UpstreamFailure | None:
    """What the events of a complete answer bring; None if it has none that bring anything.

    Some services answer with events although no stream was asked for, or give a stream the content
    type of JSON. Their images are paid for. Partial images are ignored.
    """
    if not _START_OF_EVENTS.match(body[:1024]) or has_lines(body, MAX_LINES_AT_ONCE):
        return None
    splitter = Splitter(max_frame_bytes=max_event_bytes)
    try:
        events = [*splitter.feed(body), *splitter.close()]
    except FrameTooLarge as error:
        log.warning("upstream_stream_rejected", reason=str(error))
        return None
    completed: list[UpstreamAnswer] = []
    for i, event in enumerate(events):
        parsed = parse(event, is_first=i == 0)
        if isinstance(parsed, UpstreamFailure) and not completed:
            return parsed
        if isinstance(parsed, UpstreamAnswer):
            completed.append(parsed)
    if not completed:
        return None
    first = completed[0]
    if len(completed) == 1:
        return first
    # Whether the usage of one is that of all is not known, so the estimate is charged.
    found = [image for answer in completed for image in answer.images]
    surplus = max(0, len(found) - images)
    return replace(first, images=tuple(found[:images]), usage=None, surplus=surplus)


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
