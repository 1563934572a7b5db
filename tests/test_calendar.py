"""Calendar windows, compared with a calendar that looks at every minute."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.calendar import Calendar, Day

MINUTE, DAY = 60, 86_400
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Asia/Kolkata",  # half an hour off
    "Australia/Lord_Howe",  # half an hour of summer time
    "America/Asuncion",  # skips midnight
    "Africa/Cairo",  # skips midnight
    "Asia/Beirut",  # skips midnight
    "America/Havana",  # has midnight twice
    "America/St_Johns",  # went back from 00:01 to 23:01
    "Pacific/Apia",  # skipped a whole day
    "Pacific/Kiritimati",  # 14 hours ahead
    "Africa/Casablanca",
)


def moment(zone: str, *at: int) -> float:
    return datetime(*at, tzinfo=ZoneInfo(zone)).timestamp()  # type: ignore[arg-type,misc]


def minutes_of(zone: ZoneInfo, now: float) -> tuple[date, int, int]:
    """The day at `now`, its first minute, and the first minute after it.

    A day begins when its date, or a later one, is on the clock for the first time.
    """
    latest, begins = date.min, 0
    start = int(now) // MINUTE * MINUTE
    for at in range(start - 2 * DAY, start + MINUTE, MINUTE):
        if (today := datetime.fromtimestamp(at, zone).date()) > latest:
            latest, begins = today, at
    ends = start
    while datetime.fromtimestamp(ends, zone).date() <= latest:
        ends += MINUTE
    return latest, begins, ends


def first_minute(zone: ZoneInfo, day: date) -> int:
    """When a date, or a later one, is on the clock for the first time."""
    at = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) - DAY
    while datetime.fromtimestamp(at, zone).date() < day:
        at += MINUTE
    return at


def check(name: str, now: float) -> None:
    zone = ZoneInfo(name)
    day = Calendar(zone).day_at(now)
    today, begins, ends = minutes_of(zone, now)
    assert (day.windows["day"].label, day.starts_at, day.ends_at) == (str(today), begins, ends)
    assert day.windows["day"].ends_at == ends
    year, week, weekday = today.isocalendar()
    next_monday = today + timedelta(days=8 - weekday)
    assert day.windows["week"] == (f"{year}-W{week:02}", first_minute(zone, next_monday))
    next_month = date(today.year + today.month // 12, today.month % 12 + 1, 1)
    month = f"{today.year}-{today.month:02}"
    assert day.windows["month"] == (month, first_minute(zone, next_month))


@settings(max_examples=60, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    now=st.floats(moment("UTC", 1980, 1, 1), moment("UTC", 2037, 1, 1)),
)
@example(zone="UTC", now=moment("UTC", 1986, 10, 2) - 2e-7)
def test_any_moment_is_in_the_windows_that_a_clock_on_the_wall_shows(zone: str, now: float) -> None:
    check(zone, now)


@settings(max_examples=60, deadline=None)
@given(zone=st.sampled_from(ZONES), year=st.integers(1980, 2036), hours=st.floats(-30, 30))
def test_a_moment_around_a_change_of_the_clock_too(zone: str, year: int, hours: float) -> None:
    noons = [moment("UTC", year, 1, 1, 12) + DAY * number for number in range(366)]
    offsets = [datetime.fromtimestamp(noon, ZoneInfo(zone)).utcoffset() for noon in noons]
    for noon, before, after in zip(noons, offsets, offsets[1:], strict=False):
        if before != after:
            check(zone, noon + 3600 * hours)


@pytest.mark.long
def test_every_zone_of_this_machine_at_some_of_its_changes() -> None:
    for name in sorted(available_timezones()):
        zone, chosen = ZoneInfo(name), random.Random(name)
        noons = range(int(moment("UTC", 1980, 1, 1, 12)), int(moment("UTC", 2037, 1, 1)), DAY)
        offsets = [datetime.fromtimestamp(noon, zone).utcoffset() for noon in noons]
        changes = [n for n, a, b in zip(noons, offsets, offsets[1:], strict=False) if a != b]
        for noon in chosen.sample(changes, min(3, len(changes))):
            check(name, noon + chosen.randrange(2 * DAY) - DAY // 2)


@pytest.mark.parametrize(
    ("zone", "at", "begins", "hours"),
    [
        ("Europe/Berlin", (2026, 3, 29, 12), (2026, 3, 29, 0), 23),
        ("Europe/Berlin", (2026, 10, 25, 12), (2026, 10, 25, 0), 25),
        ("Asia/Kolkata", (2026, 7, 1, 0, 10), (2026, 7, 1, 0), 24),
        ("America/Asuncion", (2023, 10, 1, 12), (2023, 10, 1, 1), 23),
        ("Africa/Cairo", (2024, 4, 26, 12), (2024, 4, 26, 1), 23),
        ("Asia/Beirut", (2021, 3, 28, 12), (2021, 3, 28, 1), 23),
        ("America/Havana", (2023, 11, 5, 12), (2023, 11, 5, 0), 25),
        ("Pacific/Apia", (2011, 12, 31, 12), (2011, 12, 31, 0), 24),
    ],
)
def test_a_day_begins_at_its_first_instant(
    zone: str, at: tuple[int, ...], begins: tuple[int, ...], hours: int
) -> None:
    day = Calendar(ZoneInfo(zone)).day_at(moment(zone, *at))
    assert day.starts_at == moment(zone, *begins)
    assert day.ends_at - day.starts_at == hours * 3600


@pytest.mark.parametrize(
    ("at", "week", "monday"),
    [
        ((2026, 12, 31), "2026-W53", (2027, 1, 4)),
        ((2027, 1, 3, 23, 59), "2026-W53", (2027, 1, 4)),
        ((2027, 1, 4), "2027-W01", (2027, 1, 11)),
        ((2024, 12, 30), "2025-W01", (2025, 1, 6)),
    ],
)
def test_a_week_begins_on_monday_also_across_a_new_year(
    at: tuple[int, ...], week: str, monday: tuple[int, ...]
) -> None:
    window = Calendar().day_at(moment("UTC", *at)).windows["week"]
    assert window == (week, moment("UTC", *monday))


def test_a_clock_that_is_set_back_across_midnight_does_not_bring_a_day_back() -> None:
    calendar = Calendar(ZoneInfo("America/St_Johns"))
    midnight = int(moment("America/St_Johns", 2010, 11, 7))
    days = [calendar.day_at(midnight + seconds) for seconds in (-1, 0, 59, 60, 3600, 7200)]
    assert [day.windows["day"].label for day in days] == ["2010-11-06"] + ["2010-11-07"] * 5


def test_a_day_that_is_known_is_not_computed_again() -> None:
    calendar = Calendar(ZoneInfo("Europe/Berlin"))
    at: Callable[[int], Day] = calendar.day_at
    noon = int(moment("Europe/Berlin", 2026, 5, 1, 12))
    assert at(noon) is at(noon + 1)
    assert at(noon) is not at(noon + DAY)
