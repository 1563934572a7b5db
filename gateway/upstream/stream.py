"""Reads one stream of upstream to its end: reports partial images, returns the final one.

One event at a time is in memory. Splitting bytes into events is `net.sse`, the meaning of an event
is the dialect, and sending, deadlines and retries are `client`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass

from gateway.errors import Charge, UpstreamFailure
from gateway.images import PartialImage, UpstreamAnswer
from gateway.net.sse import Event, FrameTooLarge, Splitter
from gateway.upstream import failures
from gateway.upstream.dialect import ParsedEvent


@dataclass(frozen=True, slots=True)
class StreamReader:
    """The bounds of one stream, and the callbacks for its events."""

    max_event_bytes: int
    max_total_bytes: int
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
        total_bytes = 0
        try:
            async for chunk in chunks:
                total_bytes += len(chunk)
                # Ignored events and comments count too: a stream could consist of them without end.
                if total_bytes > self.max_total_bytes:
                    return failures.oversized()
                result = await self._handle(splitter.feed(chunk))
                if result is not None:
                    return result
        except FrameTooLarge:
            return failures.oversized()
        # The last event may lack only its line ends. If it lacks more, it is unreadable.
        result = await self._handle(splitter.close())
        if result is None or (
            isinstance(result, UpstreamFailure) and result.charge is Charge.UNDELIVERED
        ):
            raise ConnectionAbortedError("the stream ended before its image")
        return result

    async def _handle(self, frames: Iterable[Event]) -> UpstreamAnswer | UpstreamFailure | None:
        """Reports partial images, and returns the event that ends the stream."""
        for frame in frames:
            parsed = await self.parse(frame)
            if isinstance(parsed, PartialImage):
                await self.on_partial(parsed)
            elif parsed is not None:
                return parsed
        return None
