"""Reads the charged records of the ledger for a verification, and collects what it finds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from gateway.billing.verified_sums import LedgerSums
from gateway.store.batch import execute
from gateway.store.commands import ReadLedger
from gateway.store.protocol import Store

MAX_DIFFERENCES: Final = 100
PAGE_RECORDS: Final = 500
SLICE_RECORDS: Final = 20
"""Records that are added up at once. It takes about a millisecond of the event loop."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Two books that disagree."""

    book: str
    """`spent`, `reserved`, `running total` or `totals`: the one that the ledger, or for `reserved`
    the open purchases, are compared with."""
    subject: str
    """`key:<id>`, `team:<name>`, `everyone`, `model:<name>` or `label:<name>=<value>`."""
    window: str
    unit: str
    expected: int
    """The sum of the records, or of the open purchases."""
    found: int
    """What the other book has."""


class Findings:
    """What a verification finds, bounded."""

    def __init__(self) -> None:
        self.differences = 0
        self.shown: list[Difference] = []
        self.not_compared: dict[str, None] = {}
        self.windows = self.running_totals = self.slots = 0

    def compare(
        self, book: str, subject: str, window: str, *, unit: str, expected: int, found: int
    ) -> None:
        """Adds a difference if there is one."""
        if expected != found:
            self.differences += 1
            if len(self.shown) < MAX_DIFFERENCES:
                self.shown.append(Difference(book, subject, window, unit, expected, found))


class LedgerReader:
    """The sums of the charged records up to a position, which only moves forward."""

    def __init__(self, store: Store, sums: LedgerSums, *, begin: str, rest: float) -> None:
        self._store = store
        self.sums = sums
        self.begin = begin
        """The position after which the sums begin."""
        self.position = begin
        """They have all charged records up to it."""
        self.rest = rest
        """How long to pause after a page, as a multiple of the time that it took."""

    async def read_to(self, end: str) -> None:
        """Adds the records up to `end`, unless the sums have them. Raises `StoreUnavailable`."""
        try:
            async for position, data in self.records(self.position, end):
                self.sums.add(position, data)
                self.position = position
        finally:
            self.sums.add_pending()
        self.position = max(self.position, end)

    async def records(self, after: str, end: str) -> AsyncIterator[tuple[str, bytes]]:
        """The charged records after a position up to another one, with short pauses."""
        while after < end:
            begins = time.perf_counter()
            page = ReadLedger(after, PAGE_RECORDS, charged_only=True)
            found = await execute(self._store, page)
            for number, (position, data) in enumerate(found):
                if position > end:
                    return
                yield position, data
                if number % SLICE_RECORDS == SLICE_RECORDS - 1:
                    await asyncio.sleep(0)
            if len(found) < PAGE_RECORDS:
                return
            after = found[-1][0]
            await asyncio.sleep(self.rest * (time.perf_counter() - begins))
