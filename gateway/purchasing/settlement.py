"""Commits purchases: stores the images, settles the charge once, corrects a presumed one.

Every step may be repeated by purchase id, and is retried until the store has taken it: an image
that was paid for is never given up. The same steps finish the journals of dead workers
(`recovery`).
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Final, TypeVar

import structlog

from gateway.billing import quota
from gateway.cache.flight_events import Flight
from gateway.cache.idempotent_purchases import find_key, store_failed, store_purchased
from gateway.cache.image_cache import ImageCache
from gateway.cache.indexed_image import ImageOrigin
from gateway.errors import Charge, StoreUnavailable, UpstreamFailure
from gateway.images import Amounts, Record
from gateway.metrics import MoneyMetrics
from gateway.purchasing.charges import corrected_kinds
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

    async def commit(
        self,
        received: Received,
        data: Mapping[str, bytes],
        *,
        on_stored: Callable[[], None] = lambda: None,
    ) -> Settlement:
        """Stores the images and settles their charge, however often the store has to be asked.

        `data` holds the images' bytes by digest; it is empty for images that are not stored.
        `on_stored` is called if the store has confirmed that the entry has all of the images.
        """
        attempt = new_attempt()
        try:
            settlement, is_stored = await retry_until_stored(
                partial(self._commit, received, data, attempt=attempt)
            )
        except Exception:
            # A fault of our own keeps the images from being stored. The charge is settled anyway.
            log.exception("image_store_failed", purchase=received.reserved.purchase)
            flags = (*received.record.flags, "not_stored")
            record = received.record.but(outcome="failed", flags=flags)
            return await self.settle_failure(
                received.reserved,
                # The charge is known, so it is final, and corrects a presumed one.
                gateway_failure(charge=Charge.UNDELIVERED),
                received.charge,
                record=record,
                attempt=attempt,
            )
        if is_stored:
            on_stored()
        self.count(settlement, received.record, attempt=attempt)
        return settlement

    def count(self, settlement: Settlement, record: Record, *, attempt: str) -> None:
        """Counts the charge of a purchase in the metrics, if this attempt made it.

        To be called once, with the reply that came. It may be `already`: an earlier reply was lost,
        or another worker was faster.
        """
        if settlement.attempt != attempt:
            return
        if settlement.corrected_from is not None:
            self._metrics.corrected(_correction(record, settlement))
            return
        if settlement.is_unreserved:
            log.warning("reservation_lost", purchase=record.id)
        self._metrics.purchased(record)

    async def _commit(
        self, received: Received, data: Mapping[str, bytes], *, attempt: str
    ) -> tuple[Settlement, bool]:
        batch = Batch(self._store)
        # A batch runs in order. Wherever it is interrupted, another worker can do the rest.
        await self._cache.store_bytes(batch, data)
        quota.receive(batch, received.reserved.purchase, received.encode())
        return await self.finish(received, batch, attempt=attempt)

    async def finish(
        self, received: Received, batch: Batch, *, attempt: str
    ) -> tuple[Settlement, bool]:
        """Stores the images whose bytes are stored, settles, and tells the followers.

        Returns the settlement, and whether the entry has all of the images.
        """
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
                origin=ImageOrigin.of(received.record, tags, reserved.prompt),
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
            batch,
            reserved.purchase,
            received.charge,
            record=received.record,
            encoded=received.encoded_record,
            attempt=attempt,
        )
        if flight is not None:
            # Last, because followers load the images as soon as they read this event.
            flight.complete(batch, received.images)
        await batch.execute()
        is_stored = pending is not None and await self._cache.finish(pending)
        # Another worker has taken this one for dead and presumed the charge.
        if settled.value.status == "already" and settled.value.presumed:
            corrected = await self._correct(
                reserved.purchase,
                received.charge,
                settled.value,
                record=received.record,
                attempt=attempt,
            )
            return corrected, is_stored
        return settled.value, is_stored

    async def settle_failure(
        self,
        reserved: Reserved,
        failure: UpstreamFailure,
        charge: Amounts,
        *,
        record: Record,
        attempt: str | None = None,
        tell_followers: Callable[[Flight, Batch, UpstreamFailure], None] = Flight.fail,
    ) -> Settlement:
        """Settles a purchase that brought no image, however often the store has to be asked."""
        attempt = attempt or new_attempt()
        settlement = await retry_until_stored(
            partial(
                self.try_settle_failure,
                reserved,
                failure,
                charge,
                record=record,
                attempt=attempt,
                tell_followers=tell_followers,
            )
        )
        self.count(settlement, record, attempt=attempt)
        return settlement

    async def try_settle_failure(
        self,
        reserved: Reserved,
        failure: UpstreamFailure,
        charge: Amounts,
        *,
        record: Record,
        attempt: str,
        is_presumed: bool = False,
        tell_followers: Callable[[Flight, Batch, UpstreamFailure], None] = Flight.fail,
    ) -> Settlement:
        """As `settle_failure`, once and without `count`. Raises `StoreUnavailable`.

        With `is_presumed` a later settlement may correct the charge, whatever the failure says.
        """
        batch = Batch(self._store)
        # Followers first: a worker that dies in between leaves a journal that others find.
        if reserved.flight is not None:
            fingerprint = reserved.flight.fingerprint
            await self._cache.store_refusal(batch, reserved.record.key_id, fingerprint, failure)
            tell_followers(reserved.flight, batch, failure)
        if reserved.idempotent is not None:
            found = await find_key(self._store, reserved.idempotent)
            store_failed(batch, reserved.idempotent, failure, found=found)
        is_presumed = is_presumed or failure.charge is Charge.PRESUMED
        settled = quota.settle(
            batch,
            reserved.purchase,
            charge,
            record=record,
            attempt=attempt,
            presumed=is_presumed,
        )
        await batch.execute()
        # Of two estimates the first one stays, unless it was that nothing would be charged.
        is_better = not is_presumed or not any(settled.value.charged.values())
        is_repeated = settled.value.attempt == attempt
        if (
            settled.value.status == "already"
            and settled.value.presumed
            and (is_better and not is_repeated)
        ):
            return await self._correct(
                reserved.purchase, charge, settled.value, record=record, attempt=attempt
            )
        return settled.value

    async def _correct(
        self,
        purchase: str,
        charge: Amounts,
        presumed: Settlement,
        *,
        record: Record,
        attempt: str,
    ) -> Settlement:
        """Adds a second record with the difference between the real and the presumed charge."""
        correction = _correction(
            record,
            replace(
                presumed,
                charged=asdict(charge),
                corrected_from=presumed.charged,
            ),
        )
        batch = Batch(self._store)
        corrected = quota.settle(
            batch, purchase, charge, record=correction, attempt=attempt, correct=True
        )
        await batch.execute()
        return corrected.value


def new_attempt() -> str:
    """The name of an attempt to settle; repetitions after a lost reply have the same."""
    return secrets.token_hex(6)


def _correction(record: Record, settlement: Settlement) -> Record:
    """The record of a correction from the presumed charge of a settlement to its charge."""
    before = quota.as_amounts(settlement.corrected_from or {})
    difference = quota.charged(settlement) - before
    return record.but(
        id=f"{record.id}-late",
        corrects=record.id,
        corrected_at=settlement.now,
        images=difference.images,
        tokens=corrected_kinds(record.tokens, before.tokens),
        cost_micros=difference.usd_micros,
        costs=corrected_kinds(record.costs, before.usd_micros),
        saved_micros=0,
        images_served=None,
        presumed_micros=-before.usd_micros,
        flags=(*record.flags, "late"),
    )


def gateway_failure(*, charge: Charge = Charge.PRESUMED) -> UpstreamFailure:
    """A fault of the gateway's own after a request may have been sent."""
    return UpstreamFailure("The gateway failed while it was waiting for this image.", charge=charge)


async def retry_until_stored(step: Callable[[], Awaitable[T]]) -> T:
    """Repeats a repeatable step while the store is unavailable."""
    attempt = 0
    while True:
        try:
            return await step()
        except StoreUnavailable:
            pause = RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]
            attempt += 1
            await asyncio.sleep(pause)
