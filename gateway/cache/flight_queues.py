"""The followers of flights, in the order in which they try when a leader was refused.

A refused reservation concerns one limit subject: a key, a team or everyone. If all followers tried
at once, each refusal would send all of them to the store again: the square of their number. So one
tries, and those behind it wait for the flight that it leads or finds. Followers that count against
the same limit are refused without trying.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.cache.flight_events import FlightEnd
from gateway.cache.partial_images import Channel, Subscriber
from gateway.errors import GatewayError
from gateway.images import LimitRefusal


class FollowerLimits(NamedTuple):
    """Whose limits the purchases of a request count against."""

    key_id: str
    subjects: frozenset[str]
    """The names of the limit subjects."""
    refuse: Callable[[LimitRefusal, int], GatewayError | None]
    """The refusal of a purchase of so many images, as another purchase was refused; None if this
    one might be reserved."""


@dataclass(eq=False, slots=True)
class Follower:
    """A request that waits for the end of a flight."""

    slots: frozenset[int]
    limits: FollowerLimits | None
    subscriber: Subscriber | None
    is_connected: Callable[[], bool] = lambda: True
    """Whether its client has not left."""
    woken: asyncio.Future[tuple[FlightEnd, Turn | None]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def wake(self, end: FlightEnd, turn: Turn | None = None) -> None:
        """Tells it how the flight ended, and whether it tries for others too."""
        if not self.woken.done():
            self.woken.set_result((end, turn))

    def refuse(self, end: FlightEnd) -> bool:
        """Whether the follower is refused for the same reason as the leader; then it is woken."""
        if self.limits is None or end.refusal is None or self.woken.done():
            return False
        if end.refusal.subject_name not in self.limits.subjects:
            return False
        own = self.limits.refuse(end.refusal, len(self.slots))
        if own is not None:
            self.wake(FlightEnd("refused", failure=own))
        return own is not None


class FlightQueue:
    """Followers that wait for the same slots and nothing else."""

    def __init__(self, slots: frozenset[int]) -> None:
        self.slots = slots
        self._by_key: dict[str, deque[Follower]] = {}

    def __iter__(self) -> Iterator[Follower]:
        for followers in self._by_key.values():
            yield from followers

    def add(self, follower: Follower) -> None:
        """Adds a follower behind the others of its key."""
        key_id = follower.limits.key_id if follower.limits is not None else ""
        self._by_key.setdefault(key_id, deque()).append(follower)

    def add_all(self, other: FlightQueue) -> None:
        """Adds the followers of another queue."""
        for follower in other:
            self.add(follower)

    def subscribe(self, channel: Channel) -> None:
        """Followers that stream receive the partial images of the flight that they now wait for."""
        for follower in self:
            if follower.subscriber is not None:
                follower.subscriber.subscribe(channel)

    def refuse(self, end: FlightEnd) -> None:
        """Refuses the followers that the leader's refusal concerns too."""
        if end.refusal is None:
            return
        # A limit of a team or of everyone concerns followers of several keys.
        key_id = end.refusal.key_id
        for key in [key_id] if key_id else [*self._by_key]:
            followers = self._by_key.pop(key, ())
            if left := deque(f for f in followers if not f.refuse(end)):
                self._by_key[key] = left

    def pop(self) -> Follower | None:
        """The next follower that still waits: the keys take turns."""
        while self._by_key:
            key_id, followers = next(iter(self._by_key.items()))
            del self._by_key[key_id]
            follower = followers.popleft()
            if followers:
                self._by_key[key_id] = followers
            if not follower.woken.done():
                return follower
        return None

    def wake_all(self, end: FlightEnd) -> None:
        """Every follower tries for itself."""
        for follower in self:
            follower.wake(end)
        self._by_key.clear()

    def wake_next(self, end: FlightEnd, attach: Callable[[str, FlightQueue], None]) -> None:
        """One follower tries, with the turn of those behind it."""
        if (follower := self.pop()) is not None:
            follower.wake(end, Turn(self, end, attach))


class Turn:
    """A follower tries to acquire the lease, and those behind it wait for what it finds.

    It is used once; `pass_on` does nothing afterwards.
    """

    def __init__(
        self, queue: FlightQueue, end: FlightEnd, attach: Callable[[str, FlightQueue], None]
    ) -> None:
        self._queue: FlightQueue | None = queue
        self._end = end
        self._attach = attach

    def follow(self, flight: str) -> None:
        """The others follow the flight that has all their slots."""
        if (queue := self._take()) is not None:
            self._attach(flight, queue)

    def wake_all(self) -> None:
        """The others try too: what was found does not decide for them."""
        if (queue := self._take()) is not None:
            queue.wake_all(self._end)

    def pass_on(self) -> None:
        """The next one tries."""
        if (queue := self._take()) is not None:
            queue.wake_next(self._end, self._attach)

    def _take(self) -> FlightQueue | None:
        queue, self._queue = self._queue, None
        return queue
