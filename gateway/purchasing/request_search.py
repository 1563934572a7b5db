"""Looks up one request by an id: its records, and its purchases that are still open.

There is no index of ids: it would need as much memory as the records themselves. An id begins with
its time (`ids`), so the search reads the records around that time, and later ones only if the
request may have some: `docs/reference/billing.md#one-request`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gateway.billing import quota
from gateway.billing.ledger import WRITE_EVERY_SECONDS, LedgerSettings
from gateway.errors import ErrorCode, GatewayError, InvalidRequest
from gateway.ids import time_of
from gateway.images import Record
from gateway.limits import MICROS_PER_USD
from gateway.purchasing.journal import decode_remains
from gateway.store.batch import Batch, execute
from gateway.store.commands import (
    CLOSED_JOURNAL_SECONDS,
    Inspect,
    Journal,
    OpenJournals,
    SearchLedger,
    SearchRefusals,
)
from gateway.store.protocol import Store
from gateway.stored import read_stored

SKEW_SECONDS: Final = 60.0
"""How much the clocks of a gateway and its store may differ. If they differ more now, they did so
when the record was appended."""

NEAR_SECONDS: Final = 5.0
"""Most requests, such as hits, are recorded within this time."""

SOON_SECONDS: Final = 150.0
"""By then most requests have all their records: refusals are recorded when their minute is over."""

LATE_SECONDS: Final = 3600.0
"""By then all purchases have ended: after upstream's deadline and a recovery."""

OUTAGE_SECONDS: Final = 86_400.0
"""A record may be this late, because the store was unavailable."""

FOREVER: Final = 32_503_680_000.0
"""Unix seconds, the year 3000. Positions of records never step back, so those that were appended
after the store's clock was set back are in its future."""

YOUNG_SECONDS: Final = 2.0
"""If no record is found, the search waits and tries again, but only for ids younger than this."""

MAX_SCANNED: Final = 2_000_000
"""Records that one search reads at most."""

PAGE_RECORDS: Final = 2000
"""Records that are read at once. It takes the store some milliseconds."""

MAX_OPEN: Final = 100
"""Open purchases of one request that a search shows."""

_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class OpenPurchase:
    """A purchase that is not settled."""

    journal: Journal
    record: dict[str, Any]
    """What its journal says of the request."""

    def public(self) -> dict[str, Any]:
        """Its JSON object."""
        reserved = quota.as_amounts(self.journal.reserved)
        return {
            "id": self.journal.purchase,
            "state": self.journal.state,
            "since": self.journal.reserved_at or None,
            "worker": self.journal.worker,
            "reserved_usd": reserved.usd_micros / MICROS_PER_USD,
            "images": reserved.images,
            "tokens": reserved.tokens,
            **{name: self.record.get(name) for name in ("key", "model", "upstream")},
        }


@dataclass(frozen=True, slots=True)
class FoundRequest:
    """A request with all that the books have of it."""

    request_id: str
    records: tuple[Record, ...]
    """Oldest first: a purchase before its correction."""
    open_purchases: tuple[OpenPurchase, ...] = ()
    followed: tuple[Record, ...] = ()
    """Of a follower: the records of the purchase that it followed, of another request."""

    def public(self) -> dict[str, Any]:
        """Its JSON object."""
        return {
            "request_id": self.request_id,
            "cost_usd": sum(record.cost_micros for record in self.records) / MICROS_PER_USD,
            "saved_usd": sum(record.saved_micros for record in self.records) / MICROS_PER_USD,
            "records": [_public(record) for record in self.records],
            "open_purchases": [purchase.public() for purchase in self.open_purchases],
            "followed": [_public(record) for record in self.followed],
        }


@dataclass(slots=True)
class _Search:
    """One search for a text."""

    name: str
    found: dict[str, Record] = field(default_factory=dict)
    """By position."""
    scanned: int = 0
    is_cut: bool = False
    """Some records were not read, because there are too many."""

    @property
    def text(self) -> bytes:
        return f'"{self.name}"'.encode()

    def add(self, position: str, data: bytes) -> None:
        record = read_stored("record", data, Record.decode, name=position)
        if record is not None and self.name in _ids(record):
            self.found[position] = record

    def is_over(self) -> bool:
        """Whether the request is complete. After a purchase's record there may be further ones."""
        return any(record.id == record.request_id for record in self.found.values())

    def awaits_correction(self) -> bool:
        """Whether a charge was presumed that a late answer may still correct."""
        corrected = {record.corrects for record in self.found.values()}
        return any(
            "presumed" in record.flags and record.corrects is None and record.id not in corrected
            for record in self.found.values()
        )


class RequestSearch:
    """Finds requests. `clock` is Unix seconds."""

    def __init__(
        self,
        store: Store,
        settings: LedgerSettings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        # One page at a time: nothing waits for the pages of many searches.
        self._page = asyncio.Lock()

    async def find(self, name: str, *, since: float | None = None) -> FoundRequest:
        """The request with this id, or that of a purchase, a correction or upstream's request.

        An id without a time, and any id with `since`, is searched from then on. Raises 404, or
        `StoreUnavailable`.
        """
        if not _ID.fullmatch(name):
            raise self._not_found(name)
        at = self._time_of(name, since)
        search, journals = await self._search(name, at, since=since)
        owner = _owner(name, search.found.values(), journals)
        if owner is None and at is not None and self._clock() - at < YOUNG_SECONDS:
            # Workers write the records of hits, followers and refusals in batches.
            await asyncio.sleep(WRITE_EVERY_SECONDS * 2)
            search, journals = await self._search(name, at, since=since)
            owner = _owner(name, search.found.values(), journals)
        if owner is None:
            raise self._not_found(name, is_cut=search.is_cut)
        request_id, recorded_at = owner
        if request_id != name:
            at = time_of(request_id, now=self._clock()) or recorded_at
            search, journals = await self._search(request_id, at, since=None)
        found = _in_order(search.found)
        records = tuple(record for record in found if record.request_id == request_id)
        return FoundRequest(
            request_id, records, tuple(journals), followed=await self._followed(records)
        )

    def _time_of(self, name: str, since: float | None) -> float | None:
        at = time_of(name, now=self._clock())
        if at is None and since is None:
            raise InvalidRequest(
                f"The id '{name}' does not contain its time, as that of an older gateway or of "
                "upstream. Say from when on to search: `since=7d`, `--since 7d`.",
                param="since",
            )
        return at

    async def _search(
        self, name: str, at: float | None, *, since: float | None
    ) -> tuple[_Search, list[OpenPurchase]]:
        search = _Search(name)
        # Before the ledger, so that a purchase that is settled meanwhile is found there.
        journals = await self._open_purchases(search)
        if since is not None or at is None:
            await self._scan(search, since or 0.0, FOREVER)
            await self._scan_refusals(search)
            return search, journals
        now = (await execute(self._store, Inspect())).now
        if abs(skew := now - self._clock()) > SKEW_SECONDS:
            at += skew
        await self._scan(search, at - NEAR_SECONDS, at + NEAR_SECONDS)
        if search.is_over():
            return search, journals
        await self._scan(search, at - SKEW_SECONDS, at - NEAR_SECONDS)
        await self._scan(search, at + NEAR_SECONDS, at + SOON_SECONDS)
        await self._scan_refusals(search)
        if search.is_over():
            return search, journals
        await self._scan(search, at + SOON_SECONDS, at + LATE_SECONDS)
        if not search.found and not journals:
            await self._scan(search, at + LATE_SECONDS, at + OUTAGE_SECONDS)
            await self._scan(search, max(at + OUTAGE_SECONDS, now), FOREVER)
        elif search.awaits_correction():
            until = at + LATE_SECONDS + CLOSED_JOURNAL_SECONDS
            await self._scan(search, at + LATE_SECONDS, until, kinds=(True,))
        return search, journals

    async def _scan(
        self,
        search: _Search,
        begin: float,
        end: float,
        *,
        kinds: tuple[bool, ...] = (True, False),
    ) -> None:
        for is_charged in kinds:
            after, has_more = "", True
            while has_more:
                if search.scanned >= MAX_SCANNED:
                    search.is_cut = True
                    return
                command = SearchLedger(
                    search.text, begin, end, is_charged, after=after, limit=PAGE_RECORDS
                )
                async with self._page:
                    matches = await execute(self._store, command)
                for position, data in matches.records:
                    search.add(position, data)
                search.scanned += matches.scanned
                after, has_more = matches.next, bool(matches.next)
                await asyncio.sleep(0)

    async def _scan_refusals(self, search: _Search) -> None:
        """Reads those of minutes that are not over, also of a store that got them late."""
        if not search.found:  # a refusal is alone
            for data in await execute(self._store, SearchRefusals(search.text)):
                search.add("", data)

    async def _open_purchases(self, search: _Search) -> list[OpenPurchase]:
        batch = Batch(self._store)
        found = batch.add(OpenJournals(limit=MAX_OPEN, text=search.text))
        await batch.execute()
        purchases = [
            OpenPurchase(journal, dict(decode_remains(journal.payload).record))
            for journal in found.value
        ]
        return [
            purchase
            for purchase in purchases
            if search.name in (purchase.journal.purchase, purchase.record.get("request_id"))
        ]

    async def _followed(self, records: Iterable[Record]) -> tuple[Record, ...]:
        for record in records:
            if record.followed is not None:
                at = time_of(record.followed, now=self._clock()) or record.time
                search, _ = await self._search(record.followed, at, since=None)
                found = _in_order(search.found)
                return tuple(one for one in found if record.followed in (one.id, one.corrects))
        return ()

    def _not_found(self, name: str, *, is_cut: bool = False) -> GatewayError:
        if is_cut:
            return GatewayError(
                f"Nothing with the id '{name[:128]}' is among the {MAX_SCANNED:,} records that one "
                "search reads. Say a later time from when on to search: `since`, `--since`.",
                code=ErrorCode.REQUEST_NOT_FOUND,
            )
        settings = self._settings
        charged = round(settings.keep_records_seconds / 86_400)
        free = round(settings.keep_free_records_seconds / 86_400)
        return GatewayError(
            f"The books have no request, purchase or record with the id '{name[:128]}'. Purchases "
            f"are kept for {charged} days, all other requests for {free} days or less. A request "
            "is there within a second of its answer. Refusals of a key for one reason share a "
            "record in each minute, which has the id of the first. Requests without a valid key, "
            "and dry runs, leave none; the log has them.",
            code=ErrorCode.REQUEST_NOT_FOUND,
        )


def _ids(record: Record) -> tuple[str | None, ...]:
    return record.id, record.request_id, record.corrects, record.upstream_request_id


def _owner(
    name: str, records: Collection[Record], journals: Iterable[OpenPurchase]
) -> tuple[str, float] | None:
    """The id and the time of the request that the id `name` belongs to.

    Upstream chooses the ids of its requests, perhaps one that is ours.
    """
    ours = [one for one in records if name in (one.id, one.request_id, one.corrects)]
    for record in ours or records:
        return record.request_id, record.time
    for purchase in journals:
        request_id = purchase.record.get("request_id", name)
        return request_id, purchase.journal.reserved_at
    return None


def _in_order(found: Mapping[str, Record]) -> tuple[Record, ...]:
    # The record of a refusal in the current minute has no position, and is the only one.
    return tuple(found[position] for position in sorted(found))


def _public(record: Record) -> dict[str, Any]:
    """A record as `gateway ledger export` shows it, with its money in dollars."""
    fields = record.to_dict()
    costs = {kind: micros / MICROS_PER_USD for kind, micros in record.costs.items()}
    del fields["cost_micros"], fields["saved_micros"]
    for name in ("costs", "rounding", "presumed_micros"):
        fields.pop(name, None)
    return {
        **fields,
        "cost_usd": record.cost_micros / MICROS_PER_USD,
        "costs_usd": costs,
        "saved_usd": record.saved_micros / MICROS_PER_USD,
    }
