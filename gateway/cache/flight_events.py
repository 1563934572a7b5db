"""A flight, and the events with which it ends.

A flight is one purchase of some slots of one fingerprint. Its methods only add commands to a batch,
so that they run in one round trip with those that store or settle its purchase. Which requests
lead a flight and which follow it is `flights`. The events before its end are `partial_images`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from typing import Any, Final, Literal

import orjson

from gateway.errors import GatewayError, UpstreamFailure, detach
from gateway.frozen import frozen
from gateway.images import Image, LimitRefusal, decode_fields
from gateway.store.batch import Batch, Result
from gateway.store.commands import AcquireLease, LeaseResult, Publish, ReleaseLease, RenewLease
from gateway.trace_context import valid_traceparent

EVENT_SECONDS: Final = 600.0
"""How long the events of a flight can be read after the last one, while it goes on."""

END_SECONDS: Final = 120.0
"""The same once it has ended. A follower reads the end within seconds, or after an outage of the
store; without one it tries to acquire the lease, and finds the images in their entry."""

RELEASED_SECONDS: Final = 5.0
"""The same, if nothing was bought: a refused request leaves nothing behind. A follower reads
sooner, or acquires the lease itself."""


@frozen
class Flight:
    """One purchase of some slots of a fingerprint."""

    id: str
    """Also the id of its purchase, and of the lease of its slots."""
    fingerprint: str
    slots: tuple[int, ...]
    replacements: int = 0
    """How many earlier flights of these slots were abandoned. A dead leader is replaced once."""
    is_unshared: bool = False
    """It has no lease and no followers: its client gets images of its own."""
    displaces: bool = False
    """Its images take the slots that they were bought for, even from other images."""
    ignoring: tuple[str, ...] = ()
    """Ids of images that do not fill a slot for this flight."""
    is_offline: bool = False
    """It began while the store was unavailable, and takes its lease once the store is back."""
    trace: str | None = None
    """The traceparent of its purchase, if that is traced: followers link to it."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Flight:
        """A flight from the JSON object that orjson makes of one."""
        tuples = {name: tuple(data.get(name, ())) for name in ("slots", "ignoring")}
        trace = valid_traceparent(data.get("trace"))
        return decode_fields(Flight, {**data, **tuples, "trace": trace})

    def acquire(self, batch: Batch, *, seconds: float) -> Result[LeaseResult]:
        """Leases those of the slots that are free; a lease that the flight has is not shortened."""
        return batch.add(
            AcquireLease(self.fingerprint, self.slots, self.id, seconds, self.ignoring)
        )

    def renew(self, batch: Batch, *, seconds: float) -> Result[bool]:
        """Renews the lease from now on; False if it was lost meanwhile."""
        return batch.add(RenewLease(self.fingerprint, self.id, seconds))

    def complete(self, batch: Batch, images: Mapping[int, Image]) -> None:
        """Publishes the images, by the slots that they were bought for. Storing ends the lease."""
        by_slot = {str(slot): image for slot, image in images.items()}
        self._publish_end(batch, {"end": "completed", "images": by_slot, **self._traced})

    def fail(self, batch: Batch, failure: UpstreamFailure) -> None:
        """Releases the lease and publishes upstream's final error, which followers get too.

        Except for an error that concerns the leader alone: after it, the followers try in turn.
        """
        if failure.concerns_buyer:
            self.release(batch, in_turn=True)
            return
        batch.add(ReleaseLease(self.fingerprint, self.id))
        self._publish_end(batch, {"end": "failed", "failure": failure.to_dict(), **self._traced})

    def abandon(self, batch: Batch, failure: UpstreamFailure) -> None:
        """Ends the flight of a dead leader. One follower may replace it, but only once."""
        if self.replacements:
            self.fail(batch, failure)
            return
        # Before the end is published: a follower acquires the lease as soon as it reads the end.
        batch.add(ReleaseLease(self.fingerprint, self.id))
        event = {"end": "abandoned", "failure": failure.to_dict(), **self._traced}
        self._publish_end(batch, event)

    def release(
        self,
        batch: Batch,
        *,
        in_turn: bool = False,
        refusal: LimitRefusal | None = None,
        to: Iterable[Flight] = (),
        lease_seconds: float = 0.0,
    ) -> None:
        """Releases the lease without a purchase: the followers try, see `FlightEnd`.

        The flights of `to`, which are buying, get the lease of their slots first.
        """
        # Before the end is published, as in `abandon`.
        batch.add(ReleaseLease(self.fingerprint, self.id))
        for successor in to:
            successor.acquire(batch, seconds=lease_seconds)
        event = {"end": "released", "in_turn": in_turn, "refusal": refusal}
        self._publish_end(batch, event, ttl_seconds=RELEASED_SECONDS)

    @property
    def _traced(self) -> Mapping[str, str]:
        return {"trace": self.trace} if self.trace is not None else {}

    def _publish_end(
        self, batch: Batch, event: Mapping[str, Any], *, ttl_seconds: float = END_SECONDS
    ) -> None:
        # All ends have one event id: the store drops every end but the first.
        batch.add(Publish(self.id, "end", orjson.dumps(event, default=dict), ttl_seconds))


@frozen
class PurchasedImages:
    """The images that a purchase brought."""

    images: Mapping[int, Image]
    """By the slots that they were bought for."""
    data: Mapping[str, bytes]
    """Bytes by digest, still in memory, so that followers in this worker need not read them."""
    trace: str | None = None
    """As that of the flight."""


@frozen
class FlightEnd:
    """How a flight ended, as its followers learn it."""

    kind: Literal["completed", "failed", "abandoned", "released", "unknown", "refused"]
    """`unknown`: it was silent for too long, and its leader may be dead. `refused`: the follower is
    refused as the leader was; `failure` is its own error."""
    purchased: PurchasedImages = field(default_factory=lambda: PurchasedImages({}, {}))
    failure: GatewayError | None = None
    in_turn: bool = False
    """Of a released flight: its leader alone was refused, so the followers try one by one."""
    refusal: LimitRefusal | None = None
    """The limit that refused the leader, which may concern followers of the same key."""
    trace: str | None = None
    """As that of the flight; None if nothing was sent to upstream."""

    def __post_init__(self) -> None:
        if self.failure is not None:
            detach(self.failure)

    def shared(self) -> FlightEnd:
        """The end as followers learn it, without what concerns the leader alone."""
        if self.failure is None:
            return self
        failure = self.failure.shared() if isinstance(self.failure, UpstreamFailure) else None
        return replace(self, failure=failure)


def completed(purchased: PurchasedImages) -> FlightEnd:
    """The end of a flight that brought images."""
    return FlightEnd("completed", purchased, trace=purchased.trace)


def decode_end(event: Mapping[str, Any]) -> FlightEnd | None:
    """The end that an event of a flight reports; None for any other event."""
    kind, trace = event.get("end"), valid_traceparent(event.get("trace"))
    if kind == "completed":
        images = {int(slot): Image.from_dict(image) for slot, image in event["images"].items()}
        return completed(PurchasedImages(images, {}, trace))
    if kind in ("failed", "abandoned"):
        failure = UpstreamFailure.from_dict(event["failure"])
        return FlightEnd(kind, failure=failure, trace=trace)
    if kind == "released":
        refusal = event.get("refusal")
        return FlightEnd(
            "released",
            in_turn=event.get("in_turn", False),
            refusal=decode_fields(LimitRefusal, refusal) if refusal else None,
        )
    return None
