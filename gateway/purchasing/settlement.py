"""Commits purchases: stores the images, settles the charge once, corrects a presumed one.

Every step may be repeated by purchase id, and is retried until the store has taken it: an image
that was paid for is never given up. The same steps finish the journals of dead workers
(`recovery`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, TypeVar

import structlog

from gateway.billing import quota
from gateway.cache.flight_events import Flight
from gateway.cache.idempotent_purchases import find_key, store_failed, store_purchased
from gateway.cache.image_cache import ImageCache
from gateway.errors import Charge, StoreUnavailable, UpstreamFailure
from gateway.images import Amounts, Record
from gateway.metrics import MoneyMetrics
from gateway.purchasing.charges import corrected_tokens
from gateway.purchasing.journal import Received, Reserved
from gateway.store.batch import Batch
from gateway.store.commands import Settlement
from gateway.store.protocol import Store

RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts; the last one repeats until the store is back."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Settlements:
    """Settles purchases."""

    def __init__(self, store: Store, cache: ImageCache, metrics: MoneyMetrics) -> None:
        self._store = store
        self._cache = cache
        self._metrics = metrics

    async def commit(self, received: Received, data: Mapping[str, bytes]) -> Settlement:
        """Stores the images and settles their charge, however often the store has to be asked.

        `data` holds the images' bytes by digest; it is empty for images that are not stored.
        """
        try:
            settlement = await retry_until_stored(partial(self._commit, received, data))
        except Exception:
            # A fault of our own keeps the images from being stored. The charge is settled anyway.
            log.exception("image_store_failed", purchase=received.reserved.purchase)
            record = received.record.but(outcome="failed", flags=("not_stored",))
            return await self.settle_failure(
                received.reserved, gateway_failure(), received.charge, record=record
            )
        # `already` is an earlier attempt that was not answered. A charge that another worker had
        # presumed was corrected, and that was counted there.
        if settlement.status in ("settled", "already"):
            self._metrics.purchased(received.record)
        return settlement

    async def _commit(self, received: Received, data: Mapping[str, bytes]) -> Settlement:
        batch = Batch(self._store)
        # A batch runs in order. Wherever it is interrupted, another worker can do the rest.
        await self._cache.store_bytes(batch, data)
        quota.receive(batch, received.reserved.purchase, received.encode())
        return await self.finish(received, batch)

    async def finish(self, received: Received, batch: Batch) -> Settlement:
        """Stores the images whose bytes are stored, settles, and tells the followers."""
        reserved, flight, pending = received.reserved, received.reserved.flight, None
        if flight is not None:
            tags = await self._cache.reserve_tags(
                reserved.record.key_id, flight.fingerprint, reserved.tags
            )
            pending = self._cache.store_images(
                batch,
                flight.fingerprint,
                received.images,
                lease=flight.id,
                displaces=flight.displaces,
            )
            self._cache.add_tags(batch, flight.fingerprint, tags)
        if reserved.idempotent is not None:
            # After the entry, which a stored result needs.
            by_slot = {**dict(reserved.cached), **received.images}
            images = [by_slot[slot] for slot in sorted(by_slot)]
            found = await find_key(self._store, reserved.idempotent)
            store_purchased(batch, reserved.idempotent, images, found=found)
        # After the entry: a worker that dies between them leaves an open journal.
        settled = quota.settle(
            batch, reserved.purchase, received.charge, record=received.record.encode()
        )
        if flight is not None:
            # Last, because followers load the images as soon as they read this event.
            flight.complete(batch, received.images)
        await batch.execute()
        if pending is not None:
            await self._cache.finish(pending)
        # Another worker has taken this one for dead and presumed the charge.
        if settled.value.status == "already" and settled.value.presumed:
            return await self._correct(
                reserved.purchase, received.charge, settled.value, record=received.record
            )
        return settled.value

    async def settle_failure(
        self,
        reserved: Reserved,
        failure: UpstreamFailure,
        charge: Amounts,
        *,
        record: Record,
        tell_followers: Callable[[Flight, Batch, UpstreamFailure], None] = Flight.fail,
    ) -> Settlement:
        """Settles a purchase that brought no image, however often the store has to be asked."""
        return await retry_until_stored(
            partial(
                self.try_settle_failure,
                reserved,
                failure,
                charge,
                record=record,
                tell_followers=tell_followers,
            )
        )

    async def try_settle_failure(
        self,
        reserved: Reserved,
        failure: UpstreamFailure,
        charge: Amounts,
        *,
        record: Record,
        tell_followers: Callable[[Flight, Batch, UpstreamFailure], None] = Flight.fail,
    ) -> Settlement:
        """As `settle_failure`, once. Raises `StoreUnavailable`."""
        batch = Batch(self._store)
        # Followers first: a worker that dies in between leaves a journal that others find.
        if reserved.flight is not None:
            self._cache.store_refusal(batch, reserved.flight.fingerprint, failure)
            tell_followers(reserved.flight, batch, failure)
        if reserved.idempotent is not None:
            found = await find_key(self._store, reserved.idempotent)
            store_failed(batch, reserved.idempotent, failure, found=found)
        is_presumed = failure.charge is Charge.PRESUMED
        settled = quota.settle(
            batch, reserved.purchase, charge, record=record.encode(), presumed=is_presumed
        )
        await batch.execute()
        if settled.value.status == "already" and settled.value.presumed and not is_presumed:
            return await self._correct(reserved.purchase, charge, settled.value, record=record)
        if settled.value.status == "settled":
            self._metrics.purchased(record)
        return settled.value

    async def _correct(
        self, purchase: str, charge: Amounts, presumed: Settlement, *, record: Record
    ) -> Settlement:
        """Adds a second record with the difference between the real and the presumed charge."""
        presumed_charge = quota.charged(presumed)
        difference = charge - presumed_charge
        record = record.but(
            id=f"{record.id}-late",
            corrects=record.id,
            images=difference.images,
            tokens=corrected_tokens(record.tokens, presumed_charge.tokens),
            cost_micros=difference.usd_micros,
            saved_micros=0,
            flags=(*record.flags, "late"),
        )
        batch = Batch(self._store)
        corrected = quota.settle(batch, purchase, charge, record=record.encode(), correct=True)
        await batch.execute()
        if corrected.value.status == "corrected":
            self._metrics.purchased(record)
        return corrected.value


def gateway_failure() -> UpstreamFailure:
    """A fault of the gateway's own after a request may have been sent: the charge is presumed."""
    return UpstreamFailure(
        "The gateway failed while it was waiting for this image.", charge=Charge.PRESUMED
    )


async def retry_until_stored(step: Callable[[], Awaitable[T]]) -> T:
    """Repeats a repeatable step while the store is unavailable."""
    attempt = 0
    while True:
        try:
            return await step()
        except StoreUnavailable:
            pause = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            log.warning("store_unavailable", during="purchase", attempt=attempt, retry_in=pause)
            attempt += 1
            await asyncio.sleep(pause)
