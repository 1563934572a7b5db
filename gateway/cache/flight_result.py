"""The result of one request's flights: images, errors, and the slots that are still missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.cache.entries import CachedImage, read_slot
from gateway.cache.flight_events import FlightEnd, PurchasedImages
from gateway.cache.unstored_images import UnstoredImage
from gateway.errors import GatewayError
from gateway.images import Image, with_those_beside
from gateway.store.commands import LeaseResult

# Shared by all results. While upstream works nearly all sets of a result are empty, and each set of
# its own would take 230 bytes.
_NONE: Final[frozenset[int]] = frozenset()


@dataclass(slots=True)
class FlightResult:
    """The images of one request by slot, and how it got them."""

    missing: set[int]
    """Slots that are not settled yet: neither filled, nor failed, nor given up."""
    images: dict[int, Image] = field(default_factory=dict)
    cached: dict[int, CachedImage] = field(default_factory=dict)
    """Those of `images` that were stored, or bought in this worker, since the look-up."""
    data: dict[str, bytes] = field(default_factory=dict)
    """Bytes by digest of those images that were bought in this worker."""
    bought: frozenset[int] = _NONE
    """Slots that this request's own purchases filled."""
    followed: frozenset[int] = _NONE
    """Slots that the purchases of other requests filled."""
    own_error: GatewayError | None = None
    """Why this request's own purchase failed."""
    last_followed: str | None = None
    """The id of the last flight of another request that ended with images or an error."""
    flight_error: GatewayError | None = None
    """Why a purchase that this request followed failed."""
    emptied: frozenset[int] = _NONE
    """Slots that a purchase of another request completed without an image, once so far."""
    silent: dict[int, str] = field(default_factory=dict)
    """Slots whose flight was silent for too long, with its id."""
    abandoned: frozenset[int] = _NONE
    """Slots whose flight was abandoned once."""
    traces: frozenset[str] = frozenset()
    """The traceparents of the purchases that this request followed, if they are traced."""

    @property
    def is_follower(self) -> bool:
        """Whether this request followed others and neither bought nor was refused itself."""
        has_followed = bool(self.followed) or self.flight_error is not None or bool(self.emptied)
        return has_followed and not self.bought and self.own_error is None

    def add_cached(self, lease: LeaseResult) -> None:
        """Adds images that were stored between the look-up and the lease."""
        for number, slot in lease.cached.items():
            self.cached[number] = read_slot(slot, now=lease.now)
            self.images[number] = self.cached[number].image
        self.missing -= lease.cached.keys()

    def add_unstored(self, found: Mapping[int, UnstoredImage]) -> None:
        """Adds images that this worker bought and the store has not confirmed yet."""
        for slot, unstored in found.items():
            self.cached[slot] = unstored.cached
            self.images[slot] = unstored.cached.image
            self.data[unstored.cached.image.digest] = unstored.data
        self.missing -= found.keys()

    def complete(self, end: FlightEnd, slots: Iterable[int]) -> None:
        """Adds the images of this request's own purchase. Slots that it left empty are given up."""
        self.bought |= self._add(end.purchased, slots)
        self.own_error = end.failure or self.own_error
        self.missing -= set(slots)

    def follow(self, end: FlightEnd, slots: set[int]) -> None:
        """Adds the images of another request's purchase.

        A slot that it left empty, or whose flight was abandoned, stays missing and is tried once
        more. The second time the slot is given up.
        """
        if end.trace is not None:
            self.traces |= {end.trace}
        if end.kind == "refused":
            self.own_error = self.own_error or end.failure
            self.missing -= slots
            return
        abandoned_again = end.kind == "abandoned" and slots & self.abandoned
        if end.kind == "failed" or abandoned_again:
            self.flight_error = end.failure
            self.missing -= slots
            return
        if end.kind == "abandoned":
            self.abandoned |= slots
        self.followed |= self._add(end.purchased, slots)
        self.missing -= self.images.keys()
        if end.kind == "completed":
            left_empty = slots & self.missing
            # Given up the second time, so that `Flights.run` ends.
            self.missing -= left_empty & self.emptied
            self.emptied |= left_empty

    def _add(self, purchased: PurchasedImages, slots: Iterable[int]) -> frozenset[int]:
        """Adds images; returns the slots that they fill."""
        filled = with_those_beside(purchased.images, set(slots))
        for slot in filled:
            image = purchased.images[slot]
            self.images[slot] = image
            if image.digest in purchased.data:
                self.data[image.digest] = purchased.data[image.digest]
        return frozenset(filled)
