"""The ledger: one record for every purchase, hit and follower, and one for repeated refusals.

A record is a JSON object (`images.Record`). The record of a purchase is part of its settlement, so
counters and ledger never disagree. Records without a cost wait here and are written in batches; if
the process is killed, only those of the last half second are lost, and the refusals of a minute.

Nothing frees a record, so a client must not be able to make as many as it likes for nothing. Of the
refusals of one key for one reason, the first of a minute has a record at once, and all others of
that minute share one. They keep nothing that the client chose.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import structlog

from gateway.errors import StoreUnavailable
from gateway.images import LimitSubject, Record, Usage
from gateway.store.batch import execute
from gateway.store.commands import Append, CompareAndSet, Get, ReadLedger, Write
from gateway.store.protocol import Store
from gateway.stored import read_stored

WRITE_EVERY_SECONDS: Final = 0.5
MAX_PENDING: Final = 100_000
"""Records kept while the store is unavailable. Beyond it the oldest are dropped and logged."""
BATCH_RECORDS: Final = 500
REFUSALS_SECONDS: Final = 60.0
"""How long refusals share a record."""

META: Final = "meta"
HMAC_KEY: Final = "prompt_hmac_key"

log = structlog.get_logger(__name__)


def draft(
    subject: LimitSubject, *, request_id: str, time: float, client_address: str | None = None
) -> Record:
    """A record with the fields that follow from the key and from where the request came."""
    return Record(
        id=request_id,
        request_id=request_id,
        time=time,
        key=subject.key_name,
        key_id=subject.key_id,
        team=subject.team,
        client_address=client_address,
    )


def tokens_by_kind(usage: Usage | None) -> Mapping[str, int]:
    """Tokens as the ledger and the metrics name them, without kinds that are 0."""
    if usage is None:
        return {}
    kinds = {
        "text_in": usage.text_in,
        "image_in": usage.image_in,
        "image_out": usage.image_out,
        "text_out": usage.text_out,
    }
    return {kind: count for kind, count in kinds.items() if count}


class _Refusals(NamedTuple):
    """The refusals of one key for one reason within a minute, without the first."""

    ends_at: float
    record: Record | None = None


class Ledger:
    """Writes records that have no cost, and reads all of them."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._refusals: dict[tuple[object, ...], _Refusals] = {}
        self._pending: deque[bytes] = deque(maxlen=MAX_PENDING)
        self._unconfirmed: Append | None = None
        self._hmac_key = b""

    def add(self, record: Record) -> None:
        """Adds a record without a cost; it is written within a second."""
        # `append` then drops the oldest record silently.
        if len(self._pending) == MAX_PENDING:
            log.error("ledger_record_dropped", reason="store unavailable for too long")
        self._pending.append(record.encode())

    def add_refusal(self, record: Record) -> None:
        """Adds the record of a refused request, or counts it if there was one a moment ago."""
        reason = (record.key_id, record.key, record.team, record.model, record.error, record.status)
        record = record.but(
            user=None, size=None, quality=None, n=None, prompt_hmac=None, fingerprint=None
        )
        known = self._refusals.get(reason)
        if known is None:
            self._refusals[reason] = _Refusals(self._clock() + REFUSALS_SECONDS)
            self.add(record)
        elif known.record is None:
            self._refusals[reason] = known._replace(record=record.but(count=1))
        else:
            counted = known.record.but(count=(known.record.count or 0) + 1)
            self._refusals[reason] = known._replace(record=counted)

    def add_counted_refusals(self, *, all_of_them: bool = False) -> None:
        """Adds the records of refusals whose minute is over, or of all, before closing."""
        now = self._clock()
        while self._refusals:
            reason, refusals = next(iter(self._refusals.items()))  # the oldest
            if refusals.ends_at > now and not all_of_them:
                return
            del self._refusals[reason]
            if refusals.record is not None:
                self.add(refusals.record)

    async def write(self) -> None:
        """Writes the pending records. Raises `StoreUnavailable`; then they stay pending."""
        self.add_counted_refusals()
        while self._unconfirmed is not None or self._pending:
            if self._unconfirmed is None:
                count = min(BATCH_RECORDS, len(self._pending))
                self._unconfirmed = Append(tuple(self._pending.popleft() for _ in range(count)))
            # An append that timed out may have run, or may still run. So it is repeated under its
            # own id before anything new.
            append = self._unconfirmed
            await execute(self._store, append)
            # The background job and a closing worker may write at the same time. If the other one
            # has finished this append, a later one may be unconfirmed by now.
            if self._unconfirmed is append:
                self._unconfirmed = None

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
