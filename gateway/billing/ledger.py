"""The ledger: one record for every authenticated request, and for every purchase exactly one.

A record is a JSON object. The record of a purchase travels inside its settlement, so that
counters and ledger can never disagree; records without a cost are gathered here and written in
batches, and only those of the last moment can be lost when a process is killed.
"""

from __future__ import annotations

import hmac
import secrets
from collections import deque
from collections.abc import Mapping
from typing import Final

import structlog

from gateway.errors import StoreUnavailable
from gateway.images import LimitSubject, Record, Usage
from gateway.store.batch import execute
from gateway.store.commands import Append, CompareAndSet, Get, ReadLedger, Write
from gateway.store.protocol import Store

WRITE_EVERY_SECONDS: Final = 0.5
MAX_WAITING: Final = 100_000
"""Records kept in memory while the store is away; beyond it the oldest go, and are counted."""
BATCH_RECORDS: Final = 500

META: Final = "meta"
HMAC_KEY: Final = "prompt_hmac_key"

log = structlog.get_logger(__name__)


def draft(subject: LimitSubject, *, request_id: str, time: float) -> Record:
    """A record with what is known as soon as the key is."""
    return Record(
        id=request_id,
        request_id=request_id,
        time=time,
        key=subject.key_name,
        key_id=subject.key_id,
        team=subject.team,
    )


def tokens_by_kind(usage: Usage | None) -> Mapping[str, int]:
    """Tokens as the ledger and the metrics name them, kinds without any left out."""
    if usage is None:
        return {}
    kinds = {
        "text_in": usage.text_in,
        "image_in": usage.image_in,
        "image_out": usage.image_out,
        "text_out": usage.text_out,
    }
    return {kind: count for kind, count in kinds.items() if count}


class Ledger:
    """Writes records that carry no cost, and reads all of them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._unanswered: Append | None = None
        self._hmac_key = b""

    def add(self, record: Record) -> None:
        """Adds a record without a cost; it is written within a second."""
        if len(self._waiting) == MAX_WAITING:
            log.error("ledger_record_dropped", reason="the store has been away for too long")
        self._waiting.append(record.encode())

    async def write(self) -> None:
        """Writes what is waiting; what the store did not take waits on.

        An append that was not answered may have happened, so it is repeated under its own id
        before anything new.
        """
        while self._unanswered is not None or self._waiting:
            if self._unanswered is None:
                count = min(BATCH_RECORDS, len(self._waiting))
                self._unanswered = Append(tuple(self._waiting.popleft() for _ in range(count)))
            append = self._unanswered
            await execute(self._store, append)
            if self._unanswered is append:
                self._unanswered = None

    async def read(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, Record]]:
        """Up to `limit` records after the position `after`, oldest first, with positions."""
        found = await execute(self._store, ReadLedger(after, limit))
        return [(position, Record.decode(data)) for position, data in found]

    async def prompt_hmac(self, prompt: str) -> str:
        """What stands for a prompt in the ledger: equal prompts show, their words do not."""
        if not self._hmac_key:
            self._hmac_key = await _shared_secret(self._store)
        return hmac.digest(self._hmac_key, prompt.encode(), "sha256").hex()[:32]


async def _shared_secret(store: Store) -> bytes:
    """The store's own key for prompt HMACs; the first who needs it makes it."""
    if (found := await execute(store, Get(META, HMAC_KEY))) is not None:
        return found
    await execute(
        store, CompareAndSet((Write(META, HMAC_KEY, secrets.token_bytes(32), expected=None),))
    )
    made = await execute(store, Get(META, HMAC_KEY))
    if made is None:
        raise StoreUnavailable
    return made
