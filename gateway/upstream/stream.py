"""Reads one stream to its end: previews are reported as they come, the image ends it.

Bytes go in, one event at a time is in memory. Where an event ends is `gateway.sse`, what it says
is `wire`; sending, deadlines and retries are `client`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from dataclasses import dataclass

from gateway.errors import Charge, UpstreamFailure
from gateway.images import PartialImage, UpstreamAnswer
from gateway.net.sse import Event, FrameTooLarge, Splitter
from gateway.upstream.openai import errors, events


@dataclass(frozen=True, slots=True)
class StreamReader:
    """How the events of one stream are read, and who hears of them."""

    max_event_bytes: int
    max_total_bytes: int
    parse: Callable[[Event], Awaitable[events.News | None]]
    """Base64 of many megabytes takes a thread: that is for the caller to say."""
    on_partial: Callable[[PartialImage], Awaitable[None]]
    """The next event is not read before it returns."""

    async def read(self, chunks: AsyncIterable[bytes]) -> UpstreamAnswer | UpstreamFailure:
        """The image, or the failure that the stream told or amounts to.

        What follows either is not read. Raises `ConnectionError` when the stream ends before, or
        in the middle of it: that is no other case than one that was cut off.
        """
        splitter = Splitter(max_frame_bytes=self.max_event_bytes)
        try:
            end = await self._read_chunks(chunks, splitter)
        except FrameTooLarge:
            return errors.oversized()
        end = end or await self._hear_last(splitter.close())
        if end is None:
            raise ConnectionAbortedError("the stream ended before its image")
        return end

    async def _read_chunks(
        self, chunks: AsyncIterable[bytes], splitter: Splitter
    ) -> UpstreamAnswer | UpstreamFailure | None:
        total_bytes = 0
        async for chunk in chunks:
            total_bytes += len(chunk)
            if total_bytes > self.max_total_bytes:
                return errors.oversized()
            end = await self._hear(splitter.feed(chunk))
            if end is not None:
                return end
        return None

    async def _hear(self, events: Iterable[Event]) -> UpstreamAnswer | UpstreamFailure | None:
        """Reports previews; answers the event that ends the stream."""
        for event in events:
            news = await self.parse(event)
            if isinstance(news, PartialImage):
                await self.on_partial(news)
            elif news is not None:
                return news
        return None

    async def _hear_last(self, events: Iterable[Event]) -> UpstreamAnswer | UpstreamFailure | None:
        """As `_hear`, of what lacks its end: when it cannot be read, it lacks more than that."""
        end = await self._hear(events)
        if isinstance(end, UpstreamFailure) and end.charge is Charge.UNDELIVERED:
            return None
        return end
