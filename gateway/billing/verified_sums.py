"""The sums of charged records, as every other book has to have them. Pure.

`billing.verification` reads the ledger into these and compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Final, NamedTuple
from zlib import crc32
from zoneinfo import ZoneInfo

import orjson

from gateway.billing.record_amounts import RecordAmounts, charged_amounts, decode_charge
from gateway.billing.running_totals import limit_subjects, total_names
from gateway.billing.totals_periods import QUARTER_SECONDS, Series
from gateway.billing.zone_changes import ROLLING_SECONDS, ZoneChange
from gateway.calendar import Calendar, next_month
from gateway.limits import CALENDAR_PERIODS, CalendarPeriod
from gateway.store.commands import WINDOW_GRACE_SECONDS, Period

UNITS: Final = ("images", "tokens", "usd_micros")

MAX_PENDING: Final = 50
"""Different records that are added to the sums at once. It takes about a millisecond."""


class Slot(NamedTuple):
    """A quarter hour or a day of the totals."""

    series: Series
    period: str
    number: int

    @property
    def starts_at(self) -> float:
        return self.series.starts_at(self.period, self.number)

    @property
    def shown(self) -> str:
        """As a difference names it."""
        kind = {"quarter": "quarter hour", "day": "day", "user": "day of users"}[self.series.kind]
        zone = self.series.zone
        begins = datetime.fromtimestamp(self.starts_at, ZoneInfo(zone))
        pattern = "%Y-%m-%d %H:%M" if self.series.kind == "quarter" else "%Y-%m-%d"
        return f"{kind} {begins:{pattern}} {zone}"


@dataclass(slots=True)
class SlotSums:
    """What a slot has."""

    images: int = 0
    tokens: int = 0
    usd_micros: int = 0
    usd_micros_by_kind: int = 0
    by_key: int = 0
    """The money of each key times a number of the key: it differs if a key has another's money."""

    @property
    def amounts(self) -> tuple[int, int, int, int]:
        return self.images, self.tokens, self.usd_micros, self.usd_micros_by_kind

    def add(self, key_id: str, amounts: tuple[int, int, int, int]) -> None:
        images, tokens, usd_micros, by_kind = amounts
        self.images += images
        self.tokens += tokens
        self.usd_micros += usd_micros
        self.usd_micros_by_kind += by_kind
        self.by_key += _number_of(key_id) * usd_micros


@lru_cache(maxsize=4096)
def _number_of(key_id: str) -> int:
    return crc32(key_id.encode()) | 1


class Range(NamedTuple):
    """What a window may have: one amount, unless it is not known where some records count."""

    low: int
    high: int


class LedgerSums:
    """Adds up charged records: by window, running total, and slot of the totals."""

    def __init__(self, zones: Sequence[ZoneChange], series: Sequence[Series]) -> None:
        self._zones = tuple(zones)
        self._calendars = {zone: Calendar(ZoneInfo(zone)) for _, zone in zones}
        self._series = tuple(series)
        self._windows: dict[str, dict[tuple[str, str], list[int]]] = {}
        self._doubtful: dict[tuple[str, str, str], list[Range]] = {}
        self.running: dict[str, list[int]] = {}
        """Charged and corrected micro-dollars by the name of the running total."""
        self.slots: dict[tuple[Series, str], dict[int, SlotSums]] = {}
        """By period of the totals."""
        self.touched: set[tuple[Series, str]] = set()
        """Periods of the totals with a new record; the reader clears it."""
        self.records = 0
        self.unreadable: list[str] = []
        self.oldest_window = 0.0
        """Records before it count in no window that is compared."""
        self._pending: dict[tuple[object, ...], tuple[RecordAmounts, list[int]]] = {}
        """What records alike add up to: they count in the same places, so they are added as one.
        Most are of few keys and of the last minute. That is a fifth of the time."""

    def add(self, position: str, data: bytes) -> None:
        """Adds a charged record; call `add_pending` before you read the sums."""
        self.records += 1
        record = decode_charge(data)
        if record is None:
            self.unreadable.append(position)
            return
        amounts = charged_amounts(record.amounts)
        images, tokens, usd_micros, by_kind = amounts
        alike = (
            # All zones change days at a quarter hour of UTC. A change of the zone may be between.
            record.time // QUARTER_SECONDS if len(self._zones) == 1 else record.time,
            record.time >= self.oldest_window,
            record.key_id,
            record.team,
            record.model,
            orjson.dumps(record.labels) if record.labels else b"",
            # What is doubtful is a range, whose ends amounts below and above zero move.
            (images < 0, tokens < 0, usd_micros < 0),
        )
        found = self._pending.get(alike)
        if found is None:
            if len(self._pending) == MAX_PENDING:
                self.add_pending()
            self._pending[alike] = record, list(amounts)
            return
        sums = found[1]
        sums[0] += images
        sums[1] += tokens
        sums[2] += usd_micros
        sums[3] += by_kind

    def add_pending(self) -> None:
        """Adds the records that came since the last call to the sums."""
        pending, self._pending = self._pending, {}
        for record, (images, tokens, usd_micros, by_kind) in pending.values():
            self._add(record, (images, tokens, usd_micros, by_kind))

    def _add(self, record: RecordAmounts, amounts: tuple[int, int, int, int]) -> None:
        subjects = limit_subjects(record.key_id, record.team)
        if record.time >= self.oldest_window:
            self._add_to_windows(subjects, record.time, amounts[:3])
        totals = total_names(record.key_id, record.team, record.model, record.labels)
        money = amounts[2]
        for total_name in totals:
            total = self.running.setdefault(total_name, [0, 0])
            total[money < 0] += abs(money)
        for series in self._series:
            period, number = series.place(record.time)
            name = (series, period.name)
            self.touched.add(name)
            slots = self.slots.setdefault(name, {})
            if number not in slots:
                slots[number] = SlotSums()
            slots[number].add(record.key_id, amounts)

    def _add_to_windows(
        self, subjects: Sequence[str], time: float, amounts: tuple[int, ...]
    ) -> None:
        labels, others = self._labels_at(time)
        for subject in subjects:
            windows = self._windows.setdefault(subject, {})
            for label in labels:
                if others and label not in others:
                    self._add_doubtful(subject, label, amounts)
                    continue
                sums = windows.setdefault(label, [0, 0, 0])
                for unit, amount in enumerate(amounts):
                    sums[unit] += amount
            for label in others:
                if label not in labels:
                    self._add_doubtful(subject, label, amounts)

    def _add_doubtful(self, subject: str, label: tuple[str, str], amounts: tuple[int, ...]) -> None:
        before = self._doubtful.get((subject, *label), [Range(0, 0)] * 3)
        self._doubtful[(subject, *label)] = [
            Range(low + min(0, amount), high + max(0, amount))
            for (low, high), amount in zip(before, amounts, strict=True)
        ]

    def _labels_at(
        self, time: float
    ) -> tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]:
        """The windows of a moment, and while the time zone is changing those of the other one."""
        zone = self._zones[0].zone
        other: str | None = None
        for before, change in pairwise(self._zones):
            if time >= change.since:
                zone = change.zone
            if abs(time - change.since) < ROLLING_SECONDS:
                other = before.zone if time >= change.since else change.zone
        labels = _labels(self._calendars[zone], time)
        return labels, () if other is None else _labels(self._calendars[other], time)

    def window(self, subject: str, period: str, label: str) -> tuple[Range, Range, Range]:
        """What a window may have spent, of images, tokens and micro-dollars."""
        sure = self._windows.get(subject, {}).get((period, label), [0, 0, 0])
        doubtful = self._doubtful.get((subject, period, label), [Range(0, 0)] * 3)
        images, tokens, usd_micros = (
            Range(amount + low, amount + high)
            for amount, (low, high) in zip(sure, doubtful, strict=True)
        )
        return images, tokens, usd_micros

    @property
    def subjects(self) -> Sequence[str]:
        """All limit subjects with a record in a window."""
        return list(self._windows)

    def forget(self, before: float) -> None:
        """Forgets windows and slots that ended before a time; those are not compared any more."""
        day = datetime.fromtimestamp(max(0.0, before), UTC).date()
        oldest = {"day": f"{day:%Y-%m-%d}", "week": f"{day:%G-W%V}", "month": f"{day:%Y-%m}"}
        for windows in self._windows.values():
            for period, label in [name for name in windows if name[1] < oldest[name[0]]]:
                del windows[period, label]
        for series, period in list(self.slots):
            if period_of(series, period).ends_at < before:
                del self.slots[series, period]


def period_of(series: Series, name: str) -> Period:
    """A period by its name."""
    first = series.starts_at(name, 1 if series.has_months else 0)
    return series.place(first)[0]


def _labels(calendar: Calendar, time: float) -> Sequence[tuple[str, str]]:
    windows = calendar.day_at(time).windows
    return [(period, windows[period].label) for period in CALENDAR_PERIODS]


class LiveWindow(NamedTuple):
    """A window whose counters are in the store."""

    period: CalendarPeriod
    label: str
    starts_at: float


def live_windows(zone: str, now: float) -> Iterator[LiveWindow]:
    """The windows that the store keeps at a time: those of now, and those that ended lately."""
    calendar = Calendar(ZoneInfo(zone))
    # An hour less: a window must not expire while it is compared.
    ends_after = now - WINDOW_GRACE_SECONDS + 3600
    today = calendar.date_at(now)
    for period in CALENDAR_PERIODS:
        first = _first_day(period, today)
        while calendar.start_of(_next(period, first)) > ends_after:
            window = calendar.day_at(calendar.start_of(first)).windows[period]
            yield LiveWindow(period, window.label, calendar.start_of(first))
            first = _first_day(period, first - timedelta(days=1))


def _first_day(period: CalendarPeriod, day: date) -> date:
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def _next(period: CalendarPeriod, first: date) -> date:
    if period == "month":
        return next_month(first)
    return first + timedelta(days=7 if period == "week" else 1)


def time_of_position(position: str) -> float:
    """When a record was appended, in Unix seconds; of a whole day when it began."""
    day, _, number = position.partition("/")
    if "-" in number:
        return int(number.partition("-")[0]) / 1e3
    if number:
        return int(number) / 1e6
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() if day else 0.0
