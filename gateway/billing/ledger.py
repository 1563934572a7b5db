"""The ledger: one record for every purchase, hit and follower, and one a minute for refusals.

A record is a JSON object (`images.Record`). The record of a purchase is part of its settlement, so
counters and ledger never disagree. Records without a cost and the counts of refusals wait here and
are written in batches; a kill loses those of the last second.

A client must not be able to fill the store for nothing. The refusals of one key for one reason
share a record a minute, which keeps nothing that the client chose; a key has a bounded number of
reasons; and records without a charge have a bound in time and bytes (`Ledger.trim`).
"""

from __future__ import annotations

import hmac
import math
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict

from gateway.billing.running_totals import running_totals
from gateway.errors import StoreUnavailable
from gateway.images import Principal, Record
from gateway.store.batch import execute
from gateway.store.commands import (
    Append,
    AppendRefusals,
    CompareAndSet,
    Get,
    Inspect,
    ReadLedger,
    Refusals,
    TrimLedger,
    Write,
)
from gateway.store.protocol import Store
from gateway.stored import read_stored

WRITE_EVERY_SECONDS: Final = 0.85
"""Together with the time of a write, less than the second of records that a kill may lose."""
MAX_PENDING: Final = 100_000
"""Records kept while the store is unavailable. Beyond it the oldest are dropped."""
MAX_PENDING_REFUSALS: Final = 10_000
"""Keys and reasons whose refusals are counted between two writes. Others are dropped."""
BATCH_RECORDS: Final = 3000
"""Appending them takes some 15 ms of Redis."""
BATCH_REFUSALS: Final = 100

DEFAULT_FREE_BYTES: Final = 256 << 20
FREE_SHARE: Final = 8
"""The part of Redis' maxmemory that free records may have: an eighth."""
MIN_UNFOLDED_BYTES: Final = 8 << 20
"""The least that free records may have beyond their bound until the totals have them."""
TRIM_RECORDS: Final = 10_000
"""Removing them takes some 15 ms of Redis. At their bound, as many records go as come."""
LOG_EVERY_SECONDS: Final = 60.0
INSPECT_EVERY_SECONDS: Final = 60.0
"""How often `maxmemory` is read: an operator may change it."""

META: Final = "meta"
HMAC_KEY: Final = "prompt_hmac_key"

log = structlog.get_logger(__name__)


class LedgerSettings(BaseModel):
    """How long records are kept, and the bound of those without a charge."""

    model_config = ConfigDict(frozen=True)

    keep_records_seconds: float = 400 * 86_400.0
    keep_free_records_seconds: float = 30 * 86_400.0
    free_records_bytes: int | None = None
    """None: an eighth of Redis' maxmemory, or 256 MiB without one and in SQLite."""


def draft(
    principal: Principal,
    *,
    request_id: str,
    time: float,
    client_address: str | None = None,
    flags: tuple[str, ...] = (),
) -> Record:
    """A record with the fields that follow from the key and from where the request came."""
    return Record(
        id=request_id,
        request_id=request_id,
        time=time,
        key=principal.key_name,
        key_id=principal.key_id,
        team=principal.team,
        labels=principal.labels,
        client_address=client_address,
        flags=flags,
    )


@dataclass(slots=True)
class _Refused:
    """The refusals of one key for one reason since the last write."""

    first: Record
    count: int = 0


class Ledger:
    """Writes records that have no cost, reads all records, and removes old ones."""

    def __init__(
        self,
        store: Store,
        settings: LedgerSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings or LedgerSettings()
        self._clock = clock
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._refused: dict[tuple[object, ...], _Refused] = {}
        self._dropped = 0
        self._unconfirmed: Append | None = None
        self._is_known = False
        self._begin_series()
        self._unfolded = 0
        self._unfolded_logged_at = -LOG_EVERY_SECONDS
        self._saved: dict[tuple[str, ...], int] = {}
        """By the running totals that a record moves."""
        self._free_bytes = DEFAULT_FREE_BYTES
        self._inspected_at = -math.inf
        self._hmac_key = b""

    @property
    def waiting(self) -> int:
        """How many records and refusals are lost unless they can still be written."""
        refused = sum(refused.count for refused in self._refused.values())
        unconfirmed = _count_of(self._unconfirmed) if self._unconfirmed is not None else 0
        return len(self._pending) + refused + unconfirmed + self._dropped

    # ── writing ─────────────────────────────────────────────────────────────────────────────

    def add(self, record: Record) -> None:
        """Adds a record without a cost; `write` writes it."""
        if len(self._pending) == MAX_PENDING:
            self._dropped += 1  # `append` drops the oldest one
        self._pending.append(record.encode())
        if record.saved_micros:
            totals = running_totals(record)
            self._saved[totals] = self._saved.get(totals, 0) + record.saved_micros

    def add_refusal(self, record: Record) -> None:
        """Counts a refused request. The first of a minute makes the record of all of them."""
        limit = (record.limit, record.scope)
        reason = (record.key_id, record.model, record.error, record.status, *limit)
        refused = self._refused.get(reason)
        if refused is None:
            if len(self._refused) == MAX_PENDING_REFUSALS:
                self._dropped += 1
                return
            refused = self._refused[reason] = _Refused(record)
        refused.count += 1

    async def write(self) -> None:
        """Writes what is pending. Raises `StoreUnavailable`; then it stays pending.

        What is added meanwhile waits for the next call: otherwise, under load, every few records
        would have an append of their own.
        """
        appends = 1 + len(self._pending) // BATCH_RECORDS + len(self._refused) // BATCH_REFUSALS
        appends += self._unconfirmed is not None
        while appends and (self._unconfirmed is not None or self._pending or self._refused):
            if not self._is_known:
                # Without records: should the store forget a writer whose first append is still
                # repeated, nothing is written twice.
                await execute(self._store, Append((), writer=self._writer))
                self._is_known = True
                continue
            if self._unconfirmed is None:
                self._unconfirmed, self._was_sent = self._next_append(), False
            # An append that timed out may have run, or may still run. So it is repeated under its
            # own number before anything new.
            append, was_sent, self._was_sent = self._unconfirmed, self._was_sent, True
            is_written = await execute(self._store, append)
            # The background job and a closing worker may write at the same time. If the other one
            # has finished this append, a later one may be unconfirmed by now.
            if self._unconfirmed is not append:
                continue
            if is_written:
                self._unconfirmed, self._number = None, append.number
                appends -= 1
                continue
            # The store has forgotten this writer, which has not written for a day.
            self._begin_series()
            if was_sent:
                # Whether it ran is not known. Records may be lost, but are never written twice.
                self._dropped += _count_of(append)
            else:
                self._unconfirmed = replace(append, writer=self._writer, number=self._number + 1)
                self._was_sent = False
        if self._dropped:
            log.error("ledger_records_dropped", records=self._dropped)
            self._dropped = 0

    def _begin_series(self) -> None:
        """Numbers the following appends from 1, under a name that was never used."""
        self._writer = secrets.token_hex(12)
        self._number = 1
        self._is_known = False
        self._unconfirmed = None
        self._was_sent = False

    def _next_append(self) -> Append:
        count = min(BATCH_RECORDS, len(self._pending))
        records = tuple(self._pending.popleft() for _ in range(count))
        saved: dict[str, int] = {}
        for totals, micros in self._saved.items():
            for total in totals:
                saved[total] = saved.get(total, 0) + micros
        self._saved = {}
        reasons = list(self._refused)[:BATCH_REFUSALS]
        refusals = tuple(_count(self._refused.pop(reason)) for reason in reasons)
        return Append(records, refusals, writer=self._writer, number=self._number + 1, saved=saved)

    async def append_refusals(self, *, ends_minute: bool = False) -> None:
        """Appends the records of refusals whose minute is over. Raises `StoreUnavailable`."""
        command = AppendRefusals(BATCH_REFUSALS, ends_minute=ends_minute)
        while await execute(self._store, command) == BATCH_REFUSALS:
            continue

    # ── retention ───────────────────────────────────────────────────────────────────────────

    async def trim(self, folded_to: str | None = None) -> int:
        """Removes the records that are past their retention, and returns how many there were.

        Reports read records after the position `folded_to`, by default those that are not folded
        into totals, so those stay. If totals are not folded any more, the free ones among them
        grow to twice their bound, or to 8 MiB above it, and then the oldest go: a store that is
        full stops every purchase.
        """
        max_bytes = self._settings.free_records_bytes or await self._default_free_bytes()
        trim = TrimLedger(
            self._settings.keep_records_seconds,
            self._settings.keep_free_records_seconds,
            max_free_bytes=max_bytes,
            max_unfolded_bytes=max_bytes + max(max_bytes, MIN_UNFOLDED_BYTES),
            folded_to=folded_to,
            limit=TRIM_RECORDS,
        )
        removed, has_more = 0, True
        while has_more:
            trimmed = await execute(self._store, trim)
            removed += trimmed.records
            self._unfolded += trimmed.unfolded
            has_more = trimmed.has_more
        if self._unfolded and self._clock() - self._unfolded_logged_at >= LOG_EVERY_SECONDS:
            log.error("ledger_unfolded_records_removed", records=self._unfolded)
            self._unfolded, self._unfolded_logged_at = 0, self._clock()
        return removed

    async def _default_free_bytes(self) -> int:
        if self._clock() - self._inspected_at >= INSPECT_EVERY_SECONDS:
            facts = await execute(self._store, Inspect())
            self._free_bytes = (facts.maxmemory_bytes or 0) // FREE_SHARE or DEFAULT_FREE_BYTES
            self._inspected_at = self._clock()
        return self._free_bytes

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def read(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, Record]]:
        """Up to `limit` records after the position `after`, oldest first, with positions.

        Unreadable ones are left out.
        """
        while True:
            found = await execute(self._store, ReadLedger(after, limit))
            records = [
                (position, record)
                for position, data in found
                if (record := read_stored("record", data, Record.decode, name=position)) is not None
            ]
            # A page without a readable record is not the end.
            if records or len(found) < limit:
                return records
            after = found[-1][0]

    async def prompt_hmac(self, prompt: str) -> str:
        """A prompt's HMAC: equal prompts can be counted without storing their words."""
        if not self._hmac_key:
            self._hmac_key = await _shared_secret(self._store)
        return hmac.digest(self._hmac_key, prompt.encode(), "sha256").hex()[:32]


def _count_of(append: Append) -> int:
    """How many records and refusals an append has."""
    return len(append.records) + sum(refusals.count for refusals in append.refusals)


def _count(refused: _Refused) -> Refusals:
    """The refusals as the store counts them."""
    record = refused.first.but(
        user=None,
        size=None,
        quality=None,
        n=None,
        prompt_hmac=None,
        fingerprint=None,
        tags=(),
        count=None,
    )
    words = (record.model, record.error, record.status, record.limit, record.scope)
    return Refusals(
        record.key_id,
        " ".join(str(word or "-") for word in words),
        refused.count,
        record=_up_to_count(record),
        other=_up_to_count(record.but(model=None, error="other", limit=None, scope=None)),
    )


def _up_to_count(record: Record) -> bytes:
    """A record's JSON up to the value of `count`, which the store adds."""
    return record.encode()[:-1] + b',"count":'


async def _shared_secret(store: Store) -> bytes:
    """The store's own key for prompt HMACs; the first worker that needs it makes it."""
    if (found := await execute(store, Get(META, HMAC_KEY))) is not None:
        return found
    await execute(
        store, CompareAndSet((Write(META, HMAC_KEY, secrets.token_bytes(32), expected=None),))
    )
    # Another worker may have been first, so the key is the one that is stored now.
    stored = await execute(store, Get(META, HMAC_KEY))
    if stored is None:
        raise StoreUnavailable
    return stored
