"""The latest requests, newest first: what happened, and why something was refused or failed.

The ledger is read backwards. A page reads a bounded number of records, so it may be shorter than
asked for, and still not be the last one. Refusals of the minute that is not over come first; like
all refusals they are counted, not kept one by one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.billing.alerts import show_scope
from gateway.billing.verified_sums import time_of_position
from gateway.errors import ErrorCode
from gateway.images import Record
from gateway.limits import LIMITS
from gateway.store.batch import execute
from gateway.store.commands import LEDGER_END, ReadLedgerBack, SearchRefusals
from gateway.store.protocol import Store
from gateway.stored import read_stored

PAGE_RECORDS: Final = 500
SLICE_RECORDS: Final = 50
"""Records that are looked at at once. It takes less than a millisecond of the event loop."""
MAX_SCANNED: Final = 10_000
"""Records that one page reads."""
MAX_SECONDS: Final = 0.2
"""How long a page reads on. The next one goes on where it stopped."""
_LATE_SECONDS: Final = 3600.0
"""How much later than its time a record may be in the ledger, unless it is a correction."""
_DEFAULT_OUTCOME: Final = Record._field_defaults["outcome"]
_MEANINGS: Final[Mapping[str, str]] = {code.value: code.meaning for code in ErrorCode}


@dataclass(frozen=True, slots=True)
class RequestFilter:
    """Which requests; None: all."""

    outcomes: frozenset[str] | None = None
    key: str | None = None
    model: str | None = None
    flag: str | None = None
    since: float | None = None
    """Unix seconds."""

    def matches(self, fields: Mapping[str, Any]) -> bool:
        """Whether a record, as it is stored, is asked for."""
        outcome = fields.get("outcome", _DEFAULT_OUTCOME)
        return (
            (self.outcomes is None or outcome in self.outcomes)
            and (self.key is None or fields.get("key") == self.key)
            and (self.model is None or fields.get("model") == self.model)
            and (self.flag is None or self.flag in fields.get("flags", ()))
            and (self.since is None or fields["time"] >= self.since)
        )


@dataclass(slots=True)
class RequestPage:
    """Some records, newest first."""

    records: list[Record] = field(default_factory=list)
    after: str | None = LEDGER_END
    """Where the next page begins; None on the last one."""


class RecentRequests:
    """Reads pages of the latest requests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read(
        self, wanted: RequestFilter, *, limit: int, after: str | None = None
    ) -> RequestPage:
        """Up to `limit` records after the cursor of another page. Raises `StoreUnavailable`."""
        page = RequestPage(after=after or LEDGER_END)
        if after is None:
            page.records += (await self._of_this_minute(wanted))[:limit]
        scanned, stops_at = 0, time.monotonic() + MAX_SECONDS
        while page.after is not None and len(page.records) < limit and scanned < MAX_SCANNED:
            if scanned and time.monotonic() > stops_at:
                break
            scanned += await self._read_page(page, wanted, limit)
        # Free records are in the ledger up to a second later than charged ones.
        page.records.sort(key=lambda record: record.time, reverse=True)
        return page

    async def _of_this_minute(self, wanted: RequestFilter) -> list[Record]:
        """The refusals that are still counted."""
        records = []
        found = await execute(self._store, SearchRefusals(b""))
        for index, data in enumerate(found, start=1):
            if (record := _read(data, wanted)) is not None:
                records.append(record)
            if index % SLICE_RECORDS == 0:
                await asyncio.sleep(0)
        records.sort(key=lambda record: record.time, reverse=True)
        return records

    async def _read_page(self, page: RequestPage, wanted: RequestFilter, limit: int) -> int:
        found = await execute(self._store, ReadLedgerBack(page.after or "", PAGE_RECORDS))
        for index, (position, data) in enumerate(found, start=1):
            if wanted.since is not None and _is_before(position, wanted.since):
                page.after = None
                return index
            page.after = position
            if (record := _read(data, wanted)) is not None:
                page.records.append(record)
                if len(page.records) == limit:
                    return index
            if index % SLICE_RECORDS == 0:
                await asyncio.sleep(0)
        if len(found) < PAGE_RECORDS:
            page.after = None
        return len(found)


def _is_before(position: str, since: float) -> bool:
    """Whether the record at a position, and all before it, are from before a time."""
    return time_of_position(position) < since - _LATE_SECONDS


def _read(data: bytes, wanted: RequestFilter) -> Record | None:
    """The record if it can be read and is asked for."""

    def decode(record: bytes) -> Record | None:
        fields = orjson.loads(record)
        if not wanted.matches(fields):
            return None
        return Record.from_dict({"request_id": fields["id"], **fields})

    return read_stored("record", data, decode)


def reason_of(record: Record) -> str | None:
    """The limit or the error code for which a request got no images."""
    return record.limit or record.error


def message_of(record: Record, said: str = "") -> str:
    """What a reason means, in a sentence; `said` is what upstream said, if that is known."""
    if said:
        return said
    if record.limit is not None:
        limit = LIMITS.get(record.limit)
        words = record.limit if limit is None else limit.words
        return f"{show_scope(record.scope or 'the key')} has reached its limit of {words}."
    if record.error is not None and record.error in _MEANINGS:
        return _MEANINGS[record.error]
    if "presumed" in record.flags:
        return "Upstream's answer is not known, so the estimate is charged."
    if record.outcome in ("refused", "failed") or record.status >= 400:
        return f"The request was answered {record.status}."
    return ""
