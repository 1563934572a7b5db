"""Compares the rows of the totals with the records.

Rows are read in pages, and folding changes them meanwhile. So the verification takes the turn of
folding for two seconds at a time, reads as many periods as it can, and adds the records after the
checkpoint to them. Reports are right all the time: they add those records too.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Final

import orjson

from gateway.billing.ledger_reader import Findings, LedgerReader
from gateway.billing.record_amounts import charged_amounts, decode_charge
from gateway.billing.running_totals import EVERYONE
from gateway.billing.totals import TURN, TURN_SECONDS, in_slices
from gateway.billing.totals_periods import Series
from gateway.billing.verified_sums import LedgerSums, Slot, SlotSums
from gateway.store.batch import execute
from gateway.store.commands import ReadTotals, ReadTotalsState, Slots, TotalsKind
from gateway.store.protocol import Store
from gateway.store.turns import end_turn, take_turn

HOLD_SECONDS: Final = 2.0
"""How long folding waits at a time."""
PAUSE_SECONDS: Final = 0.05
LOOK_SECONDS: Final = 0.5
"""Between two looks whether another worker still has the turn."""
WAIT_SECONDS: Final = 40.0
"""How long to wait for the turn. A worker that folds has it for 6.3 s."""
ATTEMPTS: Final = 5
PAGE_ROWS: Final = 200
SLICE_KEYS: Final = 500
"""Sums of keys that are compared at once. It takes about a millisecond of the event loop."""
SLICE_EXPLAINED: Final = 100
"""The same of keys that are named if they differ."""
MAX_EXPLAINED: Final = 20
"""Slots whose difference is divided by key."""

PeriodName = tuple[Series, str]
ByKey = dict[str, SlotSums]
Rows = dict[int, ByKey]
"""What each slot of a period has, by key id."""


class FoldingBusy(Exception):
    """Other workers fold all the time."""


def choose_periods(
    all_series: Iterable[Series], *, kept: Mapping[TotalsKind, float], now: float, since: float
) -> list[PeriodName]:
    """The periods with a moment since a time whose rows the store still has."""
    day = 86_400.0  # less than they are kept: rows must not be removed while they are compared
    return [
        (series, period)
        for series in all_series
        for period in series.periods(max(since, now - kept[series.kind] + day, 0.0), now + day)
    ]


async def check_totals(
    store: Store,
    ledger: LedgerReader,
    findings: Findings,
    periods: Iterable[PeriodName],
    *,
    worker: str,
    comparable: Callable[[Slot], bool],
) -> None:
    """Compares the rows of these periods with the sums. Raises `StoreUnavailable`."""
    left = deque(periods)
    may_explain = MAX_EXPLAINED
    while left:
        try:
            checkpoint, chunk = await _read_chunk(store, left, worker)
        except FoldingBusy:
            findings.not_compared["totals: they were folded all the time"] = None
            return
        await ledger.read_to(checkpoint)
        await _add_tail(ledger, checkpoint, chunk)
        wrong: dict[Slot, ByKey] = {}
        for period, rows in chunk.items():
            async for slot, found in _differing(ledger.sums, findings, period, rows, comparable):
                if len(wrong) < may_explain:
                    wrong[slot] = found
                else:
                    expected = _expected(ledger.sums, slot)
                    _compare(findings, EVERYONE, slot.shown, expected, _sum(found))
        may_explain -= len(wrong)
        await _explain(ledger, findings, wrong)


async def _read_chunk(
    store: Store, left: deque[PeriodName], worker: str
) -> tuple[str, dict[PeriodName, Rows]]:
    """Some periods as they are at one checkpoint; they are taken from `left`."""
    for _ in range(ATTEMPTS):
        await _take_turn(store, worker)
        try:
            checkpoint = (await execute(store, ReadTotalsState())).checkpoint
            chunk: dict[PeriodName, Rows] = {}
            stops_at = time.monotonic() + HOLD_SECONDS
            while left and time.monotonic() < stops_at:
                rows = await _read_period(store, left[0][1], checkpoint, worker)
                if rows is None:
                    break
                chunk[left.popleft()] = rows
        finally:
            await end_turn(store, TURN, worker, after_seconds=PAUSE_SECONDS)
        if chunk:
            return checkpoint, chunk
    raise FoldingBusy


async def _take_turn(store: Store, worker: str) -> None:
    stops_at = time.monotonic() + WAIT_SECONDS
    while not await take_turn(store, TURN, worker, seconds=TURN_SECONDS):
        if time.monotonic() > stops_at:
            raise FoldingBusy
        await asyncio.sleep(LOOK_SECONDS)


async def _read_period(store: Store, period: str, checkpoint: str, worker: str) -> Rows | None:
    """What each slot has; None if a worker that was slow with its turn has folded meanwhile."""
    by_row: dict[str, Slots] = {}
    after: str | None = ""
    renewed_at = time.monotonic()
    while after is not None:
        page = await execute(store, ReadTotals(period, after, PAGE_ROWS))
        if page.checkpoint != checkpoint:
            return None
        # A row may be on two pages.
        by_row |= {row: slots async for row, slots in in_slices(page.rows)}
        after = page.after
        if time.monotonic() - renewed_at > HOLD_SECONDS:
            await end_turn(store, TURN, worker, after_seconds=TURN_SECONDS)
            renewed_at = time.monotonic()
    found: Rows = {}
    async for row, slots in in_slices(by_row.items()):
        key_id = orjson.loads(row).get("key_id", "")
        for slot, sums in slots.items():
            _add(found, slot, key_id, charged_amounts(sums))
    return found


async def _add_tail(
    ledger: LedgerReader, checkpoint: str, chunk: Mapping[PeriodName, Rows]
) -> None:
    """Adds the records that the sums have and the rows do not."""
    names = {series: {p for s, p in chunk if s == series} for series, _ in chunk}
    async for _, data in ledger.records(checkpoint, ledger.position):
        record = decode_charge(data)
        if record is None:
            continue
        for series, periods in names.items():
            period, slot = series.place(record.time)
            if period.name in periods:
                amounts = charged_amounts(record.amounts)
                _add(chunk[series, period.name], slot, record.key_id, amounts)


def _add(rows: Rows, slot: int, key_id: str, amounts: tuple[int, int, int, int]) -> None:
    rows.setdefault(slot, {}).setdefault(key_id, SlotSums()).add(key_id, amounts)


async def _differing(
    sums: LedgerSums,
    findings: Findings,
    name: PeriodName,
    rows: Rows,
    comparable: Callable[[Slot], bool],
) -> AsyncIterator[tuple[Slot, ByKey]]:
    """The slots of a period whose rows are not the sum of its records."""
    compared = 0
    for number in {**sums.slots.get(name, {}), **rows}:
        slot, found = Slot(*name, number), rows.get(number, {})
        if comparable(slot):
            findings.slots += 1
            if _sum(found) != _expected(sums, slot):
                yield slot, found
        compared += 1 + len(found)
        if compared >= SLICE_KEYS:
            compared = 0
            await asyncio.sleep(0)


def _expected(sums: LedgerSums, slot: Slot) -> SlotSums:
    return sums.slots.get((slot.series, slot.period), {}).get(slot.number, SlotSums())


def _sum(by_key: ByKey) -> SlotSums:
    whole = SlotSums()
    for key_id, sums in by_key.items():
        whole.add(key_id, sums.amounts)
    return whole


async def _explain(ledger: LedgerReader, findings: Findings, wrong: Mapping[Slot, ByKey]) -> None:
    """Reads the records of these slots once more, and names the keys that differ."""
    if not wrong:
        return
    expected: dict[Slot, ByKey] = {slot: {} for slot in wrong}
    series = {slot.series for slot in wrong}
    async for _, data in ledger.records(ledger.begin, ledger.position):
        record = decode_charge(data)
        if record is None:
            continue
        for one in series:
            period, number = one.place(record.time)
            if (by_key := expected.get(Slot(one, period.name, number))) is not None:
                of_key = by_key.setdefault(record.key_id, SlotSums())
                of_key.add(record.key_id, charged_amounts(record.amounts))
    for slot, found in wrong.items():
        shown = slot.shown
        for number, key_id in enumerate(dict.fromkeys((*expected[slot], *found))):
            if number % SLICE_EXPLAINED == 0:
                await asyncio.sleep(0)
            before, after = expected[slot].get(key_id), found.get(key_id)
            _compare(findings, f"key:{key_id}", shown, before or SlotSums(), after or SlotSums())


def _compare(
    findings: Findings, subject: str, window: str, expected: SlotSums, found: SlotSums
) -> None:
    units: Sequence[str] = ("images", "tokens", "usd_micros", "usd_micros_by_kind")
    for unit, before, after in zip(units, expected.amounts, found.amounts, strict=True):
        findings.compare("totals", subject, window, unit=unit, expected=before, found=after)
