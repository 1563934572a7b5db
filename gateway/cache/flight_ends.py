"""Waits for the ends of flights: here from the leader's task, elsewhere from its events.

However many requests of a worker follow a flight, the worker reads its events once, and passes the
partial images among them to `partial_images`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

import orjson
import structlog

from gateway.cache.flight_events import FlightEnd, decode_end
from gateway.cache.partial_images import Channel, PartialImages
from gateway.errors import StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import ReadEvents
from gateway.store.protocol import Store, Watch
from gateway.stored import read_stored

RECHECK_SECONDS: Final = 1.0
"""How often a follower reads the events of a flight without a notification."""

MAX_SILENCE_SECONDS: Final = 5.0
"""How long a follower waits for a flight's end before it tries to acquire the lease again."""

MAX_STORE_FAILURES: Final = 3
"""Failed reads in a row after which a follower gives up."""

log = structlog.get_logger(__name__)


class FlightEnds:
    """The ends that this worker waits for, by flight."""

    def __init__(self, store: Store, partial_images: PartialImages) -> None:
        self._store = store
        self._partial_images = partial_images
        self._pending: dict[str, asyncio.Future[FlightEnd]] = {}
        self._listeners: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many flights have not ended as far as this worker knows."""
        return len(self._pending)

    def expect(self, flight: str) -> None:
        """Registers a flight of this worker, whose followers here need no store."""
        if flight not in self._pending:
            self._pending[flight] = asyncio.get_running_loop().create_future()

    def announce(self, flight: str, end: FlightEnd) -> None:
        """Tells all followers in this worker how the flight ended."""
        future = self._pending.pop(flight, None)
        if future is not None and not future.done():
            future.set_result(end)

    async def wait(self, flight: str) -> FlightEnd:
        """Returns when the flight has ended, or has been silent for too long."""
        if flight not in self._pending:
            self.expect(flight)
            listener = asyncio.create_task(self._listen(flight), name=f"follow {flight}")
            # The event loop has only a weak reference to a task.
            self._listeners.add(listener)
            listener.add_done_callback(self._listeners.discard)
        # Shielded: a follower that is cancelled must not cancel the future of the others.
        return await asyncio.shield(self._pending[flight])

    async def close(self) -> None:
        """Stops listening to the flights of other workers."""
        for listener in self._listeners:
            listener.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    async def _listen(self, flight: str) -> None:
        """Announces the end of another worker's flight, whatever happens."""
        end = FlightEnd("unknown")
        try:
            end = await self._read_end(flight)
        except StoreUnavailable as failure:
            end = FlightEnd("failed", failure=failure)
        except Exception:
            log.exception("flight_events_failed", flight=flight)
            # Without a pause its followers would acquire and listen in a tight loop.
            await asyncio.sleep(MAX_SILENCE_SECONDS)
        finally:
            self.announce(flight, end)

    async def _read_end(self, flight: str) -> FlightEnd:
        """Reads events until one reports the end; `unknown` if none has after some seconds."""
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + MAX_SILENCE_SECONDS
        channel = self._partial_images.channel(flight)  # exists for as long as this listens
        position, failures = 0, 0
        watch: Watch | None = None
        async with AsyncExitStack() as stack:
            while clock() < give_up_at:
                try:
                    # Watch before the first read, or an event between the two wakes nothing.
                    watch = watch or await stack.enter_async_context(self._store.watch(flight))
                    events = await execute(self._store, ReadEvents(flight, after=position))
                except StoreUnavailable:
                    events, failures = (), failures + 1
                    if failures >= MAX_STORE_FAILURES:
                        raise
                else:
                    failures, position = 0, position + len(events)
                if (end := self._receive(events, channel)) is not None:
                    return end
                await (watch.wait(RECHECK_SECONDS) if watch else asyncio.sleep(RECHECK_SECONDS))
        return FlightEnd("unknown")

    def _receive(self, events: Sequence[bytes], channel: Channel) -> FlightEnd | None:
        def receive(encoded: bytes) -> FlightEnd | None:
            event = orjson.loads(encoded)
            if (end := decode_end(event)) is None:
                self._partial_images.receive(channel, event)
            return end

        for encoded in events:
            if (end := read_stored("flight_event", encoded, receive)) is not None:
                return end
        return None
