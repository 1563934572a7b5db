"""Images that this worker bought and that the store has not confirmed yet.

A purchase is here from upstream's answer until its commit: for a moment as a rule, and longer while
the store is unavailable. Requests to this worker get its images from here, so that none of them is
bought twice. The bytes are those that the commit keeps anyway; beyond a bound the oldest purchases
are forgotten here, but still committed.

Confirmed images stay for some seconds more, for requests that lose the store just then: they asked
it before the commit, got no reply, and would buy.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.cache.entries import CachedImage
from gateway.cache.flight_events import Flight, PurchasedImages
from gateway.frozen import frozen
from gateway.images import MAX_SLOTS

MAX_PURCHASES: Final = 10_000
"""Purchases that are remembered, however small their images are."""

CONFIRMED_SECONDS: Final = 4.0
"""How long confirmed images stay: twice as long as a store call may take."""

FORGETTING_SECONDS: Final = 0.1
"""How much longer some of them stay: one timer forgets all that are due."""


@frozen
class UnstoredImage:
    """An image, its freshness as of a hit, and its bytes."""

    cached: CachedImage
    data: bytes


@dataclass(slots=True)
class _Purchase:
    flight: Flight
    purchased: PurchasedImages
    size_bytes: int
    added_at: float
    forget_at: float = math.inf
    """Once it is confirmed; by the event loop's clock."""


class UnstoredImages:
    """The unstored images of this worker, of at most `max_bytes` together; 0 keeps none.

    The bound includes confirmed ones, which are forgotten first. Images stay fresh for
    `ttl_seconds`. Those that `is_taken_down` by their digest are not found.
    """

    def __init__(
        self,
        max_bytes: int = 0,
        *,
        ttl_seconds: float = math.inf,
        is_taken_down: Callable[[str], bool] = lambda digest: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._ttl_seconds = ttl_seconds
        self._is_taken_down = is_taken_down
        self._clock = clock
        self._size_bytes = 0
        self._purchases: OrderedDict[str, _Purchase] = OrderedDict()  # by flight, oldest first
        self._confirmed: OrderedDict[str, _Purchase] = OrderedDict()  # the same
        self._flights: dict[str, dict[str, None]] = {}  # by fingerprint, oldest first
        self._is_forgetting = False

    def __len__(self) -> int:
        """How many unstored purchases are remembered."""
        return len(self._purchases)

    def add(self, flight: Flight, purchased: PurchasedImages) -> None:
        """Adds the images of a purchase, until `confirm` or `remove`."""
        size_bytes = sum(map(len, purchased.data.values()))
        if not 0 < size_bytes <= self._max_bytes:
            return
        self.remove(flight.id)
        self._purchases[flight.id] = _Purchase(flight, purchased, size_bytes, self._clock())
        self._flights.setdefault(flight.fingerprint, {})[flight.id] = None
        self._size_bytes += size_bytes
        while self._size_bytes > self._max_bytes or self._count() > MAX_PURCHASES:
            oldest = self._confirmed or self._purchases
            self._forget(oldest, next(iter(oldest)))

    def confirm(self, flight: str) -> None:
        """The store has the images of a purchase; they stay for `CONFIRMED_SECONDS`."""
        if (purchase := self._purchases.pop(flight, None)) is None:
            return
        self._confirmed[flight] = purchase
        loop = asyncio.get_running_loop()
        purchase.forget_at = loop.time() + CONFIRMED_SECONDS
        if not self._is_forgetting:
            self._is_forgetting = True
            loop.call_at(purchase.forget_at, self._forget_old)

    def _forget_old(self) -> None:
        """Forgets the confirmed purchases that are due, and comes again while some are left."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._confirmed:
            flight, oldest = next(iter(self._confirmed.items()))
            if oldest.forget_at > now:
                loop.call_at(max(oldest.forget_at, now + FORGETTING_SECONDS), self._forget_old)
                return
            self._forget(self._confirmed, flight)
        self._is_forgetting = False

    def remove(self, flight: str) -> None:
        """Forgets a purchase that is not confirmed: the store will never have its images."""
        if flight in self._purchases:
            self._forget(self._purchases, flight)

    def forget_confirmed(self) -> None:
        """Forgets what the store has, because some of it was purged."""
        for flight in list(self._confirmed):
            self._forget(self._confirmed, flight)

    def _count(self) -> int:
        return len(self._purchases) + len(self._confirmed)

    def _forget(self, purchases: OrderedDict[str, _Purchase], flight: str) -> None:
        removed = purchases.pop(flight, None)
        if removed is None:
            return
        self._size_bytes -= removed.size_bytes
        of_fingerprint = self._flights[removed.flight.fingerprint]
        del of_fingerprint[flight]
        if not of_fingerprint:
            del self._flights[removed.flight.fingerprint]

    def of_flight(self, flight: str) -> PurchasedImages | None:
        """The images of a flight that has ended here, for a follower; None if it is not known."""
        found = self._purchases.get(flight)
        return None if found is None else found.purchased

    def find(
        self,
        fingerprint: str,
        slots: Iterable[int],
        *,
        max_age_seconds: float | None = None,
        with_confirmed: bool = False,
    ) -> dict[int, UnstoredImage]:
        """The fresh images of a fingerprint in `slots`, none of them older than `max_age_seconds`.

        Slots are as in the entry that the commits are about to make. `with_confirmed` is for
        requests that cannot read it.
        """
        flights = self._flights.get(fingerprint)
        if flights is None:
            return {}
        now = self._clock()
        max_age_seconds = math.inf if max_age_seconds is None else max_age_seconds
        placed: dict[int, UnstoredImage] = {}
        for flight in flights:
            purchase = self._purchases.get(flight)
            if purchase is None and with_confirmed:
                purchase = self._confirmed[flight]
            if purchase is None:
                continue
            age_seconds = now - purchase.added_at
            if age_seconds >= self._ttl_seconds or age_seconds > max_age_seconds:
                continue
            ttl_seconds = math.floor(min(self._ttl_seconds - age_seconds, 2**53))
            for slot, image in purchase.purchased.images.items():
                data = purchase.purchased.data.get(image.digest)
                if data is not None and not self._is_taken_down(image.digest):
                    found = UnstoredImage(CachedImage(image, ttl_seconds), data)
                    _place(placed, slot, found, displaces=purchase.flight.displaces)
        return {slot: placed[slot] for slot in slots if slot in placed}


def _place(
    placed: dict[int, UnstoredImage], slot: int, image: UnstoredImage, *, displaces: bool
) -> None:
    """Puts an image into its slot or the first free one, as the store does."""
    if slot in placed and displaces:
        placed[slot], image = image, placed[slot]
    if slot in placed:
        free = (number for number in range(MAX_SLOTS) if number not in placed)
        slot = next(free, MAX_SLOTS)  # no request looks beyond the last slot
    placed[slot] = image
