"""Proves that the books agree: ledger, windows, reservations, running totals and totals.

The ledger's charged records are added up in their order (`billing.verified_sums`). Every other book
is read together with the position of the last record that it has, so both are sums of the same
records, however many purchases run meanwhile:

- windows and running totals with the end of the ledger, in one atomic step (`ReadBooks`);
- what is reserved with the open purchases, in the same step;
- totals with their checkpoint (`billing.verified_totals`).

What cannot be compared is named and is no difference: records past their retention, and what a
change of the time zone divides.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import structlog
from pydantic import BaseModel, ConfigDict

from gateway.billing.ledger_reader import MAX_DIFFERENCES, Difference, Findings, LedgerReader
from gateway.billing.running_totals import EVERYONE, limit_subjects
from gateway.billing.totals import KEEP_QUARTERS_SECONDS, all_series
from gateway.billing.verified_sums import (
    UNITS,
    LedgerSums,
    LiveWindow,
    Slot,
    live_windows,
    time_of_position,
)
from gateway.billing.verified_totals import check_totals, choose_periods
from gateway.billing.zone_changes import ROLLING_SECONDS, ZoneChange, read_zones
from gateway.store.batch import execute
from gateway.store.commands import (
    MAX_WINDOWS,
    Books,
    GetValue,
    OpenPurchase,
    ReadBooks,
    ReadLedger,
    RunningTotal,
    SetValue,
    TotalsKind,
    WindowAmounts,
    WindowName,
)
from gateway.store.protocol import Store
from gateway.stored import read_stored

VERIFY_EVERY_SECONDS: Final = 3600.0

RECENT_SECONDS: Final = 45 * 86_400.0
"""How far back a verification in the background goes: all windows that the store keeps."""
LATE_SECONDS: Final = 2 * 86_400.0
"""Days that a verification in the background always compares, also without new records."""
MAX_OPEN_PURCHASES: Final = 1000
"""With more of them, what is reserved is not compared: one step would take too long."""
PAGE_TOTALS: Final = 200
SLICE_WINDOWS: Final = 100
"""Windows that are compared at once. It takes about a millisecond of the event loop."""

SPACE: Final = "verification"

log = structlog.get_logger(__name__)

Subjects = Callable[[], Awaitable[Iterable[tuple[str, str | None]]]]
"""The id and team of every key that there is."""


class VerificationSettings(BaseModel):
    """The time zone, and how long rows of totals are kept."""

    model_config = ConfigDict(frozen=True)

    time_zone: str = "UTC"
    keep_days_seconds: float = 800 * 86_400.0
    keep_users_seconds: float = 400 * 86_400.0


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of a verification."""

    time: float
    """The store's time in Unix seconds at its start."""
    is_full: bool
    """All records, not only recent ones."""
    seconds: float = 0.0
    records: int = 0
    """Charged records that were added up."""
    windows: int = 0
    running_totals: int = 0
    slots: int = 0
    """Quarter hours and days of the totals."""
    purchases: int = 0
    """Open ones; -1 if there are more than `MAX_OPEN_PURCHASES`."""
    differences: int = 0
    shown: tuple[Difference, ...] = ()
    """At most `MAX_DIFFERENCES` of them."""
    not_compared: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()
    """Positions of charged records that cannot be read, at most `MAX_DIFFERENCES`."""

    @property
    def is_balanced(self) -> bool:
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {"is_balanced": self.is_balanced, **asdict(self)}

    @staticmethod
    def decode(data: bytes) -> Verified:
        """The inverse, of JSON bytes; unknown fields are ignored."""
        fields = orjson.loads(data)
        known = {name: fields[name] for name in Verified.__slots__ if name in fields}
        shown = tuple(
            Difference(**{name: one[name] for name in Difference.__slots__})
            for one in fields.get("shown", ())
        )
        lists = {n: tuple(fields.get(n, ())) for n in ("not_compared", "unreadable")}
        return Verified(**{**known, **lists, "shown": shown})


class Verification:
    """Verifies the books of a store.

    It remembers the sums of the records that it has read, so that a later run only reads new ones.
    """

    def __init__(
        self,
        store: Store,
        settings: VerificationSettings,
        *,
        worker: str,
        subjects: Subjects,
        is_full: bool = False,
        rest: float = 4.0,
    ) -> None:
        self._store = store
        self._settings = settings
        self._worker = worker
        self._subjects = subjects
        self._is_full = is_full
        self._rest = rest
        self.has_noted_zone = False
        """Whether this worker has noted its time zone (`note_time_zone`)."""
        self._zones: Sequence[ZoneChange] = ()
        self._ledger: LedgerReader | None = None
        self._cut = 0.0
        """Windows and slots that begin before have records that are not in the sums."""
        self._is_whole = False
        """The sums have every charged record that there ever was."""
        self._bases: dict[str, RunningTotal] = {}
        """What running totals had beyond the sums when they were first read."""

    async def run(self) -> Verified:
        """Compares the books, stores the result and returns it. Raises `StoreUnavailable`."""
        begins = time.perf_counter()
        books = await execute(self._store, ReadBooks(max_purchases=MAX_OPEN_PURCHASES))
        ledger, findings = await self._prepare(books), Findings()
        before = ledger.sums.records
        await ledger.read_to(books.ledger_end)
        await self._note_removed(books)
        windows = await self._check_windows(ledger, findings, books.now)
        await self._check_reserved(windows, findings)
        await self._check_running_totals(ledger, findings)
        await self._check_totals(ledger, findings, books.now)
        verified = Verified(
            books.now,
            self._is_full,
            seconds=round(time.perf_counter() - begins, 3),
            records=ledger.sums.records - before,
            windows=findings.windows,
            running_totals=findings.running_totals,
            slots=findings.slots,
            purchases=-1 if books.purchases is None else len(books.purchases),
            differences=findings.differences,
            shown=tuple(findings.shown),
            not_compared=tuple(findings.not_compared),
            unreadable=tuple(ledger.sums.unreadable[:MAX_DIFFERENCES]),
        )
        await self._store_result(verified)
        return verified

    # ── the ledger ──────────────────────────────────────────────────────────────────────────

    async def _prepare(self, books: Books) -> LedgerReader:
        """The sums so far, or new ones."""
        zones = await read_zones(self._store, self._settings.time_zone)
        ledger = self._ledger
        if ledger is None or zones != self._zones:
            self._zones = zones
            ledger = self._ledger = await self._begin(books)
        ledger.sums.oldest_window = books.now - RECENT_SECONDS
        ledger.sums.forget(0.0 if self._is_full else books.now - RECENT_SECONDS - 86_400)
        return ledger

    async def _begin(self, books: Books) -> LedgerReader:
        begin = ""
        if not self._is_full:
            begin = f"{datetime.fromtimestamp(books.now - RECENT_SECONDS, UTC):%Y-%m-%d}/"
        first = await execute(self._store, ReadLedger("", 1, charged_only=True))
        self._is_whole = not books.removed_to and (not first or first[0][0] > begin)
        self._cut = max(time_of_position(books.removed_to), time_of_position(begin))
        if self._is_whole:
            self._cut = 0.0
        sums, self._bases = LedgerSums(self._zones, all_series(self._zones[-1].zone)), {}
        return LedgerReader(self._store, sums, begin=begin, rest=self._rest)

    async def _note_removed(self, before: Books) -> None:
        """Records that were removed while the ledger was read for the first time may be missing."""
        removed_to = (await execute(self._store, ReadBooks())).removed_to
        if removed_to != before.removed_to and not self._bases:
            self._is_whole = False
            self._cut = max(self._cut, time_of_position(removed_to))

    # ── windows ─────────────────────────────────────────────────────────────────────────────

    async def _check_windows(
        self, ledger: LedgerReader, findings: Findings, now: float
    ) -> list[WindowName]:
        """Compares what is spent. Returns the windows in which something is reserved."""
        live = list(live_windows(self._zones[-1].zone, now))
        for window in live:
            if window.starts_at < self._cut:
                findings.not_compared[
                    f"{window.period} {window.label}: some of its records are not kept any more"
                ] = None
        subjects = list(await self._all_subjects(ledger.sums.subjects))
        step = MAX_WINDOWS // (len(live) + 1)
        reserved: list[WindowName] = []
        for first in range(0, len(subjects), step):
            reserved += await self._check_page(
                ledger, findings, subjects[first : first + step], live=live
            )
        return reserved

    async def _all_subjects(self, of_records: Iterable[str]) -> Iterable[str]:
        subjects = dict.fromkeys((EVERYONE,))
        for key_id, team in await self._subjects():
            subjects |= dict.fromkeys(limit_subjects(key_id, team))
        return subjects | dict.fromkeys(of_records)

    async def _check_page(
        self,
        ledger: LedgerReader,
        findings: Findings,
        subjects: Sequence[str],
        *,
        live: Sequence[LiveWindow],
    ) -> list[WindowName]:
        names = tuple(
            name
            for subject in subjects
            for name in (
                WindowName(subject, "concurrency", ""),
                *(WindowName(subject, one.period, one.label) for one in live),
            )
        )
        starts = {(one.period, one.label): one.starts_at for one in live}
        books = await execute(self._store, ReadBooks(names))
        await ledger.read_to(books.ledger_end)
        reserved = []
        pairs = zip(names, books.windows, strict=True)
        for number, (name, amounts) in enumerate(pairs, start=1):
            if number % SLICE_WINDOWS == 0:
                await asyncio.sleep(0)
            if amounts.reserved:
                reserved.append(name)
            if name.period != "concurrency" and starts[name.period, name.label] >= self._cut:
                findings.windows += 1
                _compare_spent(ledger.sums, findings, name, amounts)
        return reserved

    # ── reservations ────────────────────────────────────────────────────────────────────────

    async def _check_reserved(self, windows: Iterable[WindowName], findings: Findings) -> None:
        """Compares what is reserved with the open purchases."""
        before = await execute(self._store, ReadBooks(max_purchases=MAX_OPEN_PURCHASES))
        names = dict.fromkeys(windows)
        for purchase in before.purchases or ():
            names |= dict.fromkeys(purchase.reserved or ())
        asked = tuple(names)
        for first in range(0, len(asked), MAX_WINDOWS):
            page = asked[first : first + MAX_WINDOWS]
            books = await execute(self._store, ReadBooks(page, max_purchases=MAX_OPEN_PURCHASES))
            if books.purchases is None:
                findings.not_compared["reserved: too many purchases are open"] = None
                return
            if any(purchase.reserved is None for purchase in books.purchases):
                findings.not_compared["reserved: an open purchase cannot be read"] = None
                return
            for name, amounts in zip(page, books.windows, strict=True):
                _compare_reserved(books.purchases, findings, name, amounts)

    # ── running totals ──────────────────────────────────────────────────────────────────────

    async def _check_running_totals(self, ledger: LedgerReader, findings: Findings) -> None:
        subjects = await self._all_subjects(ledger.sums.running)
        names = list(subjects)
        for first in range(0, len(names), PAGE_TOTALS):
            page = tuple(names[first : first + PAGE_TOTALS])
            books = await execute(self._store, ReadBooks(totals=page))
            await ledger.read_to(books.ledger_end)
            for name, total in zip(page, books.totals, strict=True):
                self._compare_running_total(ledger.sums, findings, name, total)

    def _compare_running_total(
        self, sums: LedgerSums, findings: Findings, name: str, total: RunningTotal
    ) -> None:
        charged, corrected = sums.running.get(name, (0, 0))
        if not self._is_whole and name not in self._bases:
            # Records before the sums were removed, or are not read. From now on the two move alike.
            self._bases[name] = RunningTotal(total.charged - charged, total.corrected - corrected)
            findings.not_compared["running totals: compared from the next verification on"] = None
            return
        base = self._bases.get(name, RunningTotal())
        findings.running_totals += 1
        for kind, expected, found in (
            ("charged", base.charged + charged, total.charged),
            ("corrected", base.corrected + corrected, total.corrected),
        ):
            findings.compare(
                "running total", name, kind, unit="usd_micros", expected=expected, found=found
            )

    # ── totals ──────────────────────────────────────────────────────────────────────────────

    async def _check_totals(self, ledger: LedgerReader, findings: Findings, now: float) -> None:
        """Compares quarter hours and days: all of them, or those with new records."""
        kept: Mapping[TotalsKind, float] = {
            "quarter": KEEP_QUARTERS_SECONDS,
            "day": self._settings.keep_days_seconds,
            "user": self._settings.keep_users_seconds,
        }
        touched, ledger.sums.touched = ledger.sums.touched, set()
        since = 0.0 if self._is_full else now - RECENT_SECONDS
        series = all_series(self._zones[-1].zone)
        periods = choose_periods(series, kept=kept, now=now, since=since)
        if not self._is_full:
            touched |= set(choose_periods(series, kept=kept, now=now, since=now - LATE_SECONDS))
            periods = [period for period in periods if period in touched]
        await check_totals(
            self._store,
            ledger,
            findings,
            periods,
            worker=self._worker,
            comparable=self._is_comparable,
        )

    def _is_comparable(self, slot: Slot) -> bool:
        """Whether the sums and the rows of a slot may have the same records."""
        begins = slot.starts_at
        if begins < self._cut:
            return False
        # Rows of a zone begin with the records that were folded since it is the zone.
        has_changed = len(self._zones) > 1 and slot.series.zone != "UTC"
        return not has_changed or begins >= self._zones[-1].since + ROLLING_SECONDS

    # ── the result ──────────────────────────────────────────────────────────────────────────

    async def _store_result(self, verified: Verified) -> None:
        name = "full" if self._is_full else "recent"
        data = orjson.dumps(verified.to_dict())
        await execute(self._store, SetValue(SPACE, name, data, None))
        if not verified.is_balanced:
            first = verified.shown[0]
            log.error(
                "ledger_unbalanced",
                differences=verified.differences,
                book=first.book,
                subject=first.subject,
                window=first.window,
                unit=first.unit,
                expected=first.expected,
                found=first.found,
            )


def _compare_spent(
    sums: LedgerSums, findings: Findings, name: WindowName, amounts: WindowAmounts
) -> None:
    ranges = sums.window(name.subject, name.period, name.label)
    for unit, (low, high) in zip(UNITS, ranges, strict=True):
        found = amounts.spent.get(unit, 0)
        # Where a change of the time zone is under way, either of two windows may have a record.
        expected = min(max(found, low), high)
        findings.compare(
            "spent",
            name.subject,
            f"{name.period} {name.label}",
            unit=unit,
            expected=expected,
            found=found,
        )


def _compare_reserved(
    purchases: Iterable[OpenPurchase],
    findings: Findings,
    name: WindowName,
    amounts: WindowAmounts,
) -> None:
    expected: dict[str, int] = {}
    for purchase in purchases:
        for unit, amount in (purchase.reserved or {}).get(name, {}).items():
            expected[unit] = expected.get(unit, 0) + amount
    for unit in dict.fromkeys((*expected, *amounts.reserved)):
        findings.compare(
            "reserved",
            name.subject,
            f"{name.period} {name.label}".strip(),
            unit=unit,
            expected=expected.get(unit, 0),
            found=amounts.reserved.get(unit, 0),
        )


# ── what is kept ────────────────────────────────────────────────────────────────────────────


async def read_verified(store: Store) -> list[Verified]:
    """The last result of all records, and that of recent ones, as far as there are any."""
    found = [await execute(store, GetValue(SPACE, name)) for name in ("full", "recent")]
    decoded = [
        read_stored("verification", data, Verified.decode) for data in found if data is not None
    ]
    return [one for one in decoded if one is not None]
