"""The days of this month and the month before, added up and kept in memory: for the overview.

They are read from the totals once, and again each day. After that only the ledger's new records are
added: so the sums have every settled purchase, and cost a call of the store while nothing happens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from datetime import date, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from gateway.billing.record_amounts import Sums, add_amounts, decode_record, decode_sums
from gateway.billing.totals import PAGE_RECORDS, SLICE_RECORDS, DaysRead, Totals
from gateway.calendar import Calendar
from gateway.store.batch import Batch, execute
from gateway.store.commands import ReadBooks, ReadLedger, SearchLedger
from gateway.store.protocol import Store
from gateway.tasks import SingleFlight

DAYS: Final = 30
"""Today and the days before it that the overview has."""
MAX_BEHIND: Final = 20_000
"""New records that are added one by one. With more, the totals are read again."""
MAX_PAGES: Final = 10
"""Of charged records that are searched for bills above their estimate."""
MAX_OVER_ESTIMATES: Final = 1000
OVER_ESTIMATE: Final = b'"over_estimate"'
"""The flag of a record whose bill was higher than what was reserved."""
_DIMENSIONS: Final = ("key", "team", "model")


class Spender(NamedTuple):
    """A key, a team or a model, and what it cost and saved in the last 30 days."""

    name: str
    cost_micros: int
    saved_micros: int


class DaySums(NamedTuple):
    """What a day adds up to; it has no requests if nothing happened."""

    starts_at: float
    ends_at: float
    sums: Sums


class RecentDays:
    """Sums of days, and of the keys, teams and models of the last 30 days."""

    def __init__(self, store: Store, totals: Totals, calendar: Calendar) -> None:
        self._store = store
        self._totals = totals
        self._calendar = calendar
        self._view: RecentView | None = None
        self._updates: SingleFlight[str, RecentView] = SingleFlight()

    @property
    def is_read(self) -> bool:
        """Whether the totals were read once."""
        return self._view is not None

    async def read(self, now: float, *, patience_seconds: float) -> RecentView | None:
        """The sums with all records of now.

        If that takes longer, as they were a moment ago; None if they were not read yet. Reading
        goes on in the background. Raises `StoreUnavailable`.
        """
        update = self._updates.run("days", lambda: self._update(now), name="recent_days")
        try:
            async with asyncio.timeout(patience_seconds):
                return await update
        except TimeoutError:
            view = self._view
            return view if view is not None and view.today == self._calendar.date_at(now) else None

    async def _update(self, now: float) -> RecentView:
        today = self._calendar.date_at(now)
        view = self._view
        if view is None or view.today != today or not await self._read_new(view):
            view = await self._read_all(today)
            await self._read_over_estimates(view, now)
            self._view = view
        view.as_of = now
        return view

    async def _read_all(self, today: date) -> RecentView:
        month = today.replace(day=1)
        before = (month - timedelta(days=1)).replace(day=1)
        until = self._calendar.start_of(today + timedelta(days=1))
        view = RecentView(today, self._calendar)
        for part in await self._totals.read_days(
            self._calendar.start_of(before),
            until,
            group_of=_group_of,
            create=lambda: RecentView(today, self._calendar),
        ):
            view.join(part)
        return view

    async def _read_over_estimates(self, view: RecentView, now: float) -> None:
        """Looks for bills above their estimate among the charged records of the last 24 hours."""
        after, pages = "", 0
        while pages == 0 or (after and pages < MAX_PAGES):
            search = SearchLedger(OVER_ESTIMATE, now - 86_400, now, is_charged=True, after=after)
            matches = await execute(self._store, search)
            for position, data in matches.records:
                if position <= view.position:
                    view.note_over_estimate(data)
            after, pages = matches.next, pages + 1

    async def _read_new(self, view: RecentView) -> bool:
        """Adds the records after the view's position; False if some of them may be gone."""
        begin, count, is_last = view.position, 0, False
        while not is_last:
            batch = Batch(self._store)
            page = batch.add(ReadLedger(view.position, PAGE_RECORDS))
            books = batch.add(ReadBooks())
            await batch.execute()
            removed_to = max(books.value.removed_to, books.value.free_removed_to)
            # Another store is behind the address, or records were removed unread.
            if books.value.ledger_end < begin or removed_to > begin:
                return False
            for index, (position, data) in enumerate(page.value, start=1):
                view.add_record(position, data)
                if index % SLICE_RECORDS == 0:
                    await asyncio.sleep(0)
            count, is_last = count + len(page.value), len(page.value) < PAGE_RECORDS
            if count >= MAX_BEHIND:
                return False
        return True


class RecentView:
    """The sums. They grow while new records are read, by whole records."""

    def __init__(self, today: date, calendar: Calendar) -> None:
        self.today: Final = today
        self.as_of = 0.0
        """Unix seconds: they have what was in the ledger then."""
        self.position = ""
        """Of the last record that they have."""
        self._calendar = calendar
        self._top_since = calendar.start_of(today - timedelta(days=DAYS - 1))
        self.days: dict[float, dict[str, int]] = {}
        self.spenders: dict[str, dict[str, list[int]]] = {name: {} for name in _DIMENSIONS}
        self._over_estimates: deque[float] = deque(maxlen=MAX_OVER_ESTIMATES)
        """The times of records with that flag."""
        self._parts: list[tuple[float, float, str]] = []
        """Days from … to, and up to which record they were read."""

    # ── adding ──────────────────────────────────────────────────────────────────────────────

    def add(self, begin: float, group: Mapping[str, Any], amounts: Mapping[str, int], /) -> None:
        """Adds the amounts of a row to its day, and to its key, team and model."""
        add_amounts(self.days.setdefault(begin, {}), amounts)
        cost, saved = amounts.get("c", 0), amounts.get("s", 0)
        if begin < self._top_since or not (cost or saved):
            return
        for dimension, spenders in self.spenders.items():
            if (name := group.get(dimension)) is not None:
                sums = spenders.setdefault(name, [0, 0])
                sums[0] += cost
                sums[1] += saved

    def add_record(self, position: str, data: bytes) -> None:
        """Adds a record of the ledger, unless its day was read with it."""
        self.position = position
        record = decode_record(data)
        if record is None:
            return
        begin = self._calendar.day_at(record.time).starts_at
        for since, until, read_to in self._parts:
            if since <= begin < until and position > read_to:
                self.add(begin, _group_of(record.rows.row), record.amounts)
        if OVER_ESTIMATE in data:
            self._over_estimates.append(record.time)

    def note_over_estimate(self, data: bytes) -> None:
        """Adds a record that was read with its day."""
        if (record := decode_record(data)) is not None:
            self._over_estimates.append(record.time)

    def join(self, part: DaysRead[RecentView]) -> None:
        """Adds days that were read on their own."""
        self.days |= part.sums.days
        for dimension, spenders in part.sums.spenders.items():
            for name, (cost, saved) in spenders.items():
                sums = self.spenders[dimension].setdefault(name, [0, 0])
                sums[0] += cost
                sums[1] += saved
        self._parts.append((part.since, part.until, part.position))
        # Records that only one of the parts has are read once more, for the others.
        self.position = min(read_to for _, _, read_to in self._parts)

    # ── reading ─────────────────────────────────────────────────────────────────────────────

    def day(self, day: date) -> DaySums:
        """What a day adds up to."""
        starts_at = self._calendar.start_of(day)
        ends_at = self._calendar.start_of(day + timedelta(days=1))
        return DaySums(starts_at, ends_at, decode_sums(self.days.get(starts_at, {})))

    def over_estimates(self, since: float) -> int:
        """How many bills were above their estimate since then, as far as is known."""
        return sum(at >= since for at in self._over_estimates)

    def names(self, dimension: str) -> Collection[str]:
        """Those that cost or saved anything in the last 30 days."""
        return self.spenders[dimension].keys()

    def last_days(self) -> list[DaySums]:
        """The last 30 days, the oldest first."""
        return [self.day(self.today - timedelta(days=ago)) for ago in reversed(range(DAYS))]

    def micros(self, code: str, since: date, until: date) -> int:
        """The sum of an amount over the days from `since` to before `until`."""
        begin, end = self._calendar.start_of(since), self._calendar.start_of(until)
        return sum(sums.get(code, 0) for at, sums in self.days.items() if begin <= at < end)

    def top(self, dimension: str, count: int) -> list[Spender]:
        """Those that cost most in the last 30 days, then those that saved most."""
        spenders = [Spender(name, *sums) for name, sums in self.spenders[dimension].items()]
        spenders.sort(key=lambda one: (-one.cost_micros, -one.saved_micros, one.name))
        return spenders[:count]


COST: Final = "c"
SAVED: Final = "s"
"""Amounts by their names in the store."""


@lru_cache(maxsize=8192)
def _group_of(row: str) -> Mapping[str, Any]:
    """The dimensions of a row that have a top."""
    dimensions = orjson.loads(row)
    return {name: dimensions[name] for name in _DIMENSIONS if name in dimensions}
