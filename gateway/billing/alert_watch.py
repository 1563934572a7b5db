"""Looks for what is worth an event: in the counters, in the totals, and in what workers noticed.

One worker at a time looks at the counters of all budgets every few seconds, so no request waits for
it. What a window's last seconds brought is in the totals, which are looked at once it is over.
What is worth an event is decided in `billing.alerts`. Each event is claimed before it is sent, so
several workers may notice the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from datetime import date
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import structlog

from gateway.billing.alerts import (
    SPIKE_MIN_MICROS,
    Alert,
    Alerts,
    LimitUse,
    Span,
    Top,
    as_event,
    span_at,
    top_of,
)
from gateway.billing.totals import Totals, TotalsRow
from gateway.calendar import Calendar
from gateway.events import Event, RevokedUse, Watched
from gateway.limits import CALENDAR_PERIODS, LIMITS, CalendarPeriod, Limit
from gateway.store.batch import execute
from gateway.store.commands import Counter, CounterState, PeekCounters
from gateway.store.protocol import Store
from gateway.store.turns import PART_OF_INTERVAL, take_turn

log = structlog.get_logger(__name__)

LOOK_EVERY_SECONDS: Final = 3.0
LOOK_KEPT_SECONDS: Final = 60.0
"""The same without a webhook: then events are only kept, and nothing waits for them."""
LOOK_BACK_EVERY_SECONDS: Final = 600.0
SUBJECTS_SECONDS: Final = 15.0
"""How long the list of limit subjects is used. Listing thousands of keys takes a while."""
PEEKED: Final = 200
"""Counters that are read at once: a millisecond of the store."""
CLOSE_SECONDS: Final = 3600.0
"""How long a window that is over is looked at: longer than a purchase takes."""
HISTORY_SECONDS: Final = 60 * 86_400.0
"""In which the active days are looked for that tell what a usual day costs."""
IN_USE_SECONDS: Final = 30 * 86_400.0
"""A model is in use if there was a request for it within this time."""
MAX_REFUSING: Final = 1000
"""Limits that have refused purchases, kept by a worker until its next look."""
_HALF_A_DAY: Final = 43_200.0

T = TypeVar("T")

Budget: TypeAlias = tuple[Watched, Limit]
"""One limit of one subject."""

ListWatched = Callable[[float], Awaitable[Sequence[Watched]]]
"""Lists the limit subjects with their limits at a time, in Unix seconds."""


class Publisher(Protocol):
    """Claims, keeps and sends events, as `webhooks.outbox` does."""

    @property
    def has_webhooks(self) -> bool:
        """Whether any event is sent anywhere."""

    def is_wanted(self, kind: str, team: str | None = None) -> bool:
        """Whether such an event is sent anywhere."""

    async def is_claimed(self, once: str, *, repeats: bool = False, to_send: bool = False) -> bool:
        """Whether an event was kept, and with `to_send` also that it was sent, or is to be."""

    async def publish(self, event: Event) -> bool:
        """Keeps an event, and sends it where it is wanted; False if that was done before."""


class AlertWatch:
    """Looks for alerts, and publishes their events."""

    def __init__(
        self,
        store: Store,
        totals: Totals,
        publisher: Publisher,
        *,
        alerts: Alerts,
        calendar: Calendar,
        list_watched: ListWatched,
        find_revoked_uses: Callable[[], Awaitable[Sequence[RevokedUse]]],
        retiring_models: Callable[[], Mapping[str, date]],
        worker: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._totals = totals
        self._publisher = publisher
        self.alerts = alerts
        self.calendar = calendar
        self._list_watched = list_watched
        self._find_revoked_uses = find_revoked_uses
        self._retiring_models = retiring_models
        self._worker = worker
        self._clock = clock
        self._watched: Sequence[Watched] = ()
        self._watched_at: float | None = None
        self._looked_at: float | None = None
        self._models_looked_on = ""
        """The day on which models were looked at without a webhook."""
        self._refusing: dict[tuple[str, str], None] = {}
        self._history: tuple[str, Mapping[str, Mapping[float, int]]] = ("", {})
        """The day for which it was read, and cost by subject and day."""
        self._rows: dict[tuple[float, float, bool], list[TotalsRow]] = {}
        """Totals that this look has read."""

    def note_refusal(self, subject: str, limit: str) -> None:
        """A limit has refused a purchase, or would have. If it is a budget, the next look tells."""
        if len(self._refusing) < MAX_REFUSING and _is_budget(limit):
            self._refusing[subject, limit] = None

    # ── every few seconds ───────────────────────────────────────────────────────────────────

    async def look(self) -> None:
        """Looks at what this worker noticed, and at its turn at all counters.

        Raises `StoreUnavailable`; the next look finds what this one did not publish.
        """
        now, every = self._clock(), LOOK_EVERY_SECONDS
        if not self._publisher.has_webhooks:
            every = LOOK_KEPT_SECONDS
            if self._looked_at is not None and 0 <= now - self._looked_at < every:
                return
        self._rows.clear()
        await self._look_at_refusals()
        await self._look_at_revoked_keys()
        self._looked_at = now
        seconds = every * PART_OF_INTERVAL
        if await take_turn(self._store, "alerts", self._worker, seconds=seconds):
            await self._look_at_limits()
            await self._look_at_spending(await self._all_watched())

    async def _look_at_refusals(self) -> None:
        noted = frozenset(self._refusing)
        if not noted:
            return
        found = _noted_budgets(await self._all_watched(), noted)
        if len(found) < len(noted):
            # Of a key or a limit that is newer than the list.
            found = _noted_budgets(await self._list_again(), noted)
        async for alert in self._find_alerts(found, is_refusing=True):
            await self.tell(alert)
        for key in noted:
            self._refusing.pop(key, None)

    async def _look_at_revoked_keys(self) -> None:
        for use in await self._find_revoked_uses():
            alert = self.alerts.of_revoked_key(
                use.watched,
                revoked_at=use.revoked_at,
                requests=use.requests,
                address=use.address,
                now=self._clock(),
            )
            await self._tell([alert])

    async def _look_at_limits(self) -> None:
        alerts = await self._new_limit_alerts(await self._all_watched())
        if alerts:
            # Some seconds ago, a limit may have been raised because it was almost used up.
            alerts = await self._new_limit_alerts(await self._list_again())
        await self._tell(alerts)

    async def _new_limit_alerts(self, watched: Sequence[Watched]) -> list[Alert]:
        # In a thread: of thousands of keys it takes long.
        budgets = await asyncio.to_thread(_budgets, watched)
        found = self._find_alerts(budgets)
        return [alert async for alert in found if not await self._is_known(alert)]

    async def _find_alerts(
        self, limits: Sequence[Budget], *, is_refusing: bool = False
    ) -> AsyncIterator[Alert]:
        """The alerts of these budgets. Those without any use have none, unless they refuse."""
        for page in _pages(limits):
            counters = (Counter(each.subject.name, lim.unit, lim.period) for each, lim in page)
            states = await execute(self._store, PeekCounters(tuple(counters)))
            used = [
                (budget, state)
                for budget, state in zip(page, states, strict=True)
                if is_refusing or state.used > 0 or state.reserved > 0
            ]
            if used:
                for alert in await asyncio.to_thread(self._alerts_of, used, is_refusing):
                    yield alert

    def _alerts_of(
        self, used: Iterable[tuple[Budget, CounterState]], is_refusing: bool
    ) -> list[Alert]:
        uses = (self._use(each, limit, state) for (each, limit), state in used)
        return [a for use in uses for a in self.alerts.of_limit(use, is_refusing=is_refusing)]

    def _use(self, watched: Watched, limit: Limit, state: CounterState) -> LimitUse:
        span = self._span_of(_calendar_period(limit), state)
        return LimitUse(
            watched,
            limit,
            watched.subject.rules[limit.name],
            span=span,
            used=state.used,
            reserved=state.reserved,
            now=span.ends_at - state.resets_in,
        )

    def _span_of(self, period: CalendarPeriod, state: CounterState) -> Span:
        """The window that the store has counted in.

        By the time that is left, because the store's clock may be behind its edge or before it. The
        last day of a window is the same for any moment of it, so half a day is left for clocks
        that differ.
        """
        end = self._clock() + state.resets_in
        window = span_at(self.calendar, period, end - _HALF_A_DAY)
        today = self.calendar.date_at(window.ends_at - max(state.resets_in, 0.001))
        first = self.calendar.date_at(window.starts_at)
        return Span(window.label, window.starts_at, window.ends_at, (today - first).days + 1)

    # ── spikes ──────────────────────────────────────────────────────────────────────────────

    async def _look_at_spending(self, watched: Sequence[Watched]) -> None:
        for page in _pages(watched):
            counters = tuple(Counter(each.subject.name, "usd_micros", "day") for each in page)
            states = await execute(self._store, PeekCounters(counters))
            for each, state in zip(page, states, strict=True):
                if state.used > SPIKE_MIN_MICROS:
                    await self._look_at_day(each, state)
                    await asyncio.sleep(0)  # of thousands, other tasks run in between

    async def _look_at_day(self, watched: Watched, state: CounterState) -> None:
        today = self._span_of("day", state)
        history = (await self._read_history(today)).get(watched.subject.name, {})
        alert = self.alerts.of_spending(watched, today, state.used, history)
        await self._tell([alert] if alert is not None else [])

    async def _read_history(self, today: Span) -> Mapping[str, Mapping[float, int]]:
        """The cost of the days before today, by subject and day. It is read once a day."""
        if self._history[0] != today.label:
            rows = await self._read(today.starts_at - HISTORY_SECONDS, today.starts_at)
            self._history = (today.label, await asyncio.to_thread(_costs_by_day, rows))
        return self._history[1]

    # ── now and then ────────────────────────────────────────────────────────────────────────

    async def look_back(self) -> None:
        """Looks at windows that are over, at the week of each team, and at retiring models.

        Raises `StoreUnavailable`.
        """
        self._rows.clear()
        seconds = LOOK_BACK_EVERY_SECONDS * PART_OF_INTERVAL
        if not await take_turn(self._store, "alerts_back", self._worker, seconds=seconds):
            return
        now = self._clock()
        for period in CALENDAR_PERIODS:
            span = span_at(self.calendar, period, now)
            if now - span.starts_at < CLOSE_SECONDS:
                await self._close(period, span_at(self.calendar, period, span.starts_at - 1))
        # A digest is for those who do not look themselves.
        if self._publisher.has_webhooks:
            await self._send_digests(now)
        await self._look_at_models(now)

    async def _close(self, period: CalendarPeriod, span: Span) -> None:
        """Tells what the last seconds of a window brought, by the totals."""
        used: Mapping[tuple[str, str], int] | None = None
        # The limits as they were then: a raise may have ended with the window.
        watched = await self._list_watched(span.ends_at - 1.0)
        for each, limit in await asyncio.to_thread(_budgets, watched):
            if limit.period != period:
                continue
            if used is None:
                rows = await self._read(span.starts_at, span.ends_at)
                used = await asyncio.to_thread(_used_by_subject, rows)
            use = LimitUse(
                each,
                limit,
                each.subject.rules[limit.name],
                span,
                used=used.get((each.subject.name, limit.unit), 0),
                reserved=0,
                now=span.ends_at,
            )
            await self._tell(self.alerts.of_limit(use))
            await asyncio.sleep(0)  # of thousands, other tasks run in between

    async def _send_digests(self, now: float) -> None:
        this_week = span_at(self.calendar, "week", now)
        # Late settlements of Sunday's purchases are in it then.
        if now - this_week.starts_at < CLOSE_SECONDS:
            return
        week = span_at(self.calendar, "week", this_week.starts_at - 1)
        before = span_at(self.calendar, "week", week.starts_at - 1)
        rows = await self._read(week.starts_at, week.ends_at)
        rows_before = await self._read(before.starts_at, before.ends_at)
        teams = await asyncio.to_thread(_by_team, rows)
        teams_before = await asyncio.to_thread(_by_team, rows_before)
        for team in sorted(teams):
            alert = self.alerts.of_week(team, week, teams[team], teams_before.get(team, ()))
            await self._tell([alert] if alert is not None else [])
            await asyncio.sleep(0)  # of thousands, other tasks run in between

    async def _look_at_models(self, now: float) -> None:
        today = span_at(self.calendar, "day", now)
        # For a model that is not in use, 30 days are read each time.
        if not self._publisher.has_webhooks and self._models_looked_on == today.label:
            return
        self._models_looked_on = today.label
        since = today.starts_at - IN_USE_SECONDS
        for model, shutdown in self._retiring_models().items():
            # As if it were in use: most of the time, the event was sent, and nothing is read.
            alert = self.alerts.of_model(model, shutdown, today, requests=1, since=since)
            if alert is None or await self._is_known(alert):
                continue
            rows = await self._read(since, now)
            requests = sum(
                row.sums.requests
                for row in rows
                # A request that was refused did not use the model.
                if row.dimensions.get("model") == model
                and row.dimensions.get("outcome") != "refused"
            )
            alert = self.alerts.of_model(model, shutdown, today, requests=requests, since=since)
            if alert is not None and await self.tell(alert):
                log.warning(
                    "model_retires",
                    model=model,
                    shutdown_date=shutdown.isoformat(),
                    days_left=alert.data["days_left"],
                    requests=requests,
                )

    # ── parts ───────────────────────────────────────────────────────────────────────────────

    async def tell(self, alert: Alert) -> bool:
        """Publishes the event of an alert; False if it was before.

        Raises `StoreUnavailable`.
        """
        if await self._is_known(alert):
            return False
        event = as_event(alert, await self._top(alert), now=self._clock())
        return await self._publisher.publish(event)

    def is_wanted(self, alert: Alert) -> bool:
        """Whether its event is sent anywhere."""
        return self._publisher.is_wanted(alert.kind, alert.team)

    async def _tell(self, alerts: Iterable[Alert]) -> None:
        for alert in alerts:
            await self.tell(alert)

    async def _is_known(self, alert: Alert) -> bool:
        """Whether there is nothing to do. Totals are only read for an event that is new."""
        to_send = self.is_wanted(alert)
        return await self._publisher.is_claimed(alert.once, repeats=alert.repeats, to_send=to_send)

    async def _top(self, alert: Alert) -> Top:
        until = self._clock() if alert.before is None else min(alert.before, self._clock())
        rows = await self._read(alert.since, until)
        if "model" in alert.dimensions:
            return await asyncio.to_thread(top_of, rows, (), alert.dimensions)
        user_rows = await self._read(alert.since, until, by_user=True)
        return await asyncio.to_thread(top_of, rows, user_rows, alert.dimensions)

    async def _read(
        self, since: float, until: float, *, by_user: bool = False
    ) -> Sequence[TotalsRow]:
        """The rows of days; those of one look are read once."""
        # The end grows with the clock, and is the same day.
        key = since, span_at(self.calendar, "day", until - 0.001).ends_at, by_user
        if key not in self._rows:
            self._rows[key] = await self._totals.read(
                since, until, bucket="day_in_zone", by_user=by_user
            )
        return self._rows[key]

    async def _all_watched(self) -> Sequence[Watched]:
        now = self._clock()
        if self._watched_at is None or not 0 <= now - self._watched_at < SUBJECTS_SECONDS:
            return await self._list_again()
        return self._watched

    async def _list_again(self) -> Sequence[Watched]:
        now = self._clock()
        self._watched, self._watched_at = await self._list_watched(now), now
        return self._watched


def _pages(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[begin : begin + PEEKED] for begin in range(0, len(items), PEEKED))


def _budgets(watched: Iterable[Watched]) -> list[Budget]:
    """The limits of calendar windows. Rates have no window in which an event could be the first."""
    return [
        (each, LIMITS[name])
        for each in watched
        for name, rule in each.subject.rules.items()
        if _is_budget(name) and rule.maximum > 0
    ]


def _noted_budgets(watched: Iterable[Watched], noted: Collection[tuple[str, str]]) -> list[Budget]:
    """Those whose subjects and limits were noted."""
    subjects = {subject for subject, _ in noted}
    budgets = _budgets(each for each in watched if each.subject.name in subjects)
    return [(each, limit) for each, limit in budgets if (each.subject.name, limit.name) in noted]


def _is_budget(limit: str) -> bool:
    """Whether it is a limit of a calendar window."""
    return limit in LIMITS and LIMITS[limit].period in CALENDAR_PERIODS


def _calendar_period(limit: Limit) -> CalendarPeriod:
    return next(period for period in CALENDAR_PERIODS if period == limit.period)


def _used_by_subject(rows: Iterable[TotalsRow]) -> Mapping[tuple[str, str], int]:
    """What the rows add up to by subject and unit, as the counters do."""
    used: dict[tuple[str, str], int] = defaultdict(int)
    for row in rows:
        amounts = {
            "usd_micros": row.sums.cost_micros,
            "images": row.sums.images_bought,
            "tokens": sum(row.sums.tokens.values()),
        }
        for subject in _subjects_of(row):
            for unit, amount in amounts.items():
                used[subject, unit] += amount
    return used


def _costs_by_day(rows: Iterable[TotalsRow]) -> Mapping[str, Mapping[float, int]]:
    costs: dict[str, dict[float, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        for subject in _subjects_of(row):
            costs[subject][row.starts_at] += row.sums.cost_micros
    return costs


def _by_team(rows: Iterable[TotalsRow]) -> Mapping[str, Sequence[TotalsRow]]:
    found: dict[str, list[TotalsRow]] = defaultdict(list)
    for row in rows:
        if team := row.dimensions.get("team"):
            found[team].append(row)
    return found


def _subjects_of(row: TotalsRow) -> Iterable[str]:
    dimensions: Mapping[str, Any] = row.dimensions
    yield "everyone"
    if dimensions.get("key_id"):
        yield f"key:{dimensions['key_id']}"
    if dimensions.get("team"):
        yield f"team:{dimensions['team']}"
