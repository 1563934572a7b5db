"""Totals: the ledger's records summed up, so that reports outlive the records.

One worker at a time folds the records after a checkpoint into rows of quarter hours, of days and of
users by day. All rows of a record are written when it is folded, and none is computed from others
later: so no conversion can be interrupted, and rows stay complete when the records are removed.
Reading adds the records after the checkpoint, the *tail*, so it includes every settled purchase.

The rows and the checkpoint are `store.commands.totals`, periods and slots are `totals_periods`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, TypeVar
from zoneinfo import ZoneInfo

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field

from gateway.billing.record_amounts import (
    RecordAmounts,
    RecordRows,
    Sums,
    add_amounts,
    decode_record,
    decode_sums,
    row_of,
)
from gateway.billing.totals_periods import MAX_TIME, QUARTER_SECONDS, Series
from gateway.billing.zone_changes import days_complete_since
from gateway.calendar import Calendar
from gateway.store.batch import execute
from gateway.store.commands import (
    MAX_INCREMENTS,
    FoldTotals,
    Increment,
    Period,
    ReadLedger,
    ReadTotals,
    ReadTotalsState,
    RemoveTotals,
    Slots,
    TotalsKind,
)
from gateway.store.protocol import Store
from gateway.store.turns import PART_OF_INTERVAL, take_turn

FOLD_EVERY_SECONDS: Final = 7.5
"""Reports read what was not folded yet: at 2,000 hits a second, up to 15,000 records."""
REMOVE_EVERY_SECONDS: Final = 600.0
KEEP_QUARTERS_SECONDS: Final = 62 * 86_400.0

PAGE_RECORDS: Final = 1000
FOLDED_RECORDS: Final = 12_000
"""Records that one step of folding reads. It takes some 20 ms of Redis."""
TURN: Final = "totals"
TURN_SECONDS: Final = FOLD_EVERY_SECONDS * PART_OF_INTERVAL
"""How long the other workers leave folding to the one that took the turn."""
FOLD_SECONDS: Final = 5.0
"""How long one call of `fold` goes on, so that it ends within its turn."""
SLICE_RECORDS: Final = 50
"""Records that are read at once. It takes about a millisecond of the event loop."""

SLICE_SLOTS: Final = 200
"""The same of slots, of which a row has up to 96. Redis' are decoded while they are read."""

Bucket = Literal["quarter", "day_in_zone", "day_in_utc"]

GroupOf = Callable[[str], Any]
"""The group of a row, by the row's text; None leaves it out."""
BeginOf = Callable[[float], float]
"""The start of what a bucket is added to, by the start of the bucket."""

log = structlog.get_logger(__name__)


class DaysUnknown(Exception):
    """The time zone was changed, and there are no rows of such early days in the new one."""

    def __init__(self, earliest: float) -> None:
        super().__init__(earliest)
        self.earliest = earliest
        """Where the first day begins that there is."""


class TooManyGroups(Exception):
    """A report would have more groups than its bound."""


class TotalsSettings(BaseModel):
    """The time zone of days, and how long they are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time_zone: str = "UTC"
    keep_days_seconds: float = Field(default=800 * 86_400.0, gt=0)
    keep_users_seconds: float = Field(default=400 * 86_400.0, gt=0)


def all_series(time_zone: str) -> tuple[Series, ...]:
    """The series that a record is folded into."""
    # A record of a zone that is UTC is counted once.
    zones = dict.fromkeys(("UTC", time_zone))
    return (
        Series("quarter", "UTC"),
        *(Series("day", zone) for zone in zones),
        *(Series("user", zone) for zone in zones),
    )


class Observer(Protocol):
    """Counts records that cannot be read, as the metrics do."""

    def unreadable(self, records: int) -> None:
        """So many were left out of the totals."""


@dataclass(frozen=True, slots=True)
class TotalsRow:
    """The sums of one set of dimensions in one quarter hour or day."""

    starts_at: float
    """Unix seconds."""
    dimensions: Mapping[str, Any]
    """`team`, `key`, `key_id`, `labels`, and `model`, `size`, `quality`, `outcome` or `user`; those
    that the records do not have are absent."""
    sums: Sums


class Totals:
    """Folds the ledger into totals, and reads both."""

    def __init__(
        self,
        store: Store,
        settings: TotalsSettings,
        *,
        worker: str,
        observer: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._worker = worker
        self._observer = observer
        self._clock = clock
        self._series = all_series(settings.time_zone)
        self._folded_to = ""
        """The position of the last record in the totals, as this worker knows it."""
        self._has_folded = False
        """Whether the last call of `fold` found records. Then the next one need not look first."""

    # ── folding ─────────────────────────────────────────────────────────────────────────────

    async def folded_to(self) -> str:
        """The position of the last record that is in the totals; "" if none is."""
        self._folded_to = (await execute(self._store, ReadTotalsState())).checkpoint
        return self._folded_to

    async def fold(self) -> int:
        """Folds new records, unless it is another worker's turn; returns how many.

        Raises `StoreUnavailable`; the next call goes on where this one stopped.
        """
        if not self._folded_to:
            await self.folded_to()
        # Without a record after this position, other workers have folded nothing further either.
        if not self._has_folded and not await execute(self._store, ReadLedger(self._folded_to, 1)):
            return 0
        # Two folding workers would be correct too, but the work of one would be wasted.
        if not await take_turn(self._store, TURN, self._worker, seconds=TURN_SECONDS):
            return 0
        folded, stops_at = 0, self._clock() + FOLD_SECONDS
        while self._clock() < stops_at:
            known = self._folded_to
            count = await self._fold_page(known, FOLDED_RECORDS)
            if not count and await self.folded_to() != known:
                continue  # another worker has folded since
            folded += count
            if count < FOLDED_RECORDS:
                break  # the few that came meanwhile can wait
        self._has_folded = folded > 0
        return folded

    async def fold_page(self, limit: int = PAGE_RECORDS) -> int:
        """Folds up to `limit` records; returns how many, 0 also if another worker was first."""
        return await self._fold_page(await self.folded_to(), limit)

    async def _fold_page(self, folded_to: str, limit: int) -> int:
        found = await execute(self._store, ReadLedger(folded_to, limit))
        done = 0
        while done < len(found):
            steps = _Step(self._series)
            begin = done
            while done < len(found) and steps.add(found[done][1], found[done][0]):
                done += 1
                if done % SLICE_RECORDS == 0:
                    await asyncio.sleep(0)
            position = found[done - 1][0]
            fold = FoldTotals(folded_to, position, steps.increments())
            if not await execute(self._store, fold):
                return begin
            self._folded_to = folded_to = position
            self._report(steps.unreadable)
        return done

    def _report(self, unreadable: Sequence[str]) -> None:
        if unreadable:
            log.error("record_unreadable", records=len(unreadable), name=unreadable[0])
            self._observer.unreadable(len(unreadable))

    async def remove_expired(self) -> None:
        """Removes rows that are past their time, in small steps. Raises `StoreUnavailable`."""
        kept: Mapping[TotalsKind, float] = {
            "quarter": KEEP_QUARTERS_SECONDS,
            "day": self._settings.keep_days_seconds,
            "user": self._settings.keep_users_seconds,
        }
        for kind, keep_seconds in kept.items():
            while await execute(self._store, RemoveTotals(kind, keep_seconds)):
                continue

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    async def read(
        self, since: float, until: float, *, bucket: Bucket, by_user: bool = False
    ) -> list[TotalsRow]:
        """The rows of all buckets that begin from `since` to before `until`, oldest first.

        With `by_user` there is a row for each user of a key, without model, size, quality and
        outcome; then the bucket is a day. The caller bounds the days: each takes time. Raises
        `StoreUnavailable`.
        """
        sums = await self.add_up(
            since, until, bucket=bucket, by_user=by_user, group_of=str, begin_of=float
        )
        rows = []
        for index, ((starts_at, row), amounts) in enumerate(sums.items(), start=1):
            rows.append(TotalsRow(starts_at, orjson.loads(row), decode_sums(amounts)))
            if index % SLICE_SLOTS == 0:
                await asyncio.sleep(0)
        return sorted(rows, key=lambda row: row.starts_at)

    async def add_up(
        self,
        since: float,
        until: float,
        *,
        bucket: Bucket,
        group_of: GroupOf,
        begin_of: BeginOf,
        by_user: bool = False,
        max_groups: int | None = None,
    ) -> dict[tuple[float, Any], dict[str, int]]:
        """As `read`, added up by begin and group; the amounts have their names in the store.

        It takes the memory of the groups and of the names of rows. Days from before a change of
        the time zone are made of their quarter hours. Raises `TooManyGroups` and `DaysUnknown`.
        """
        if bucket == "quarter" and by_user:
            raise ValueError("totals by user are by day")
        groups = Groups(max_groups)
        for part in await self._parts(
            since, until, bucket=bucket, begin_of=begin_of, by_user=by_user
        ):
            found, _ = await self._read_part(part, group_of, lambda: Groups(max_groups))
            if groups.sums:
                await groups.add_all(found)
            else:
                groups = found
        return groups.sums

    async def read_days(
        self, since: float, until: float, *, group_of: GroupOf, create: Callable[[], A]
    ) -> list[DaysRead[A]]:
        """Adds each row of the days to what `create` makes, with the start of the row's day.

        What it made has all records up to a position of the ledger, and none after it. Raises
        `DaysUnknown` and `StoreUnavailable`.
        """
        parts = await self._parts(since, until, bucket="day_in_zone", begin_of=float, by_user=False)
        return [
            DaysRead(part.since, part.until, *await self._read_part(part, group_of, create))
            for part in parts
        ]

    async def _parts(
        self, since: float, until: float, *, bucket: Bucket, begin_of: BeginOf, by_user: bool
    ) -> list[_Part]:
        """What is read from rows of quarter hours, and what from rows of days."""
        quarters = Series("quarter", "UTC")
        if bucket == "quarter":
            return [_Part(quarters, since, until, begin_of)]
        zone = "UTC" if bucket == "day_in_utc" else self._settings.time_zone
        days, calendar = Series("user" if by_user else "day", zone), Calendar(ZoneInfo(zone))
        middle = await self._first_day(since, until, zone, by_user=by_user)

        def begin_of_quarter(moment: float) -> float:
            return begin_of(calendar.day_at(moment).starts_at)

        parts = [
            _Part(quarters, since, middle, begin_of_quarter),
            _Part(days, middle, until, begin_of),
        ]
        return [part for part in parts if part.since < part.until]

    async def _read_part(
        self, part: _Part, group_of: GroupOf, create: Callable[[], A]
    ) -> tuple[A, str]:
        """What `create` made, with the part added, and the position of the last record in it."""
        # A key's rows become full once in a period, so this ends.
        while True:
            adder = create()
            reading = _Reading(part, adder, group_of)
            if await self._add_up(reading):
                return adder, reading.position

    async def _first_day(self, since: float, until: float, zone: str, *, by_user: bool) -> float:
        """The start of the first day that is read from rows of days. Raises `DaysUnknown`."""
        complete_since = await days_complete_since(self._store, zone)
        if since >= complete_since:
            return since
        kept_since = math.inf if by_user else time.time() - KEEP_QUARTERS_SECONDS
        if since < kept_since:
            raise DaysUnknown(min(complete_since, kept_since))
        day = Calendar(ZoneInfo(zone)).day_at(until)
        # A day that begins before the end is whole.
        return min(until if until == day.starts_at else day.ends_at, complete_since)

    async def _add_up(self, reading: _Reading) -> bool:
        """Reads totals and tail; False if they cannot be told apart and must be read again.

        Folding goes on meanwhile. Each page of rows says up to which record it is, so a record of
        the tail is added only if its row does not have it yet.
        """
        periods = reading.periods
        before = await execute(self._store, ReadTotalsState(periods))
        reading.full_groups = before.full_groups
        for period in periods:
            after: str | None = ""
            while after is not None:
                page = await execute(self._store, ReadTotals(period, after))
                async for row, slots in in_slices(page.rows):
                    reading.add_row(period, row, slots, checkpoint=page.checkpoint)
                after = page.after
        position, is_last = before.checkpoint, False
        while not is_last:
            found = await execute(self._store, ReadLedger(position, PAGE_RECORDS))
            for index, (position, data) in enumerate(found):
                reading.add_record(position, data)
                if index % SLICE_RECORDS == 0:
                    await asyncio.sleep(0)
            is_last = len(found) < PAGE_RECORDS
        reading.position = position
        now = await execute(self._store, ReadTotalsState(periods))
        return reading.is_clear(now.full_groups)


async def in_slices(rows: Iterable[tuple[str, Slots]]) -> AsyncIterator[tuple[str, Slots]]:
    """The rows of a page, with pauses in which other tasks run."""
    count = 0
    for row, slots in rows:
        yield row, slots
        count += len(slots)
        if count >= SLICE_SLOTS:
            count = 0
            await asyncio.sleep(0)


_Repeated: TypeAlias = dict[int, list[Any]]
"""Amounts and how often they are to be added, by identity: records alike share them."""


class _Step:
    """The increments of one `FoldTotals`."""

    def __init__(self, series: Sequence[Series]) -> None:
        self._series = series
        self._sums: dict[tuple[Period, int, str], tuple[str, str, dict[str, int]]] = {}
        self._same: dict[tuple[int, RecordRows], tuple[RecordAmounts, _Repeated]] = {}
        """By quarter hour and rows, which name all places of a record: the first such record, and
        what all of them add. Most are like many others."""
        self.unreadable: list[str] = []
        """Positions of the records that were left out."""

    def add(self, data: bytes, position: str) -> bool:
        """Adds a record; False if there may be no room for it."""
        if len(self._sums) + len(self._series) > MAX_INCREMENTS:
            return False
        record = decode_record(data)
        if record is None:
            self.unreadable.append(position)
            return True
        place = int(record.time // QUARTER_SECONDS), record.rows
        if (same := self._same.get(place)) is None:
            same = self._same[place] = record, {}
            self._add(record, {})  # what it will need of the room
        repeated, amounts = same[1], record.amounts
        if (found := repeated.get(id(amounts))) is None:
            found = repeated[id(amounts)] = [amounts, 0]
        found[1] += 1
        return True

    def _add(self, record: RecordAmounts, amounts: Mapping[str, int]) -> None:
        for series in self._series:
            period, slot = series.place(record.time)
            group, row, other = row_of(series, record)
            added = self._sums.setdefault((period, slot, row), (group, other, {}))
            add_amounts(added[2], amounts)

    def increments(self) -> tuple[Increment, ...]:
        """All increments so far. Call it once."""
        for record, repeated in self._same.values():
            sums: dict[str, int] = {}
            for amounts, count in repeated.values():
                for code, amount in amounts.items():
                    sums[code] = sums.get(code, 0) + count * amount
            self._add(record, sums)
        return tuple(
            Increment(period, slot, group, row, other, sums)
            for (period, slot, row), (group, other, sums) in self._sums.items()
        )


class Adder(Protocol):
    """Takes what a report reads."""

    def add(self, begin: float, group: Any, amounts: Mapping[str, int], /) -> None:
        """Adds amounts, by their names in the store."""


A = TypeVar("A", bound=Adder)


@dataclass(frozen=True, slots=True)
class DaysRead(Generic[A]):
    """Days that begin from `since` to before `until`, with all records up to `position`."""

    since: float
    until: float
    sums: A
    position: str


class Groups:
    """Sums of a report while it is read."""

    def __init__(self, max_groups: int | None = None) -> None:
        self.sums: dict[tuple[float, Any], dict[str, int]] = {}
        """By begin and group: amounts by their names in the store."""
        self._max_groups = max_groups

    def add(self, begin: float, group: object, amounts: Mapping[str, int]) -> None:
        """Raises `TooManyGroups`."""
        sums = self.sums.get((begin, group))
        if sums is None:
            if len(self.sums) == self._max_groups:
                raise TooManyGroups
            sums = self.sums[begin, group] = {}
        add_amounts(sums, amounts)

    async def add_all(self, others: Groups) -> None:
        """Adds other sums, in slices. Raises `TooManyGroups`."""
        for index, ((begin, group), amounts) in enumerate(others.sums.items(), start=1):
            self.add(begin, group, amounts)
            if index % SLICE_SLOTS == 0:
                await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a report's range, and the rows that it is read from."""

    series: Series
    since: float
    until: float
    begin_of: BeginOf


class _Reading:
    """Adds up rows of the store, and the records that they do not have yet."""

    def __init__(self, part: _Part, groups: Adder, group_of: GroupOf) -> None:
        self.position = ""
        """Of the last record that was read."""
        self._series = part.series
        self._groups = groups
        self._group_of = group_of
        self._begin_of = part.begin_of
        self._since, self._until = part.since, part.until
        periods = part.series.periods(max(0.0, part.since), min(part.until, MAX_TIME))
        self.periods = tuple(periods)
        self.full_groups: Mapping[str, frozenset[str]] = {}
        self._rows: dict[tuple[str, str], str] = {}
        """Period and row of the store → up to which record it is."""
        self._new: set[tuple[str, str]] = set()
        """Period and group of the rows that only the tail has."""
        self._begins: dict[tuple[str, int], float | None] = {}
        """Period and slot → the start that it is added to; None if the report leaves it out."""

    def add_row(
        self, period: str, row: str, slots: Mapping[int, Mapping[str, int]], *, checkpoint: str
    ) -> None:
        """Adds a row of the store. Of one that is there twice, either would be right."""
        if (period, row) in self._rows:
            return
        self._rows[period, row] = checkpoint
        if (group := self._group_of(row)) is not None:
            for slot, sums in slots.items():
                self._add(period, slot, group, sums)

    def add_record(self, position: str, data: bytes) -> None:
        """Adds a record of the tail, unless its row has it."""
        record = decode_record(data)
        if record is None:
            return
        period, slot = self._series.place(record.time)
        if period.name not in self.full_groups:  # not asked for
            return
        bounded, row, other = row_of(self._series, record)
        if (period.name, row) not in self._rows:
            if bounded in self.full_groups[period.name]:
                row = other
            else:
                self._new.add((period.name, bounded))
        # A row that no page had did not exist at the first page: it has none of the tail.
        is_new = position > self._rows.get((period.name, row), "")
        if is_new and (group := self._group_of(row)) is not None:
            self._add(period.name, slot, group, record.amounts)

    def _add(self, period: str, slot: int, group: object, amounts: Mapping[str, int]) -> None:
        if (period, slot) not in self._begins:
            starts_at = self._series.starts_at(period, slot)
            is_asked_for = self._since <= starts_at < self._until
            self._begins[period, slot] = self._begin_of(starts_at) if is_asked_for else None
        if (begin := self._begins[period, slot]) is not None:
            self._groups.add(begin, group, amounts)

    def is_clear(self, full_groups: Mapping[str, frozenset[str]]) -> bool:
        """Whether each new row is one: none of its group's records went to `other` meanwhile."""
        return all(group not in full_groups[period] for period, group in self._new)
