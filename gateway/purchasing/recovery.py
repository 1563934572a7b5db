"""Finishes the purchases that dead workers left open."""

from __future__ import annotations

from collections import Counter
from typing import Final

import structlog

from gateway.cache.flight_events import Flight
from gateway.cache.idempotency_results import worker_died
from gateway.errors import StoreFull, StoreUnavailable
from gateway.metrics import MoneyMetrics
from gateway.purchasing.charges import charged_tokens
from gateway.purchasing.journal import Received, UnreadableJournal, decode_payload
from gateway.purchasing.settlement import Settlements
from gateway.purchasing.unreadable import UNFINISHED, UNREADABLE, close_at_reserved
from gateway.store.batch import Batch, execute
from gateway.store.commands import Deregister, ExpiredWorkers, Journal, OpenJournals
from gateway.store.protocol import Store

MAX_ATTEMPTS: Final = 3
"""How often a worker tries to finish a journal before it settles it at its reserved amounts."""

log = structlog.get_logger(__name__)


class Recovery:
    """Finishes journals. `worker` is this worker's own name."""

    def __init__(
        self,
        store: Store,
        settlements: Settlements,
        metrics: MoneyMetrics,
        *,
        worker: str,
        expires_after_seconds: float,
    ) -> None:
        self._store = store
        self._settlements = settlements
        self._metrics = metrics
        self._worker = worker
        self._expires_after_seconds = expires_after_seconds
        self._missed_once: frozenset[str] = frozenset()
        self._attempts: Counter[str] = Counter()
        """Failed attempts by purchase; those that stay open are few."""

    async def recover_expired(self) -> int:
        """Finishes the purchases of every dead worker; returns how many it closed.

        A worker is dead after two missed checks in a row.
        """
        # If the store does not answer now, the misses before it no longer count.
        missed_before, self._missed_once = self._missed_once, frozenset()
        expired = await execute(self._store, ExpiredWorkers(self._expires_after_seconds))
        self._missed_once = frozenset(expired) - {self._worker}
        # After an outage of the store all workers have missed one check. Those that are alive send
        # a heartbeat before the second.
        missed_twice = missed_before & self._missed_once
        return sum([await self.recover(worker) for worker in missed_twice])

    async def recover(self, worker: str) -> int:
        """Finishes the open journals of a dead worker and deregisters it."""
        journals = await execute(self._store, OpenJournals(worker))
        closed = 0
        for journal in journals:
            try:
                closed += await self._close(journal)
            except StoreFull:
                continue  # the others may need less room
        await execute(self._store, Deregister(worker))
        return closed

    async def _close(self, journal: Journal) -> bool:
        """Finishes a journal; one that cannot be read or finished is settled as it was reserved."""
        purchase = journal.purchase
        try:
            await self._finish(journal)
        except StoreUnavailable:
            raise
        except UnreadableJournal:
            return await self._close_at_reserved(journal, flag=UNREADABLE)
        except Exception:
            # The fault may pass. Logged once, because the next attempt is seconds away.
            if purchase not in self._attempts:
                log.exception("recovery_failed", purchase=purchase, worker=journal.worker)
            self._attempts[purchase] += 1
            if self._attempts[purchase] < MAX_ATTEMPTS:
                return False
            return await self._close_at_reserved(journal, flag=UNFINISHED)
        self._attempts.pop(purchase, None)
        log.info("purchase_recovered", purchase=purchase, state=journal.state)
        return True

    async def _close_at_reserved(self, journal: Journal, *, flag: str) -> bool:
        try:
            settlement, record = await close_at_reserved(self._store, journal, flag=flag)
        except StoreUnavailable:
            raise
        except Exception:
            # The journal stays open, for `gateway ledger repair` and `gateway doctor` to show.
            if self._attempts[journal.purchase] <= MAX_ATTEMPTS:
                self._attempts[journal.purchase] = MAX_ATTEMPTS + 1
                log.exception("settlement_failed", purchase=journal.purchase, worker=journal.worker)
            return False
        self._attempts.pop(journal.purchase, None)
        if settlement.status == "settled":
            self._metrics.purchased(record)
        return True

    async def _finish(self, journal: Journal) -> None:
        """Stores and settles received images; presumes the charge of a purchase without any."""
        payload = decode_payload(journal.payload)
        if isinstance(payload, Received):
            settlement = await self._settlements.finish(payload, Batch(self._store))
            if settlement.status == "settled":
                self._metrics.purchased(payload.record)
            return
        death = worker_died()
        record = payload.record.but(
            outcome="failed",
            flags=(*payload.record.flags, "presumed"),
            error=death.code,
            status=death.status,
            images=payload.estimate.images,
            tokens=charged_tokens(None, payload.estimate),
            cost_micros=payload.estimate.usd_micros,
        )
        await self._settlements.try_settle_failure(
            payload, death, payload.estimate, record=record, tell_followers=Flight.abandon
        )
