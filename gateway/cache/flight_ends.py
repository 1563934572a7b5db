"""Waits for the ends of flights: here from the leader's task, elsewhere from its events.

However many requests of a worker follow a flight, the worker reads its events once, and passes the
partial images among them to `partial_images`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

import orjson
import structlog

from gateway.cache.flight_events import FlightEnd, decode_end
from gateway.cache.flight_queues import FlightQueue, Follower, FollowerLimits, Turn
from gateway.cache.partial_images import Channel, PartialImages, Subscriber
from gateway.errors import StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import ReadEvents
from gateway.store.protocol import Store, Watch
from gateway.stored import read_stored

RECHECK_SECONDS: Final = 1.0
"""How often a follower reads the events of a flight without a notification."""

MAX_SILENCE_SECONDS: Final = 5.0
"""How long a follower waits for a flight's end before it tries to acquire the lease again."""

OUTAGE_RECHECKS: Final = 90
"""How long a follower waits for a store that is unavailable, in multiples of `RECHECK_SECONDS`.

Usually the leader is alive, and stores the image once the store is back. If the follower bought,
the image would be bought twice."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Followers:
    """The followers of one flight in this worker."""

    apart: list[Follower] = field(default_factory=list)
    """Those that wait for other flights too."""
    queues: dict[frozenset[int], FlightQueue] = field(default_factory=dict)

    def queue(self, slots: frozenset[int]) -> FlightQueue:
        """The queue of these slots."""
        if slots not in self.queues:
            self.queues[slots] = FlightQueue(slots)
        return self.queues[slots]


class Patience:
    """Whether a follower goes on waiting for a store that is unavailable."""

    _lost_at: float | None = None
    """By the event loop's clock."""

    @property
    def is_lost(self) -> bool:
        """Whether the store was unavailable when last asked."""
        return self._lost_at is not None

    def restore(self) -> bool:
        """Call when the store has answered. Returns whether it was unavailable before."""
        was_lost, self._lost_at = self.is_lost, None
        return was_lost

    def is_left(self) -> bool:
        """Call when the store is unavailable. False if it has been for too long."""
        now = asyncio.get_running_loop().time()
        self._lost_at = now if self._lost_at is None else self._lost_at
        return now - self._lost_at <= OUTAGE_RECHECKS * RECHECK_SECONDS


class FlightEnds:
    """The ends that this worker waits for, by flight."""

    def __init__(self, store: Store, partial_images: PartialImages) -> None:
        self._store = store
        self._partial_images = partial_images
        self._pending: dict[str, _Followers] = {}
        self._listeners: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many flights have not ended as far as this worker knows."""
        return len(self._pending)

    def expect(self, flight: str) -> None:
        """Registers a flight of this worker, whose followers here need no store."""
        self._pending.setdefault(flight, _Followers())

    def has_clients(self, flight: str) -> bool:
        """Whether a client of this worker waits for the flight of another request."""
        followers = self._pending.get(flight, _Followers())
        queued = chain.from_iterable(followers.queues.values())
        return any(one.is_connected() for one in chain(followers.apart, queued))

    def announce(self, flight: str, end: FlightEnd) -> None:
        """Tells the followers in this worker how the flight ended."""
        followers = self._pending.pop(flight, None)
        if followers is None:
            return
        for follower in followers.apart:
            if not follower.refuse(end):
                follower.wake(end)
        tries_one = end.in_turn or end.kind == "unknown"
        for queue in followers.queues.values():
            queue.refuse(end)
            if tries_one:
                queue.wake_next(end, self._attach)
            else:
                queue.wake_all(end)

    async def wait(
        self,
        flight: str,
        slots: set[int],
        *,
        limits: FollowerLimits | None = None,
        subscriber: Subscriber | None = None,
        in_turn: bool = False,
        is_connected: Callable[[], bool] = lambda: True,
    ) -> tuple[FlightEnd, Turn | None]:
        """Returns when the flight has ended, or has been silent for too long.

        With a turn, this follower has to try next, and decides what those behind it wait for.
        Without `in_turn`, for a follower that also waits for other flights, there is never one.
        """
        follower = Follower(frozenset(slots), limits, subscriber, is_connected)
        followers = self._followers_of(flight)
        if in_turn:
            followers.queue(follower.slots).add(follower)
        else:
            followers.apart.append(follower)
        try:
            return await follower.woken
        except asyncio.CancelledError:
            if follower.woken.done() and not follower.woken.cancelled():
                _, turn = follower.woken.result()
                if turn is not None:
                    turn.pass_on()
            raise

    def _followers_of(self, flight: str) -> _Followers:
        if flight not in self._pending:
            self.expect(flight)
            listener = asyncio.create_task(self._listen(flight), name=f"follow {flight}")
            # The event loop has only a weak reference to a task.
            self._listeners.add(listener)
            listener.add_done_callback(self._listeners.discard)
        return self._pending[flight]

    def _attach(self, flight: str, queue: FlightQueue) -> None:
        """Lets the followers of an earlier flight wait for this one."""
        queue.subscribe(self._partial_images.channel(flight))
        followers = self._followers_of(flight)
        # Not many: those that came since the flight began.
        queue.add_all(followers.queue(queue.slots))
        followers.queues[queue.slots] = queue

    async def close(self) -> None:
        """Stops listening to the flights of other workers."""
        for listener in self._listeners:
            listener.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)

    async def _listen(self, flight: str) -> None:
        """Announces the end of another worker's flight, even after an error."""
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
        """Reads events until one reports the end; `unknown` if none has after some seconds.

        Seconds without the store do not count: the leader could not publish anything either.
        """
        clock = asyncio.get_running_loop().time
        give_up_at = clock() + MAX_SILENCE_SECONDS
        patience = Patience()
        channel = self._partial_images.channel(flight)  # exists for as long as this listens
        position = 0
        watch: Watch | None = None
        async with AsyncExitStack() as stack:
            while patience.is_lost or clock() < give_up_at:
                try:
                    # Watch before the first read, or an event between the two wakes nothing.
                    watch = watch or await stack.enter_async_context(self._store.watch(flight))
                    events = await execute(self._store, ReadEvents(flight, after=position))
                except StoreUnavailable:
                    events = ()
                    if not patience.is_left():
                        raise
                else:
                    position += len(events)
                    if patience.restore():
                        # The leader has the usual time to publish, or to acquire its lease again.
                        give_up_at = clock() + MAX_SILENCE_SECONDS
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
