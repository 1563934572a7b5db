"""Closes the journals of dead workers that cannot be finished, mostly because they are unreadable.

The store knows what such a purchase has reserved. That is its charge, as of any other purchase
whose outcome is not known; a late answer still corrects it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import structlog

from gateway.billing import quota
from gateway.cache.idempotency_results import worker_died
from gateway.cache.idempotent_purchases import find_key, store_failed
from gateway.images import Amounts, Record
from gateway.purchasing.charges import charge_reserved
from gateway.purchasing.journal import Remains, UnreadableJournal, decode_payload, decode_remains
from gateway.store.batch import Batch
from gateway.store.commands import ExpiredWorkers, Journal, OpenJournals, Settlement
from gateway.store.protocol import Store
from gateway.values import show_usd

UNREADABLE: Final = "unreadable"
"""The flag of a record whose journal could not be read."""

UNFINISHED: Final = "unfinished"
"""The flag of a record whose journal could be read, but not be finished."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OpenPurchases:
    """Open journals that need attention."""

    left: tuple[Journal, ...]
    """Of dead workers."""
    unreadable: tuple[Journal, ...]
    """Of any worker. One that is alive may be of a newer version, and settles its own."""
    dead_workers: frozenset[str]


def is_readable(journal: Journal) -> bool:
    """Whether recovery can finish the journal."""
    with suppress(UnreadableJournal):
        decode_payload(journal.payload)
        return True
    return False


def key_id_of(journal: Journal) -> str:
    """The id of the key that the journal has reserved from; empty if that cannot be read."""
    return _name_of(journal, "key:") or ""


def _name_of(journal: Journal, start: str) -> str | None:
    return next((s.removeprefix(start) for s in journal.subjects if s.startswith(start)), None)


async def read_open_journals(store: Store, *, dead_after_seconds: float) -> OpenPurchases:
    """The open journals of dead workers, and all that are unreadable. Raises `StoreUnavailable`."""
    batch = Batch(store)
    expired = batch.add(ExpiredWorkers(dead_after_seconds))
    found = batch.add(OpenJournals())
    await batch.execute()
    dead = frozenset(expired.value)
    return OpenPurchases(
        left=tuple(journal for journal in found.value if journal.worker in dead),
        unreadable=tuple(journal for journal in found.value if not is_readable(journal)),
        dead_workers=dead,
    )


async def close_at_reserved(
    store: Store, journal: Journal, *, attempt: str = "", flag: str = UNREADABLE
) -> tuple[Settlement, Record]:
    """Settles a journal at its reserved amounts. Raises `StoreUnavailable`."""
    charge, death = quota.as_amounts(journal.reserved), worker_died()
    remains = decode_remains(journal.payload)
    record = _record(journal, remains, charge, flag=flag)
    batch = Batch(store)
    # Followers and idempotency key first, as in every settlement.
    if remains.flight is not None:
        remains.flight.abandon(batch, death)
    if remains.idempotent is not None:
        found = await find_key(store, remains.idempotent)
        store_failed(batch, remains.idempotent, death, found=found)
    settled = quota.settle(
        batch, journal.purchase, charge, record=record, attempt=attempt, presumed=True
    )
    await batch.execute()
    log.warning(
        "journal_unreadable" if flag == UNREADABLE else "journal_unfinished",
        purchase=journal.purchase,
        worker=journal.worker,
        state=journal.state,
        charged_usd=show_usd(charge.usd_micros),
    )
    return settled.value, record


def _record(journal: Journal, remains: Remains, charge: Amounts, *, flag: str) -> Record:
    key_id = key_id_of(journal)
    known = {"request_id": journal.purchase, "time": time.time(), "key": key_id, **remains.record}
    if key_id:
        known["key_id"] = key_id
    if (team := _name_of(journal, "team:")) is not None:
        known["team"] = team
    if journal.reserved_at:
        known["time"] = journal.reserved_at
    death = worker_died()
    return Record(**{"id": journal.purchase, "key_id": key_id, **known}).but(
        n=charge.images or None,
        outcome="failed",
        flags=(*remains.price_flags, "presumed", flag),
        error=death.code,
        status=death.status,
        **charge_reserved(charge).recorded,
    )
