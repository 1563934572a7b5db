"""The queries of the dashboards, answered by a real Prometheus."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from tests.dashboards import COST, Selection, query
from tests.prometheus_server import Prometheus, Series, run_prometheus, write_series

HOUR = 3600
DAY = 24 * HOUR


def by_name(found: list[Series], label: str = "name") -> dict[str, float]:
    """The values of a result by one label."""
    values = {series.labels.get(label, ""): series.value for series in found}
    assert len(values) == len(found)
    return values


# ── a month, written by hand ────────────────────────────────────────────────────────────────


def day(number: int, month: int = 11, *, hour: float = 0) -> float:
    """The Unix time at which a day of 2026 begins, or some hours later."""
    return (datetime(2026, month, number, tzinfo=UTC) + timedelta(hours=hour)).timestamp()


INSTALLED = day(25, month=10)
"""The first scrape of Prometheus."""

NOW = day(11)
MONTHS = {day(1, month=10): day(1), day(1): day(1, month=12)}
WEEKS = {day(19, month=10) + 7 * n * DAY: day(26, month=10) + 7 * n * DAY for n in range(4)}

Values = Callable[[float], float | None]
"""The value of a series at a Unix time, hourly; None: the target did not answer, or no such series."""


def steps(*values: tuple[float, float | None]) -> Values:
    """A value from each of these times on."""

    def value(at: float) -> float | None:
        return next((value for since, value in reversed(values) if since <= at), None)

    return value


def window(edges: Mapping[float, float], *, end: bool = False) -> Values:
    def value(at: float) -> float:
        start = max(start for start in edges if start <= at)
        return edges[start] if end else start

    return value


def growing(start: float, per_day: float, *, since: float) -> Values:
    return lambda at: start + per_day * (at - since) / DAY if at >= since else None


class History:
    """Hourly samples in the text form of OpenMetrics."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, metric: str, values: Values, *, instance: str = "one", **labels: str) -> None:
        shown = {"job": "image-gateway", "instance": instance, **labels}
        inside = ",".join(f'{label}="{value}"' for label, value in shown.items())
        for hour in range(int(INSTALLED), int(NOW) + 1, HOUR):
            if (value := values(hour)) is not None:
                line = f"gateway_{metric}{{{inside}}} {value!r} {hour}"
                self._families.setdefault(metric, []).append(line)

    def total(
        self,
        scope: str,
        name: str,
        charged: Values,
        corrected: Values | None = None,
        *,
        first: Values | float | None = None,
        instance: str = "one",
    ) -> None:
        """A running total, and since when it is charged: None if an older gateway charged it first."""
        begun = first if callable(first) else steps((first or 0, first))
        subject = {"scope": scope, "name": name, "instance": instance}
        self.add("charged_usd_total", charged, **subject)
        self.add(
            "corrected_usd_total",
            corrected or (lambda at: None if charged(at) is None else 0.0),
            **subject,
        )
        self.add(
            "first_charge_timestamp_seconds",
            lambda at: None if charged(at) is None else begun(at),
            **subject,
        )

    def text(self) -> str:
        return "\n".join(line for lines in self._families.values() for line in lines)


def november() -> str:
    """A store with two gateways in November 2026, until the 11th."""
    history = History()
    for name, edges in (("month", MONTHS), ("week", WEEKS)):
        history.add("window_start_timestamp_seconds", window(edges), window=name)
        history.add("window_end_timestamp_seconds", window(edges, end=True), window=name)
    # Everyone may spend 90 dollars a month: 3 a day. They spend 4.
    everyone = {"scope": "everyone", "name": ""}
    spent = growing(0, 4, since=day(1))
    history.add("spend_usd", spent, window="month", **everyone)
    history.add("spend_usd", spent, window="month", instance="two", **everyone)
    history.add("limit_max", lambda _: 90.0, limit="usd_per_month", **everyone)
    history.add("limit_max", lambda _: 90.0, limit="usd_per_month", instance="two", **everyone)
    # A team that will keep within its limit, and one without a limit.
    for team, per_day in (("art", 1.0), ("web", 3.0)):
        labels = {"scope": "team", "name": team}
        history.add("spend_usd", growing(0, per_day, since=day(1)), window="month", **labels)
    history.add("limit_max", lambda _: 60.0, limit="usd_per_month", scope="team", name="art")

    model = "model"
    old = steps((INSTALLED, 50.0), (day(30, 10), 60.0), (day(6), 74.0), (day(10), 75.0))
    corrected = steps((INSTALLED, 2.0), (day(7), 5.0))
    history.total(model, "old", old, corrected, first=day(1, 9))
    # The second gateway came later, and shows the same.
    newer = steps((day(5), 60.0), (day(6), 74.0), (day(10), 75.0))
    history.total(model, "old", newer, corrected, first=day(1, 9), instance="two")
    # Bought for the first time between two scrapes: no sample is 0.
    history.total(model, "born", steps((day(8, hour=1), 7.0), (day(9, hour=1), 9.0)), first=day(8, hour=0.5))
    # Prometheus was installed after its first purchases, on an older gateway.
    history.total(model, "unknown", steps((INSTALLED, 100.0), (day(3), 104.0)))
    # No answer from half an hour before the range until the day after: bought within the outage.
    down = steps((INSTALLED, 10.0), (day(4), None), (day(5), 12.0))
    history.total(model, "down", down, first=day(1, 9))

    key = "key"
    # Revoked, then a new key with the same name.
    again = steps((INSTALLED, 100.0), (day(6), None), (day(8), 0.0), (day(9), 3.0))
    history.total(key, "again", again, first=steps((day(1, 9), day(1, 9)), (day(8), None), (day(9), day(9))))
    history.total(key, "revoked", steps((INSTALLED, 15.0), (day(5), 20.0), (day(9), None)), first=day(1, 9))
    history.total(key, "idle", steps((INSTALLED, 20.0)), first=day(1, 9))
    history.total(key, "new", steps((day(10), 0.0)))
    return history.text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def november_in_prometheus(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Prometheus]:
    folder = tmp_path_factory.mktemp("november")
    write_series(folder, november())
    async with run_prometheus(folder) as prometheus:
        yield prometheus


WEEK, MONTH = Selection(7 * DAY, interval_seconds=HOUR), Selection(30 * DAY, interval_seconds=HOUR)
IN_NOVEMBER = [
    ("Spent this month", "A", WEEK, {"": 40.0}),
    ("Forecast for the month", "A", WEEK, {"": 120.0}),
    ("Burn-down of everyone", "A", WEEK, {"": 40.0}),
    ("Burn-down of everyone", "B", WEEK, {"": 90.0}),
    ("Burn-down of everyone", "C", WEEK, {"": 30.0}),
    ("Burn-down of everyone", "D", WEEK, {"": 120.0}),
    ("Left of the teams' budgets", "A", WEEK, {"art": 50.0}),
    ("Teams this month", "A", WEEK, {"art": 10.0, "web": 30.0}),
    ("Teams this month", "B", WEEK, {"art": 60.0}),
    ("Teams this month", "C", WEEK, {"art": 30.0, "web": 90.0}),
    ("Teams this month", "D", WEEK, {"art": 0.5}),
]


@pytest.mark.parametrize(("panel", "ref", "selection", "expected"), IN_NOVEMBER)
@pytest.mark.asyncio(loop_scope="module")
async def test_budgets_of_a_month(
    november_in_prometheus: Prometheus,
    panel: str,
    ref: str,
    selection: Selection,
    expected: Mapping[str, float],
) -> None:
    asked = selection.fill(query(COST, panel, ref).expression)
    found = await november_in_prometheus.query(asked, at=NOW)
    assert by_name(found) == pytest.approx(expected)
