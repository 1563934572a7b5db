"""Finishes the purchases that dead workers left open."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from gateway.cache.flight_events import Flight
from gateway.cache.idempotency_results import worker_died
from gateway.errors import Charge, StoreFull, StoreUnavailable
from gateway.images import Amounts, Record
from gateway.purchasing.charges import charge_reserved
from gateway.purchasing.journal import Received, Reserved, UnreadableJournal, decode_payload
from gateway.purchasing.settlement import Settlements, new_attempt
from gateway.purchasing.unreadable import UNFINISHED, UNREADABLE, close_at_reserved
from gateway.store.batch import Batch, execute
from gateway.store.commands import Deregister, Heartbeat, Journal, OpenJournals
from gateway.store.protocol import Store
from gateway.tracing import NO_TRACER, Tracer

MAX_ATTEMPTS: Final = 3
"""How often a worker tries to finish a journal before it settles it at its reserved amounts."""

log = structlog.get_logger(__name__)


class Recovery:
    """Finishes journals. `worker` is this worker's own name."""

    def __init__(
        self,
        store: Store,
        settlements: Settlements,
        *,
        worker: str,
        expires_after_seconds: float,
        tracer: Tracer = NO_TRACER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settlements = settlements
        self._worker = worker
        self._expires_after_seconds = expires_after_seconds
        self._tracer = tracer
        self._missed_once: frozenset[str] = frozenset()
        self._dead: dict[str, None] = {}
        """Workers to recover, in the order in which they were found dead."""
        self.has_dead = asyncio.Event()
        """Set when a worker was found dead; `recover_dead` clears it."""
        self._recovering = asyncio.Lock()
        self._clock = clock
        self._unavailable_at = -math.inf
        """When the store was last unavailable, or this worker's own heartbeat late."""
        self._unanswered: dict[str, Callable[[], Awaitable[bool]]] = {}
        """By attempt, how to repeat settlements without a reply: they may have been executed."""
        self._attempts: Counter[str] = Counter()
        """Failed attempts by purchase; those that stay open are few."""

    async def send_heartbeat(self) -> None:
        """Records that this worker is alive, and checks which others are dead.

        A worker is dead after two missed checks in a row, during which the store was available.
        Raises `StoreUnavailable`.
        """
        heartbeat = Heartbeat(self._worker, expired_after_seconds=self._expires_after_seconds)
        # If the store does not answer now, the misses before it no longer count.
        missed_before, self._missed_once = self._missed_once, frozenset()
        try:
            expired = await execute(self._store, heartbeat)
        except StoreUnavailable:
            self._unavailable_at = self._clock()
            raise
        # Those that wait for their recovery may have been cut off, and live.
        self._dead = {worker: None for worker in self._dead if worker in expired}
        # Its own heartbeat is late too: a pause of the machine or the store, or a clock that was
        # set forward.
        if self._worker in expired:
            self._unavailable_at = self._clock()
        # The others could not send heartbeats either. They get the usual time to do so.
        if self._clock() - self._unavailable_at < self._expires_after_seconds:
            return
        self._missed_once = frozenset(expired) - {self._worker}
        self._dead |= dict.fromkeys(sorted(missed_before & self._missed_once))
        if self._dead:
            self.has_dead.set()

    async def recover_dead(self) -> int:
        """Finishes the purchases of every dead worker; returns how many it closed.

        This may take long, so call it beside `send_heartbeat`. Raises `StoreUnavailable`.
        """
        async with self._recovering:
            self.has_dead.clear()
            for attempt, repeat in list(self._unanswered.items()):
                with suppress(StoreFull):
                    await repeat()
                    del self._unanswered[attempt]
            closed = 0
            try:
                for worker in tuple(self._dead):
                    if worker in self._dead:  # the heartbeats meanwhile have not found it alive
                        closed += await self.recover(worker)
                        self._dead.pop(worker, None)
            except BaseException:
                # The next heartbeats find them dead again.
                self._dead.clear()
                raise
            return closed

    async def recover(self, worker: str) -> int:
        """Finishes the open journals of a dead worker and deregisters it."""
        journals = await execute(self._store, OpenJournals(worker))
        closed = 0
        for journal in journals:
            attempt = new_attempt()
            try:
                closed += await self._close(journal, attempt=attempt)
            except StoreFull:
                continue  # other journals may need less room
        await execute(self._store, Deregister(worker))
        return closed

    async def _close(self, journal: Journal, *, attempt: str) -> bool:
        """Finishes a journal; one that cannot be read or finished is settled as it was reserved."""
        purchase = journal.purchase
        try:
            await self._finish(journal, attempt=attempt)
        except StoreFull:
            raise
        except StoreUnavailable:
            self._unanswered[attempt] = partial(self._close, journal, attempt=attempt)
            raise
        except UnreadableJournal:
            return await self._close_at_reserved(journal, attempt=attempt, flag=UNREADABLE)
        except Exception:
            # The fault may pass. Logged once, because the next attempt is seconds away.
            if purchase not in self._attempts:
                log.exception("recovery_failed", purchase=purchase, worker=journal.worker)
            self._attempts[purchase] += 1
            if self._attempts[purchase] < MAX_ATTEMPTS:
                return False
            return await self._close_at_reserved(journal, attempt=attempt, flag=UNFINISHED)
        self._attempts.pop(purchase, None)
        log.info("purchase_recovered", purchase=purchase, state=journal.state)
        return True

    async def _close_at_reserved(self, journal: Journal, *, attempt: str, flag: str) -> bool:
        try:
            settlement, record = await close_at_reserved(
                self._store, journal, attempt=attempt, flag=flag
            )
        except StoreFull:
            raise
        except StoreUnavailable:
            self._unanswered[attempt] = partial(
                self._close_at_reserved, journal, attempt=attempt, flag=flag
            )
            raise
        except Exception:
            # The journal stays open, for `gateway ledger repair` and `gateway doctor` to show.
            if self._attempts[journal.purchase] <= MAX_ATTEMPTS:
                self._attempts[journal.purchase] = MAX_ATTEMPTS + 1
                log.exception("settlement_failed", purchase=journal.purchase, worker=journal.worker)
            return False
        self._attempts.pop(journal.purchase, None)
        self._settlements.count(settlement, record, attempt=attempt)
        return True

    async def _finish(self, journal: Journal, *, attempt: str) -> None:
        """Stores and settles received images; presumes the charge of a purchase without any."""
        payload = decode_payload(journal.payload)
        flight = (payload.reserved if isinstance(payload, Received) else payload).flight
        trace = None if flight is None else flight.trace
        with self._tracer.recovery(trace, payload.record):
            await self._finish_payload(journal, payload, attempt=attempt)

    async def _finish_payload(
        self, journal: Journal, payload: Reserved | Received, *, attempt: str
    ) -> None:
        # The payload was encoded before its reservation, of which only the journal has the time.
        record = payload.record.but(time=journal.reserved_at or payload.record.time)
        if isinstance(payload, Received):
            received = replace(payload, record=record)
            batch = Batch(self._store)
            settlement, _ = await self._settlements.finish(received, batch, attempt=attempt)
            self._settlements.count(settlement, record, attempt=attempt)
            return
        if journal.state == "queued":
            await self._release_queued(payload, record, attempt=attempt)
            return
        death = worker_died()
        record = record.but(
            outcome="failed",
            flags=(*payload.record.flags, "presumed"),
            error=death.code,
            status=death.status,
            **charge_reserved(payload.estimate).recorded,
        )
        settlement = await self._settlements.try_settle_failure(
            payload,
            death,
            payload.estimate,
            record=record,
            attempt=attempt,
            tell_followers=Flight.abandon,
        )
        self._settlements.count(settlement, record, attempt=attempt)

    async def _release_queued(self, payload: Reserved, record: Record, *, attempt: str) -> None:
        """Releases a purchase that waited for its turn: nothing was sent. A follower takes over.

        The charge is presumed: if the worker lives after all, it may take its turn at this moment,
        and what its purchase costs then corrects this.
        """
        death = worker_died()
        death.charge = Charge.FREE
        record = record.but(
            outcome="failed",
            flags=(*payload.record.flags, "queued"),
            error=death.code,
            status=death.status,
        )
        settlement = await self._settlements.try_settle_failure(
            payload,
            death,
            Amounts(),
            record=record,
            attempt=attempt,
            is_presumed=True,
            tell_followers=lambda flight, batch, failure: flight.release(batch, in_turn=True),
        )
        self._settlements.count(settlement, record, attempt=attempt)
