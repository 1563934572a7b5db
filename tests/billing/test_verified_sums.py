"""Charged records add up to the same sums, however many are added at once."""

from __future__ import annotations

import random
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.billing.totals import all_series
from gateway.billing.verified_sums import MAX_PENDING, UNITS, LedgerSums
from gateway.billing.zone_changes import ROLLING_SECONDS, ZoneChange
from gateway.calendar import Calendar
from gateway.images import Record
from gateway.limits import CALENDAR_PERIODS

CHANGED_AT = 1_790_812_800.0 - 6 * 3_600 + 77
"""On the last evening of a month, when Auckland has the next one; not at a quarter of an hour."""

ROLLED_AT = CHANGED_AT + ROLLING_SECONDS
"""From now on no window is doubtful."""

ONE_ZONE = [ZoneChange(0.0, "UTC")]
TWO_ZONES = [*ONE_ZONE, ZoneChange(CHANGED_AT, "Pacific/Auckland")]

# Each two of one quarter of an hour, and one of another day.
TIMES = [CHANGED_AT - 0.5, CHANGED_AT, ROLLED_AT - 0.5, ROLLED_AT, CHANGED_AT - 86_400]

BUYERS: list[dict[str, Any]] = [
    {"key_id": "key_1"},
    {"key_id": "key_1", "team": "art", "model": "m"},
    {"key_id": "key_2", "team": "art", "model": "m"},
    {"key_id": "key_2", "team": "art", "model": "m", "labels": {"a": "1"}},
    {"key_id": "key_2", "team": "art", "model": "m", "labels": {"a": "2"}},
]


def make_records(seed: int) -> list[Record]:
    rng = random.Random(seed)
    return [
        Record(
            "p",
            "r",
            rng.choice(TIMES),
            "alice",
            images=rng.randint(-5, 5),
            tokens={"image_out": rng.randint(-5, 5)},
            cost_micros=rng.randint(-5, 5),
            costs={"image_out": rng.randint(-5, 5)},
            **rng.choice(BUYERS),
        )
        for _ in range(4 * MAX_PENDING)
    ]


@pytest.mark.parametrize("zones", [ONE_ZONE, TWO_ZONES])
@pytest.mark.parametrize("oldest_window", [0.0, CHANGED_AT])
@pytest.mark.parametrize("seed", range(3))
def test_records_alike_add_up_as_each_of_them(
    zones: list[ZoneChange], oldest_window: float, seed: int
) -> None:
    records = make_records(seed)
    single, together = (LedgerSums(zones, all_series(zones[-1].zone)) for _ in range(2))
    for sums in (single, together):
        sums.oldest_window = oldest_window
        for position, record in enumerate(records):
            sums.add(str(position), record.encode())
            if sums is single:
                sums.add_pending()
        sums.add_pending()
    assert all_of(together, zones) == all_of(single, zones)
    charged, corrected = together.running["everyone"]
    assert charged - corrected == sum(record.cost_micros for record in records)


def all_of(sums: LedgerSums, zones: list[ZoneChange]) -> dict[str, Any]:
    """All that a verification reads of the sums."""
    labels = {
        (period, Calendar(ZoneInfo(zone)).day_at(time).windows[period].label)
        for _, zone in zones
        for time in TIMES
        for period in CALENDAR_PERIODS
    }
    windows = {
        (subject, *label): dict(zip(UNITS, sums.window(subject, *label), strict=True))
        for subject in ("key:key_1", "key:key_2", "team:art", "everyone")
        for label in labels
    }
    return {
        "windows": windows,
        "subjects": sorted(sums.subjects),
        "running": sums.running,
        "slots": sums.slots,
        "touched": sums.touched,
        "records": sums.records,
        "unreadable": sums.unreadable,
    }
