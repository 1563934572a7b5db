"""Reports: what was requested, bought and saved, by time and by group. One query behind all.

A report is read from totals where they know its dimensions, and else from ledger records
(`docs/reference/billing.md#reports`). Both include every settled purchase, and both are added up
while they are read, so that a report takes the memory of its own rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel, ConfigDict

from gateway.billing.record_amounts import Sums, decode_record, decode_sums
from gateway.billing.totals import (
    KEEP_QUARTERS_SECONDS,
    PAGE_RECORDS,
    SLICE_RECORDS,
    BeginOf,
    Bucket,
    DaysUnknown,
    Groups,
    TooManyGroups,
    Totals,
)
from gateway.billing.totals_periods import DAY_SECONDS, MAX_TIME, QUARTER_SECONDS
from gateway.billing.verified_sums import time_of_position
from gateway.calendar import Calendar
from gateway.errors import ErrorCode, GatewayError
from gateway.store.batch import execute
from gateway.store.commands import ReadBooks, ReadLedger
from gateway.store.protocol import Store
from gateway.values import nearest

Width: TypeAlias = Literal["minute", "hour", "day", "all"]
Zone: TypeAlias = Literal["zone", "utc"]
Field: TypeAlias = Literal["since", "until", "bucket", "group_by", "filters"]
Source: TypeAlias = Literal["records", "charges", "quarters", "days", "users"]

DIMENSIONS: Final = (
    *("team", "key", "key_id", "user", "model", "size", "quality", "outcome", "source"),
)
LABEL: Final = "label:"
"""A dimension is also `label:` and the name of a label."""
GENERATION: Final = "image.generation"
"""The `source` of all records."""

MAX_ROWS: Final = 10_000
"""Of one report."""
SLICE_ROWS: Final = 50
"""Rows that are made at once. It takes about a millisecond of the event loop."""
MAX_BUCKETS: Final[Mapping[Width, int]] = {"minute": 1440, "hour": 31 * 24, "day": 3660, "all": 1}
MAX_GROUPS: Final = 16
"""Dimensions by which one report is grouped."""
MAX_RECORDS: Final = 2_000_000
"""Ledger records that one report reads."""
MAX_SCANS: Final = 2
"""Reports of a worker that read records at the same time."""
MAX_READS: Final = 8
"""The same for those that read totals."""
MAX_WAITING: Final = 20
"""How many more of either kind wait."""

_CLOCK_SECONDS: Final = 3600.0
"""How much later than its place in the ledger a record's time may be: a gateway's clock may be
wrong."""
_SLACK_SECONDS: Final = 60.0
"""A start that is so much too early is accepted: `30d` is sent a moment before it is read."""
_USER_DIMENSIONS: Final = frozenset({"team", "key", "key_id", "user", "source"})
"""Those that totals by user have."""
_STEP_SECONDS: Final = {"minute": 60, "quarter": QUARTER_SECONDS, "hour": 3600}


class ReportSettings(BaseModel):
    """The time zone of days, and how long records and totals are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_zone: str = "UTC"
    keep_records_seconds: float = 30 * 86_400.0
    """Of those without a charge: older ones are incomplete."""
    keep_days_seconds: float = 800 * 86_400.0
    keep_users_seconds: float = 400 * 86_400.0


@dataclass(frozen=True, slots=True)
class ReportQuery:
    """What a report is about. Its start and end are moved outwards to those of its buckets."""

    since: float
    """Unix seconds."""
    until: float
    """Unix seconds; the report ends before it."""
    bucket: Width = "all"
    zone: Zone = "zone"
    """Whose days: of `billing.time_zone`, or of UTC."""
    group_by: tuple[str, ...] = ()
    """Names of `DIMENSIONS`, or `label:NAME`."""
    filters: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Dimension → its values; "" is the value of those that do not have it."""
    costs_only: bool = False
    """Only charges matter: free records, which are kept for a shorter time, may be missing."""


@dataclass(frozen=True, slots=True)
class ReportRow:
    """The sums of one group in one bucket."""

    starts_at: float
    """Unix seconds."""
    ends_at: float
    dimensions: Mapping[str, str | None]
    """Those of `group_by`, in their order."""
    sums: Sums


class ReportRefused(Exception):
    """A query that no report answers: which field is wrong, and what is expected of it."""

    def __init__(self, field: Field, expected: str) -> None:
        super().__init__(f"'{field}': expected {expected}")
        self.field = field
        self.expected = expected

    @property
    def sentence(self) -> str:
        """What is expected, as the end of a message."""
        return f"expected {self.expected}{'' if self.expected.endswith('?') else '.'}"


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a report is read from, and from when to when."""

    source: Source
    since: float
    until: float


class Reports:
    """Answers queries from totals and ledger records."""

    def __init__(
        self,
        store: Store,
        totals: Totals,
        settings: ReportSettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._totals = totals
        self._settings = settings
        self._clock = clock
        self._scans = _Turns(MAX_SCANS)
        self._reads = _Turns(MAX_READS)

    @property
    def time_zone(self) -> str:
        """The name of the zone `zone`."""
        return self._settings.time_zone

    def show(self, moment: float, zone: Zone = "zone") -> str:
        """A moment as messages have it, with its time zone."""
        name = self._settings.time_zone if zone == "zone" else "UTC"
        return f"{datetime.fromtimestamp(moment, ZoneInfo(name)).isoformat()} ({name})"

    async def run(self, query: ReportQuery) -> list[ReportRow]:
        """The rows that have any records, the oldest first, then by group.

        Raises `ReportRefused` and `StoreUnavailable`.
        """
        plan, grid, selection = self.plan(query), self._grid(query), _Selection(query)
        # The start of the bucket of a quarter hour or day.
        begin_of = lru_cache(grid.floor) if query.bucket != "all" else lambda _: plan.since
        try:
            sums = await self._read(query, plan, selection, begin_of)
        except DaysUnknown as error:
            earliest = self._grid(query).ceil(min(error.earliest, self._clock()))
            raise ReportRefused(
                "since",
                f"{self.show(earliest, query.zone)} or later: `billing.time_zone` was changed, and "
                "earlier days are not known in the new time zone",
            ) from None
        except TooManyGroups:
            raise ReportRefused(
                "group_by", f"groups with at most {MAX_ROWS:,} rows together; ask for less at once"
            ) from None
        end_of = lru_cache(grid.next) if query.bucket != "all" else lambda _: plan.until
        found = []
        for index, ((starts_at, group), amounts) in enumerate(sums.items()):
            if index % SLICE_ROWS == 0:
                await asyncio.sleep(0)
            dimensions = dict(zip(query.group_by, group, strict=True))
            row = ReportRow(starts_at, end_of(starts_at), dimensions, decode_sums(amounts))
            found.append(row)
        if len(found) <= SLICE_ROWS:
            return sorted(found, key=_order)
        # 10,000 rows take tens of milliseconds.
        return await asyncio.to_thread(sorted, found, key=_order)

    # ── planning ────────────────────────────────────────────────────────────────────────────

    def plan(self, query: ReportQuery) -> Plan:
        """Where a query is read from. Raises `ReportRefused` for one without an answer."""
        _check_dimensions(query)
        if not query.since < query.until:
            raise ReportRefused("until", "a time after the start")
        if not -MAX_TIME < query.since < MAX_TIME:
            raise ReportRefused("since", f"a time before {self.show(self._clock())}")
        source, now = self._source(query), self._clock()
        keep_seconds = {
            "records": self._settings.keep_records_seconds,
            "charges": self._settings.keep_users_seconds,
            "quarters": KEEP_QUARTERS_SECONDS,
            "days": self._settings.keep_days_seconds,
            "users": self._settings.keep_users_seconds,
        }[source]
        earliest, grid = max(0.0, now - keep_seconds), self._grid(query, source)
        # Totals go by whole days or months. Of records the first bucket must be complete too.
        begin = grid.floor(query.since) if source in ("records", "charges") else query.since
        if begin < earliest - _SLACK_SECONDS:
            raise ReportRefused("since", self._explain_earliest(query, source, earliest))
        since, until = grid.floor(query.since), grid.ceil(min(query.until, MAX_TIME))
        # Later buckets have nothing yet.
        plan = Plan(source, since, min(until, grid.next(grid.floor(max(now, since)))))
        self._check_width(query, plan)
        return plan

    def buckets(self, query: ReportQuery) -> Iterator[tuple[float, float]]:
        """Start and end of every bucket of a query, also of those without a row."""
        plan, grid = self.plan(query), self._grid(query)
        if query.bucket == "all":
            yield plan.since, plan.until
            return
        starts_at = plan.since
        while starts_at < plan.until:
            ends_at = grid.next(starts_at)
            yield starts_at, ends_at
            starts_at = ends_at

    def _source(self, query: ReportQuery) -> Source:
        if query.bucket == "minute":
            return "records"
        dimensions = {*query.group_by, *query.filters}
        is_by_day = query.bucket == "day" or (query.bucket == "all" and self._has_whole_days(query))
        if "user" not in dimensions:
            return "days" if is_by_day else "quarters"
        if is_by_day and dimensions <= _USER_DIMENSIONS:
            return "users"
        return "charges" if query.costs_only else "records"

    def _has_whole_days(self, query: ReportQuery) -> bool:
        """Whether it begins and ends with days. Nothing is later than now."""
        days = _Grid("day", self._calendar(query))
        is_end = query.until >= self._clock() or days.floor(query.until) == query.until
        return is_end and abs(query.since) < MAX_TIME and days.floor(query.since) == query.since

    def _grid(self, query: ReportQuery, source: Source | None = None) -> _Grid:
        """The steps of time of a query's buckets; of a single bucket, those of its source."""
        step: str = query.bucket
        if step == "all":
            # Also of records, so that a report by user is about the same time as any other.
            is_by_quarter = (source or self._source(query)) in ("records", "charges", "quarters")
            step = "quarter" if is_by_quarter else "day"
        return _Grid(step, self._calendar(query))

    def _calendar(self, query: ReportQuery) -> Calendar:
        return Calendar(UTC if query.zone == "utc" else ZoneInfo(self._settings.time_zone))

    def _check_width(self, query: ReportQuery, plan: Plan) -> None:
        seconds = plan.until - plan.since
        max_buckets = MAX_BUCKETS[query.bucket]
        width = _STEP_SECONDS.get(query.bucket, DAY_SECONDS)
        # A day may have 25 hours.
        if query.bucket == "all" or seconds <= max_buckets * width + 3600:
            return
        wider = "hour" if seconds <= MAX_BUCKETS["hour"] * 3600 else "day"
        raise ReportRefused(
            "bucket",
            f"a width of '{wider}' or more for {seconds / DAY_SECONDS:.0f} days: a report has at "
            f"most {max_buckets:,} {query.bucket}s",
        )

    def _explain_earliest(self, query: ReportQuery, source: Source, earliest: float) -> str:
        nearest_begin = self.show(_Grid("day", self._calendar(query)).next(earliest), query.zone)
        why = {
            "records": "this report needs ledger records of `billing.keep_free_records`; without "
            "minutes, and without hours, models, sizes and qualities by user, it goes back further",
            "quarters": "hours go back 62 days; whole days go back further",
            "days": "days are kept for `billing.keep_totals`",
            "users": "users are kept for `billing.keep_records`",
            "charges": "charged records are kept for `billing.keep_records`",
        }[source]
        return f"{nearest_begin} or later: {why}"

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def _read(
        self, query: ReportQuery, plan: Plan, selection: _Selection, begin_of: BeginOf
    ) -> _Added:
        if plan.source == "charges":
            return await self._read_records(plan, selection, begin_of)
        if plan.source != "records":
            try:
                return await self._read_totals(query, plan, selection, begin_of)
            except DaysUnknown:
                kept_since = self._clock() - self._settings.keep_records_seconds
                if plan.source != "users" or plan.since < kept_since:
                    raise
        await self._check_kept(plan, query)
        sums = await self._read_records(plan, selection, begin_of)
        await self._check_kept(plan, query)  # records may be removed meanwhile
        return sums

    async def _read_totals(
        self, query: ReportQuery, plan: Plan, selection: _Selection, begin_of: BeginOf
    ) -> _Added:
        bucket: Bucket = "quarter"
        if plan.source != "quarters":
            bucket = "day_in_zone" if query.zone == "zone" else "day_in_utc"

        async with self._reads.take():
            return await self._totals.add_up(
                plan.since,
                plan.until,
                bucket=bucket,
                by_user=plan.source == "users",
                group_of=selection.group_of,
                begin_of=begin_of,
                max_groups=MAX_ROWS,
            )

    async def _check_kept(self, plan: Plan, query: ReportQuery) -> None:
        """Raises `ReportRefused` if free records of its time were removed to bound their bytes.

        Those that were removed for their age are in no query (`plan`).
        """
        books = await execute(self._store, ReadBooks())
        removed_to = time_of_position(books.free_removed_to)
        is_expired = removed_to <= self._clock() - self._settings.keep_records_seconds
        if plan.since <= removed_to and not is_expired:
            grid = self._grid(query, plan.source)
            begin = self.show(grid.next(grid.floor(removed_to)), query.zone)
            raise ReportRefused(
                "since",
                f"{begin} or later: this report needs ledger records, and the older ones without a "
                "charge were removed to keep within `billing.free_records_bytes`",
            )

    async def _read_records(self, plan: Plan, selection: _Selection, begin_of: BeginOf) -> _Added:
        """Adds up records from the first day of the report to the end of the ledger.

        A correction has the time of its purchase and may be much later in the ledger.
        """
        groups, read = Groups(MAX_ROWS), 0
        first = datetime.fromtimestamp(max(0.0, plan.since - _CLOCK_SECONDS), UTC)
        after, is_last = f"{first:%Y-%m-%d}/", False
        async with self._scans.take():
            while not is_last:
                page = ReadLedger(after, PAGE_RECORDS, charged_only=plan.source == "charges")
                found = await execute(self._store, page)
                for index, (_, data) in enumerate(found):
                    if index % SLICE_RECORDS == 0:
                        await asyncio.sleep(0)
                    record = decode_record(data)
                    if record is None or not plan.since <= record.time < plan.until:
                        continue
                    group = selection.group_of(record.rows.row, record.rows.user_row)
                    if group is not None:
                        groups.add(begin_of(record.time), group, record.amounts)
                is_last, read = len(found) < PAGE_RECORDS, read + len(found)
                after = found[-1][0] if found else after
                if read > MAX_RECORDS:
                    raise ReportRefused(
                        "since", f"a later time: since then there are over {MAX_RECORDS:,} records"
                    )
        return groups.sums


_Group: TypeAlias = tuple[str | None, ...]
_Added: TypeAlias = dict[tuple[float, _Group], dict[str, int]]


def _order(row: ReportRow) -> tuple[object, ...]:
    # A group without a value first.
    return row.starts_at, *((value is not None, value or "") for value in row.dimensions.values())


class _Turns:
    """Lets some reports read at a time, each of which reads much of the store."""

    def __init__(self, at_once: int) -> None:
        self._semaphore = asyncio.Semaphore(at_once)
        self._max_count = at_once + MAX_WAITING
        self._count = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Waits for a turn. Raises 503 if too many reports wait already."""
        if self._count == self._max_count:
            raise GatewayError(
                "This worker is already making many other reports. Please try again.",
                code=ErrorCode.OVERLOADED,
                headers={"Retry-After": "5"},
            )
        self._count += 1
        try:
            async with self._semaphore:
                yield
        finally:
            self._count -= 1


# ── groups ──────────────────────────────────────────────────────────────────────────────────


def _check_dimensions(query: ReportQuery) -> None:
    if len(query.group_by) > MAX_GROUPS:
        raise ReportRefused("group_by", f"at most {MAX_GROUPS} groups")
    for name in query.group_by:
        if query.group_by.count(name) > 1:
            raise ReportRefused("group_by", f"each group once, not '{name[:64]}' again")
        _check_dimension("group_by", name)
    for name in query.filters:
        _check_dimension("filters", name)


def _check_dimension(field: Field, name: str) -> None:
    if name in DIMENSIONS or (name.startswith(LABEL) and name != LABEL):
        return
    known = f"{', '.join(DIMENSIONS)}, or {LABEL}NAME"
    meant = nearest(name, (*DIMENSIONS, LABEL))
    hint = "" if meant is None else f". Did you mean '{meant}'?"
    raise ReportRefused(field, f"one of {known}, but got '{name[:64]}'{hint}")


class _Selection:
    """The groups and filters of a query."""

    def __init__(self, query: ReportQuery) -> None:
        self._group_by = query.group_by
        self._filters = query.filters
        self.group_of = lru_cache(maxsize=8192)(self._group_of)
        """The group of a row with these texts of dimensions; None if it is filtered out."""

    def _group_of(self, *rows: str) -> _Group | None:
        dimensions: dict[str, Any] = {}
        for row in rows:
            dimensions |= orjson.loads(row)
        for name, values in self._filters.items():
            if (_value_of(dimensions, name) or "") not in values:
                return None
        return tuple(_value_of(dimensions, name) for name in self._group_by)


def _value_of(dimensions: Mapping[str, Any], name: str) -> str | None:
    if name == "source":
        return GENERATION
    if not name.startswith(LABEL):
        return dimensions.get(name)
    labels = dimensions.get("labels")
    # Beyond their bounds, all label sets of a key are the text `other`.
    return labels.get(name.removeprefix(LABEL)) if isinstance(labels, dict) else labels


# ── buckets ─────────────────────────────────────────────────────────────────────────────────


class _Grid:
    """The steps of time at which buckets begin. Pure.

    Hours are counted from the start of the day, so that they add up to it also where a clock is
    set forward by half an hour.
    """

    def __init__(self, step: str, calendar: Calendar) -> None:
        self._seconds = _STEP_SECONDS.get(step)
        self._is_hour = step == "hour"
        self._calendar = calendar

    def floor(self, moment: float) -> float:
        """The start of the step that contains a moment."""
        if self._seconds is not None and not self._is_hour:
            return moment // self._seconds * self._seconds
        day = self._calendar.day_at(moment)
        if self._seconds is None:
            return float(day.starts_at)
        return day.starts_at + (moment - day.starts_at) // self._seconds * self._seconds

    def next(self, starts_at: float) -> float:
        """The end of the step that begins at `starts_at`."""
        if self._seconds is None:
            return float(self._calendar.day_at(starts_at).ends_at)
        if self._is_hour:
            ends_at = self._calendar.day_at(starts_at).ends_at
            return min(starts_at + self._seconds, float(ends_at))
        return starts_at + self._seconds

    def ceil(self, moment: float) -> float:
        """The first start of a step at or after a moment."""
        floor = self.floor(moment)
        return floor if floor == moment else self.next(floor)
