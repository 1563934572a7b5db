"""What is worth an event, and what it says: pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing.alerts import (
    SPIKE_ACTIVE_DAYS,
    Alerts,
    LimitUse,
    Span,
    Top,
    Watched,
    as_event,
    show_usd,
    span_at,
    top_of,
)
from gateway.billing.record_amounts import Sums
from gateway.billing.totals import TotalsRow
from gateway.calendar import Calendar
from gateway.images import LimitRule, LimitSubject
from gateway.limits import LIMITS

BERLIN = ZoneInfo("Europe/Berlin")
ALERTS = Alerts(BERLIN, "Europe/Berlin")
CALENDAR = Calendar(BERLIN)
MONTH = LIMITS["usd_per_month"]
DAY = 86_400.0
NOVEMBER_9 = 1_794_222_000.0  # 2026-11-09 12:00 in Berlin
USD = 1_000_000


def use(used: int, *, maximum: int = 100 * USD, now: float = NOVEMBER_9, **rule) -> LimitUse:
    rules = {MONTH.name: LimitRule(maximum, **rule)}
    watched = Watched(LimitSubject("key:1", "key", "alice", rules), "art")
    span = span_at(CALENDAR, "month", now)
    return LimitUse(watched, MONTH, rules[MONTH.name], span, used=used, reserved=0, now=now)


def names(given_use: LimitUse, **more) -> list[str]:
    return [alert.once for alert in ALERTS.of_limit(given_use, **more)]


# ── limits ──────────────────────────────────────────────────────────────────────────────────


def test_each_part_that_was_crossed_is_an_event_of_its_own():
    assert names(use(49 * USD, now=NOVEMBER_9 + 18 * DAY)) == []
    assert names(use(90 * USD, warn_at=(0.9, 0.5), now=NOVEMBER_9 + 20 * DAY)) == [
        "limit_crossed|key:1|usd_per_month|2026-11|0.5",
        "limit_crossed|key:1|usd_per_month|2026-11|0.9",
    ]


def test_a_budget_is_exhausted_once_it_is_used_or_refuses():
    exhausted = "limit_exhausted|key:1|usd_per_month|2026-11"
    assert exhausted in names(use(100 * USD))
    assert exhausted in names(use(10 * USD), is_refusing=True)
    assert exhausted not in names(use(99 * USD))


def test_a_limit_of_nothing_is_no_event():
    assert names(use(0, maximum=0), is_refusing=True) == []


def test_shadow_mode_says_that_nothing_is_refused():
    *_, exhausted = ALERTS.of_limit(use(100 * USD, mode="shadow"))
    assert "Nothing is refused" in exhausted.text
    assert exhausted.data["mode"] == "shadow"


@given(
    used=st.integers(1, 200 * USD),
    maximum=st.integers(1, 200 * USD),
    seconds=st.floats(0, 30 * DAY - 3600),
)
def test_a_budget_is_projected_from_the_third_day_on(used, maximum, seconds):
    begin = span_at(CALENDAR, "month", NOVEMBER_9)
    now = begin.starts_at + seconds
    seen = use(used, maximum=maximum, now=now)
    is_projected = "projected_over|key:1|usd_per_month|2026-11" in names(seen)
    days, whole = seconds / DAY, (begin.ends_at - begin.starts_at) / DAY
    is_over = seen.span.day >= 3 and used < maximum and int(used / days * whole) > maximum
    # Floats may differ in the last bit, which only matters at the edge.
    if abs(used * whole - maximum * max(days, 1e-9)) > 1:
        assert is_projected == is_over


def test_the_third_day_begins_at_midnight_of_the_time_zone():
    begin = span_at(CALENDAR, "month", NOVEMBER_9).starts_at
    assert "projected_over" not in names(use(90 * USD, now=begin + 2 * DAY - 1))[-1]
    assert "projected_over" in names(use(90 * USD, now=begin + 2 * DAY))[-1]


@pytest.mark.parametrize(
    ("moment", "period", "label", "hours", "day"),
    [
        ("2026-03-29", "day", "2026-03-29", 23, 1),
        ("2026-10-25", "day", "2026-10-25", 25, 1),
        ("2026-03-29", "week", "2026-W13", 167, 7),
        ("2026-10-25", "month", "2026-10", 745, 25),
    ],
)
def test_windows_with_a_change_of_clocks(moment, period, label, hours, day):
    noon = CALENDAR.start_of(date.fromisoformat(moment)) + 12 * 3600
    span = span_at(CALENDAR, period, noon)
    assert (span.label, (span.ends_at - span.starts_at) / 3600, span.day) == (label, hours, day)


# ── spending ────────────────────────────────────────────────────────────────────────────────


def history(*costs: int) -> dict[float, int]:
    return {number * DAY: cost for number, cost in enumerate(costs)}


TODAY = span_at(CALENDAR, "day", NOVEMBER_9)
ALICE = use(0).watched


@pytest.mark.parametrize(
    ("costs", "today", "is_spike"),
    [
        ([2 * USD] * 14, 6 * USD, False),  # exactly three times
        ([2 * USD] * 14, 6 * USD + 1, True),
        ([USD] * 14, 5 * USD, False),  # not above five dollars
        ([USD] * 14, 5 * USD + 1, True),
        ([2 * USD] * 13, 100 * USD, False),  # too few days
        ([2 * USD, 0] * 14, 6 * USD + 1, True),  # days without spending do not count
        ([100 * USD] + [2 * USD] * 14, 6 * USD + 1, True),  # the last 14 count
        ([2 * USD] * 14 + [-USD], 6 * USD + 1, True),  # a day of corrections is no active one
    ],
)
def test_a_day_is_a_spike_above_three_times_the_usual_and_five_dollars(costs, today, is_spike):
    alert = ALERTS.of_spending(ALICE, TODAY, today, history(*costs))
    assert (alert is not None) == is_spike


@given(st.lists(st.integers(0, 50 * USD), max_size=40), st.integers(0, 200 * USD))
def test_a_spike_is_as_its_definition_says(costs, today):
    active = [cost for cost in costs if cost > 0][-SPIKE_ACTIVE_DAYS:]
    is_spike = len(active) == SPIKE_ACTIVE_DAYS and today > 5 * USD and today * 14 > 3 * sum(active)
    assert (ALERTS.of_spending(ALICE, TODAY, today, history(*costs)) is not None) == is_spike


# ── weeks and models ────────────────────────────────────────────────────────────────────────


def row(cost: int, **dimensions: str) -> TotalsRow:
    return TotalsRow(0.0, dimensions, Sums(requests=1, images_bought=1, cost_micros=cost))


def test_a_team_without_requests_gets_no_digest():
    week = span_at(CALENDAR, "week", NOVEMBER_9)
    rows = [row(2 * USD, team="art"), row(USD, team="sales")]
    digest = ALERTS.of_week("art", week, rows, [row(5 * USD, team="art")])
    assert digest is not None
    assert (digest.data["cost_usd"], digest.data["cost_usd_before"]) == (2.0, 5.0)
    assert "2026-W46" in digest.once
    assert ALERTS.of_week("none", week, rows, rows) is None


@pytest.mark.parametrize(
    ("days", "threshold"), [(61, None), (60, 60), (15, 60), (14, 14), (1, 1), (0, 0), (-1, None)]
)
def test_a_model_in_use_retires_at_these_distances(days, threshold):
    shutdown = date.fromisoformat(TODAY.label) + timedelta(days=days)
    alert = ALERTS.of_model("dall-e-3", shutdown, TODAY, requests=5, since=0.0)
    assert (alert and alert.data["threshold"]) == threshold
    assert ALERTS.of_model("dall-e-3", shutdown, TODAY, requests=0, since=0.0) is None


# ── what an event says ──────────────────────────────────────────────────────────────────────


def test_an_event_names_the_top_three_of_its_scope():
    rows = [
        row(cost, key=key, key_id=key, team=team, model=model)
        for cost, key, team, model in [
            (5, "a", "art", "m1"),
            (4, "b", "art", "m1"),
            (3, "c", "art", "m2"),
            (2, "d", "art", "m3"),
            (1, "e", "art", "m4"),
            (99, "f", "sales", "m5"),
            (-7, "a", "art", "m4"),
        ]
    ]
    users = [row(3, key_id="a", team="art", user="ann"), row(9, team="sales", user="sam")]
    top = top_of(rows, users, {"team": "art"})
    assert [spender.name for spender in top.keys] == ["b", "c", "d"]
    assert (top.models[0].name, top.models[0].cost_micros) == ("m1", 9)
    assert [spender.name for spender in top.users] == ["ann"]
    (crossed, *_) = ALERTS.of_limit(use(60 * USD))
    event = as_event(crossed, top, now=NOVEMBER_9)
    first, *others = event.text.splitlines()
    assert first == (
        "Key alice has used 60% of its dollars per month: $60.00 of $100.00. The limit resets at "
        "2026-12-01 00:00 (Europe/Berlin)."
    )
    assert others == [
        "Top keys: b $0.000004, c $0.000003, d $0.000002",
        "Top models: m1 $0.000009, m2 $0.000003, m3 $0.000002",
        "Top users: ann $0.000003",
    ]
    assert event.data["top"]["users"] == [{"name": "ann", "cost_usd": 0.000003}]


def test_a_name_cannot_begin_a_line_of_its_own():
    top = top_of([row(1, key="a\nTop keys: mallory\u2028")], (), {})
    event = as_event(replace(ALERTS.of_limit(use(60 * USD))[0]), top, now=0.0)
    assert len(event.text.splitlines()) == 2


def test_an_event_without_spending_names_nobody():
    (crossed, *_) = ALERTS.of_limit(use(60 * USD))
    assert as_event(crossed, Top(), now=0.0).text == crossed.text


@pytest.mark.parametrize(
    ("micros", "shown"),
    [
        (0, "$0.00"),
        (1, "$0.000001"),
        (9_999, "$0.009999"),
        (1_234_567_890, "$1,234.57"),
        (-USD, "-$1.00"),
    ],
)
def test_money_for_people(micros, shown):
    assert show_usd(micros) == shown


def test_a_span_has_its_days():
    assert span_at(CALENDAR, "month", NOVEMBER_9) == Span("2026-11", 1793487600.0, 1796079600.0, 9)
