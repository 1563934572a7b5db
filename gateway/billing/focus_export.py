"""Exports of a month in FOCUS, read from the books and written in pieces.

Days come from the totals, so an export has the same sums as every report. Totals do not say which
part of a day is a later correction; the ledger records after the month do, and it is taken out of
its day. `focus` makes the lines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Final, TypeAlias
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel, ConfigDict

from gateway.billing.focus import (
    Charge,
    Month,
    Seller,
    columns_of,
    encode_lines,
    focus_lines,
    parse_month,
    parse_version,
)
from gateway.billing.record_amounts import (
    RecordAmounts,
    add_amounts,
    decode_record,
    decode_sums,
)
from gateway.billing.totals import PAGE_RECORDS, SLICE_RECORDS, DaysUnknown, TooManyGroups, Totals
from gateway.calendar import Calendar
from gateway.errors import ErrorCode, InvalidRequest
from gateway.store.batch import execute
from gateway.store.commands import ReadLedger
from gateway.store.protocol import Store

MAX_DAYS: Final = 31
"""Days that are read at once, unless they have too many groups."""
MAX_GROUPS: Final = 20_000
"""Groups of days in memory, unless one day has more."""
PIECE_LINES: Final = 200
"""Lines that are encoded at once. It takes a few milliseconds of the event loop."""

_CORRECTED: Final = b'"corrected_at"'
"""In every record of a correction, and in few others: the rest is not decoded."""

_Group: TypeAlias = tuple[float, str]
"""The start of a day, and dimensions as text."""
_Groups: TypeAlias = dict[_Group, dict[str, int]]


class FocusSettings(BaseModel):
    """The time zone of months, and who charges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_zone: str = "UTC"
    provider: str
    """The host of upstream."""
    account: str
    """The name of the upstream."""
    keep_days_seconds: float = 800 * 86_400.0


@dataclass(frozen=True, slots=True)
class FocusQuery:
    """A month, and the version of FOCUS."""

    month: Month
    version: str

    @property
    def filename(self) -> str:
        """Of the export."""
        return f"focus-{self.month.label}.csv"


class FocusExport:
    """Exports months."""

    def __init__(
        self,
        store: Store,
        totals: Totals,
        settings: FocusSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._totals = totals
        self._settings = settings
        self._clock = clock
        self._calendar = Calendar(ZoneInfo(settings.time_zone))

    def parse(self, month: str | None, version: str | None) -> FocusQuery:
        """Raises `InvalidRequest`, which names the parameter."""
        zone, now = self._settings.time_zone, self._clock()
        found = parse_month(month, self._calendar, time_zone=zone, now=now)
        if found.ends_at < now - self._settings.keep_days_seconds:
            raise InvalidRequest(
                f"Invalid 'month': {found.label} is further back than `billing.keep_totals`.",
                param="month",
                code=ErrorCode.INVALID_VALUE,
            )
        return FocusQuery(found, parse_version(version))

    async def pieces(self, query: FocusQuery) -> AsyncGenerator[bytes]:
        """The CSV in pieces. Raises `StoreUnavailable`, also between two of them."""
        seller = Seller(self._settings.provider, self._settings.account)
        yield encode_lines([columns_of(query.version)])
        # Read first: the totals that are read then have all of them.
        late = await self._read_late(query.month)
        async for charges in self._read_charges(query.month, late):
            lines = focus_lines(query.month, charges, version=query.version, seller=seller)
            while piece := list(islice(lines, PIECE_LINES)):
                yield encode_lines(piece)
                await asyncio.sleep(0)

    # ── charges ─────────────────────────────────────────────────────────────────────────────

    async def _read_charges(
        self, month: Month, late: Mapping[_Group, _Late]
    ) -> AsyncIterator[Iterator[Charge]]:
        """The charges of some days at a time, then the corrections that came after the month."""
        days, count = list(self._days(month)), MAX_DAYS
        while days:
            part = days[:count]
            try:
                groups = await self._read_days(part[0], part[-1])
            except DaysUnknown:
                raise InvalidRequest(
                    f"Invalid 'month': `billing.time_zone` was changed, and {month.label} has days "
                    "that are not known in the new time zone.",
                    param="month",
                    code=ErrorCode.INVALID_VALUE,
                ) from None
            except TooManyGroups:
                count = max(1, len(part) // 2)
                continue
            days = days[count:]
            for group, found in late.items():
                if group[0] in part:
                    found.take_out(groups, group)
            yield self._charges(groups)
        corrections = {group: found.amounts for group, found in late.items()}
        yield self._charges(corrections, is_correction=True)

    def _charges(self, groups: _Groups, *, is_correction: bool = False) -> Iterator[Charge]:
        # Day by day: sorting all groups at once would take tens of milliseconds.
        by_day: dict[float, list[str]] = {}
        for starts_at, row in groups:
            by_day.setdefault(starts_at, []).append(row)
        for starts_at in sorted(by_day):
            ends_at = self._calendar.day_at(starts_at).ends_at
            for row in sorted(by_day[starts_at]):
                sums = decode_sums(groups[starts_at, row])
                dimensions = orjson.loads(row)
                yield Charge(starts_at, ends_at, dimensions, sums, is_correction=is_correction)

    async def _read_days(self, first: int, last: int) -> _Groups:
        """The totals of days. Raises `TooManyGroups`, unless it is one day."""
        return await self._totals.add_up(
            first,
            last + 1,
            bucket="day_in_zone",
            group_of=_without_outcome,
            begin_of=float,
            max_groups=None if first == last else MAX_GROUPS,
        )

    def _days(self, month: Month) -> Iterator[int]:
        """Where the days of a month begin, as far as there are any."""
        starts_at = month.starts_at
        while starts_at < min(month.ends_at, self._clock() + 86_400):
            yield starts_at
            starts_at = self._calendar.day_at(starts_at).ends_at

    # ── corrections ─────────────────────────────────────────────────────────────────────────

    async def _read_late(self, month: Month) -> dict[_Group, _Late]:
        """What was corrected in days of the month after its end."""
        late: dict[_Group, _Late] = {}
        if self._clock() < month.ends_at:
            return late
        day_before = datetime.fromtimestamp(month.ends_at, UTC).date() - timedelta(days=1)
        position, is_last = f"{day_before}/", False
        while not is_last:
            found = await execute(self._store, ReadLedger(position, PAGE_RECORDS))
            for index, (_, data) in enumerate(found):
                if _CORRECTED in data and (record := _decode_late(data, month)) is not None:
                    self._add_late(late, record)
                if index % SLICE_RECORDS == 0:
                    await asyncio.sleep(0)
            position, is_last = found[-1][0] if found else "", len(found) < PAGE_RECORDS
        return late

    def _add_late(self, late: dict[_Group, _Late], record: RecordAmounts) -> None:
        starts_at = self._calendar.day_at(record.time).starts_at
        row, other = map(_without_outcome, (record.rows.row, record.rows.other))
        found = late.setdefault((starts_at, row), _Late((starts_at, other), {}))
        add_amounts(found.amounts, record.amounts)


@dataclass(frozen=True, slots=True)
class _Late:
    """Corrections of one group that came after the month."""

    other: _Group
    """The group that has them if the totals of the key are full."""
    amounts: dict[str, int]

    def take_out(self, groups: _Groups, group: _Group) -> None:
        """Takes them out of the group of their day, which the sum of the month does not see."""
        found = group if group in groups or self.other not in groups else self.other
        negative = {code: -amount for code, amount in self.amounts.items()}
        add_amounts(groups.setdefault(found, {}), negative)


def _decode_late(data: bytes, month: Month) -> RecordAmounts | None:
    """A correction of the month that came after it; None for any other record."""
    record = decode_record(data)
    if record is None or not month.starts_at <= record.time < month.ends_at:
        return None
    fields: dict[str, Any] = orjson.loads(data)
    corrected_at = fields.get("corrected_at")
    is_late = fields.get("corrects") is not None and (corrected_at or 0) >= month.ends_at
    return record if is_late else None


def _without_outcome(row: str) -> str:
    """The dimensions of a charge. Its outcome is none of FOCUS."""
    dimensions: dict[str, Any] = orjson.loads(row)
    dimensions.pop("outcome", None)
    return orjson.dumps(dimensions, option=orjson.OPT_SORT_KEYS).decode()
