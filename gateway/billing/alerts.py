"""Alerts: what is worth an event, as data. Pure.

Each function gets what was read of counters, totals or the model table, and returns what people
should know of it. Reading is `billing.alert_watch`; sending each event once is `webhooks`. The
rules are `docs/reference/webhooks.md#events`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, tzinfo
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from gateway.billing.forecast import forecast
from gateway.billing.totals import TotalsRow
from gateway.calendar import Calendar
from gateway.events import Event, EventKind, Watched
from gateway.images import LimitRule, LimitSubject
from gateway.limits import MICROS_PER_USD, CalendarPeriod, Limit

TOP: Final = 3
"""Keys, models and users that an event names."""
MIN_PROJECTED_DAY: Final = 3
"""The first day of a window on which its end is projected."""
SPIKE_FACTOR: Final = 3
SPIKE_ACTIVE_DAYS: Final = 14
SPIKE_MIN_MICROS: Final = 5 * MICROS_PER_USD
RETIRES_DAYS: Final = (0, 1, 14, 60)
"""Days before a model retires at which there is an event; 0 is the day itself."""
REVOKED_SECONDS: Final = 3600.0
"""The time between two events of one revoked key."""
MAX_NAME: Final = 128
"""Characters of a name in an event."""

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Span:
    """A calendar window that has begun."""

    label: str
    starts_at: float
    ends_at: float
    """Both in Unix seconds."""
    day: int
    """Of its days, the one that is looked at; 1 is the first."""


class LimitUse(NamedTuple):
    """A budget of one subject, as its counter was seen."""

    watched: Watched
    limit: Limit
    rule: LimitRule
    span: Span
    used: int
    reserved: int
    now: float
    """Unix seconds of the store."""


class Spender(NamedTuple):
    """A key, model or user, and what it cost."""

    name: str
    cost_micros: int


class Top(NamedTuple):
    """Those that cost most, most expensive first."""

    keys: tuple[Spender, ...] = ()
    models: tuple[Spender, ...] = ()
    users: tuple[Spender, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """Something to tell, before it is known who spent most."""

    kind: EventKind
    once: str
    until: float
    text: str
    data: Mapping[str, Any]
    team: str | None
    since: float
    """From when on the top three are counted, in Unix seconds."""
    before: float | None = None
    """Until when; None: until now."""
    dimensions: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """The rows of totals that are counted."""
    repeats: bool = False


def as_event(alert: Alert, top: Top, *, now: float) -> Event:
    """The event of an alert."""
    lines = [
        f"Top {name}: {', '.join(f'{s.name} {show_usd(s.cost_micros)}' for s in spenders)}"
        for name, spenders in top._asdict().items()
        if spenders
    ]
    shown = {
        name: [{"name": s.name, "cost_usd": dollars(s.cost_micros)} for s in spenders]
        for name, spenders in top._asdict().items()
    }
    return Event(
        kind=alert.kind,
        once=alert.once,
        until=alert.until,
        time=now,
        text="\n".join([alert.text, *lines]),
        data={**alert.data, "top": shown},
        team=alert.team,
        repeats=alert.repeats,
    )


class Alerts:
    """Makes alerts. Times are shown in the time zone of the books."""

    def __init__(self, zone: tzinfo, zone_name: str) -> None:
        self._zone = zone
        self._zone_name = zone_name

    # ── limits ──────────────────────────────────────────────────────────────────────────────

    def of_limit(self, use: LimitUse, *, is_refusing: bool = False) -> list[Alert]:
        """The alerts of a budget. `is_refusing`: it has just refused a purchase, or would have.

        A maximum of 0 forbids purchases on purpose, and makes none.
        """
        maximum = use.rule.maximum
        if maximum <= 0:
            return []
        alerts = [
            self._crossed(use, threshold)
            for threshold in sorted(set(use.rule.warn_at))
            if use.used >= threshold * maximum and threshold > 0
        ]
        if use.used >= maximum or is_refusing:
            alerts.append(self._exhausted(use))
        elif (projected := _projected(use)) > maximum:
            alerts.append(self._projected_over(use, projected))
        return alerts

    def _crossed(self, use: LimitUse, threshold: float) -> Alert:
        text = (
            f"{show_scope(use.watched.scope)} has used {_percent(use.used / use.rule.maximum)} of "
            f"{_limit_of(use)}: {_used_of(use)}. {self._reset(use.span)}"
        )
        return self._of_limit(use, "limit_crossed", text, threshold=threshold)

    def _exhausted(self, use: LimitUse) -> Alert:
        is_used_up = use.used >= use.rule.maximum
        happened = f"used up {_limit_of(use)}: {_used_of(use)}"
        if not is_used_up:
            happened = f"too little of {_limit_of(use)} left for a purchase: {_used_of(use)} used"
        reserved = f", and {_show_amount(use.limit, use.reserved)} reserved" if use.reserved else ""
        if use.rule.mode == "shadow":
            effect = "Nothing is refused, because the limit is in shadow mode."
        elif is_used_up:
            effect = f"Purchases are refused until {self._show(use.span.ends_at)}."
        else:
            effect = f"The purchase was refused. {self._reset(use.span)}"
        text = f"{show_scope(use.watched.scope)} has {happened}{reserved}. {effect}"
        return self._of_limit(use, "limit_exhausted", text)

    def _projected_over(self, use: LimitUse, projected: int) -> Alert:
        text = (
            f"{show_scope(use.watched.scope)} is projected to exceed {_limit_of(use)}: "
            f"{_used_of(use)} by day {use.span.day} make {_show_amount(use.limit, projected)} at "
            f"the end. {self._reset(use.span)}"
        )
        more = {"projected": amount_in_unit(use.limit, projected)}
        return self._of_limit(use, "projected_over", text, more=more)

    def _of_limit(
        self,
        use: LimitUse,
        kind: EventKind,
        text: str,
        *,
        threshold: float | None = None,
        more: Mapping[str, Any] = _NOTHING,
    ) -> Alert:
        subject, span = use.watched.subject, use.span
        crossed = {} if threshold is None else {"threshold": threshold}
        return Alert(
            kind,
            once=once(kind, subject.name, use.limit.name, span.label, threshold),
            until=span.ends_at,
            text=text,
            data={
                **self._about(use.watched),
                "limit": use.limit.name,
                "mode": use.rule.mode,
                **crossed,
                "max": amount_in_unit(use.limit, use.rule.maximum),
                "used": amount_in_unit(use.limit, use.used),
                "reserved": amount_in_unit(use.limit, use.reserved),
                **more,
                "window": self._window(span),
            },
            team=use.watched.team,
            since=span.starts_at,
            before=span.ends_at,
            dimensions=dimensions_of(subject),
        )

    # ── spending ────────────────────────────────────────────────────────────────────────────

    def of_spending(
        self, watched: Watched, today: Span, cost_micros: int, history: Mapping[float, int]
    ) -> Alert | None:
        """The alert of a day that cost much more than usual.

        `history` has the cost of earlier days by their start. Without enough active days nothing
        is usual.
        """
        active = sorted((day, cost) for day, cost in history.items() if cost > 0)
        usual = sum(cost for _, cost in active[-SPIKE_ACTIVE_DAYS:])
        if (
            len(active) < SPIKE_ACTIVE_DAYS
            or cost_micros <= SPIKE_MIN_MICROS
            or cost_micros * SPIKE_ACTIVE_DAYS <= SPIKE_FACTOR * usual
        ):
            return None
        mean = usual // SPIKE_ACTIVE_DAYS
        return Alert(
            "spike",
            once=once("spike", watched.subject.name, today.label),
            until=today.ends_at,
            text=(
                f"{show_scope(watched.scope)} has spent {show_usd(cost_micros)} on {today.label} "
                f"({self._zone_name}), more than {SPIKE_FACTOR} times the {show_usd(mean)} of its "
                "average active day."
            ),
            data={
                **self._about(watched),
                "cost_usd": dollars(cost_micros),
                "mean_usd": dollars(mean),
                "window": self._window(today),
            },
            team=watched.team,
            since=today.starts_at,
            before=today.ends_at,
            dimensions=dimensions_of(watched.subject),
        )

    def of_week(
        self, team: str, week: Span, rows: Sequence[TotalsRow], rows_before: Sequence[TotalsRow]
    ) -> Alert | None:
        """The digest of a team's week; None if the team has no requests in it."""
        sums = _Sums.of(row for row in rows if row.dimensions.get("team") == team)
        before = _Sums.of(row for row in rows_before if row.dimensions.get("team") == team)
        if not sums.requests:
            return None
        return Alert(
            "weekly_digest",
            once=once("weekly_digest", f"team:{team}", week.label),
            until=week.ends_at + 7 * 86_400.0,  # it is sent in the week after
            text=(
                f"Team {team} in {week.label} ({self._zone_name}): {show_usd(sums.cost)} spent, "
                f"{show_usd(sums.saved)} saved, {sums.requests:,} requests, {sums.bought:,} images "
                f"bought, {sums.served:,} served from the cache. The week before: "
                f"{show_usd(before.cost)} spent."
            ),
            data={
                "scope": f"team:{team}",
                "team": team,
                "cost_usd": dollars(sums.cost),
                "saved_usd": dollars(sums.saved),
                "requests": sums.requests,
                "images_bought": sums.bought,
                "images_served": sums.served,
                "cost_usd_before": dollars(before.cost),
                "window": self._window(week),
            },
            team=team,
            since=week.starts_at,
            before=week.ends_at,
            dimensions={"team": team},
        )

    # ── models and keys ─────────────────────────────────────────────────────────────────────

    def of_model(
        self, model: str, shutdown: date, today: Span, *, requests: int, since: float
    ) -> Alert | None:
        """The alert of a model that retires soon and is in use."""
        left = (shutdown - date.fromisoformat(today.label)).days
        threshold = next((days for days in RETIRES_DAYS if left <= days), None)
        if threshold is None or left < 0 or not requests:
            return None
        when = {0: "today", 1: "tomorrow"}.get(left, f"in {left} days")
        return Alert(
            "model_retires",
            once=once("model_retires", f"model:{model}", shutdown.isoformat(), threshold),
            until=today.ends_at + left * 86_400.0,
            text=(
                f"{model} retires on {shutdown}, {when}, and is in use: {requests:,} requests "
                f"since {self._show(since)}."
            ),
            data={
                "scope": f"model:{model}",
                "model": model,
                "shutdown_date": shutdown.isoformat(),
                "days_left": left,
                "threshold": threshold,
                "requests": requests,
            },
            team=None,
            since=since,
            dimensions={"model": model},
        )

    def of_revoked_key(
        self, watched: Watched, *, revoked_at: float, requests: int, address: str, now: float
    ) -> Alert:
        """The alert of a revoked key that a client still sends."""
        return Alert(
            "revoked_key_in_use",
            once=once("revoked_key_in_use", watched.subject.name),
            until=now + REVOKED_SECONDS,
            text=(
                f"{show_scope(watched.scope)} is in use although it was revoked at "
                f"{self._show(revoked_at)}: {requests:,} requests were refused, the last one "
                f"from {address or 'unknown'}."
            ),
            data={
                **self._about(watched),
                "key_id": watched.subject.name.removeprefix("key:"),
                "revoked_at": int(revoked_at),
                "requests": requests,
                "client_address": address,
            },
            team=watched.team,
            since=now - 30 * 86_400.0,
            dimensions=dimensions_of(watched.subject),
            repeats=True,
        )

    def of_request_for_more(
        self,
        watched: Watched,
        limit: Limit,
        *,
        span: Span,
        amount: int | None,
        reason: str | None,
        states: Sequence[Mapping[str, Any]],
    ) -> Alert:
        """The alert of a key that asks for more; `states` are its limits of this name."""
        wanted = f": {_show_amount(limit, amount)} more" if amount is not None else ""
        why = f" Reason: {clean(reason, MAX_REASON)}" if reason else ""
        asked = {} if amount is None else {"amount": amount_in_unit(limit, amount)}
        return Alert(
            "asked_for_more",
            once=once("asked_for_more", watched.subject.name, limit.name, span.label),
            until=span.ends_at,
            text=f"{show_scope(watched.scope)} asks for more {limit.words}{wanted}.{why}",
            data={
                **self._about(watched),
                "limit": limit.name,
                **asked,
                "reason": reason,
                "limits": list(states),
                "window": self._window(span),
            },
            team=watched.team,
            since=span.starts_at,
            dimensions=dimensions_of(watched.subject),
        )

    # ── parts ───────────────────────────────────────────────────────────────────────────────

    def _about(self, watched: Watched) -> dict[str, Any]:
        return {"scope": watched.scope, "team": watched.team}

    def _window(self, span: Span) -> dict[str, Any]:
        return {
            "name": span.label,
            "starts_at": int(span.starts_at),
            "ends_at": int(span.ends_at),
            "time_zone": self._zone_name,
        }

    def _reset(self, span: Span) -> str:
        return f"The limit resets at {self._show(span.ends_at)}."

    def _show(self, moment: float) -> str:
        return f"{datetime.fromtimestamp(moment, self._zone):%Y-%m-%d %H:%M} ({self._zone_name})"


MAX_REASON: Final = 500
"""Characters of a reason."""


def once(*parts: object) -> str:
    """The name of an event, from its kind, scope, limit, window and threshold."""
    return "|".join(str(part) for part in parts if part is not None)


def clean(text: str | None, length: int = MAX_NAME) -> str:
    """A text of a client in one line, shortened."""
    return _CONTROL.sub(" ", text or "")[:length]


def show_scope(scope: str) -> str:
    """A scope at the start of a sentence: `Key alice`, `Team art`, `Everyone`."""
    # The dashboard's `admin/events.js` makes a link of these words.
    kind, _, name = scope.partition(":")
    return f"{kind.capitalize()} {name}".rstrip()


def _limit_of(use: LimitUse) -> str:
    """`its dollars per month`."""
    whose = "their" if use.watched.subject.kind == "everyone" else "its"
    return f"{whose} {use.limit.words}"


# ── windows ─────────────────────────────────────────────────────────────────────────────────


def span_at(calendar: Calendar, period: CalendarPeriod, moment: float) -> Span:
    """The window that contains a moment, in Unix seconds."""
    today = calendar.date_at(moment)
    first = {
        "day": today,
        "week": date.fromordinal(today.toordinal() - today.weekday()),
        "month": today.replace(day=1),
    }[period]
    window = calendar.day_at(moment).windows[period]
    day = (today - first).days + 1
    return Span(window.label, float(calendar.start_of(first)), float(window.ends_at), day)


def _projected(use: LimitUse) -> int:
    """What a budget comes to at the end of its window; 0 if it is too early to say."""
    span = use.span
    if span.day < MIN_PROJECTED_DAY or use.now <= span.starts_at:
        return 0
    return forecast(use.used, starts_at=span.starts_at, ends_at=span.ends_at, now=use.now)


# ── totals ──────────────────────────────────────────────────────────────────────────────────


class _Sums(NamedTuple):
    cost: int
    saved: int
    requests: int
    bought: int
    served: int

    @staticmethod
    def of(rows: Iterable[TotalsRow]) -> _Sums:
        sums = [row.sums for row in rows]
        return _Sums(
            sum(s.cost_micros for s in sums),
            sum(s.saved_micros for s in sums),
            sum(s.requests for s in sums),
            sum(s.images_bought for s in sums),
            sum(s.images_served for s in sums),
        )


def dimensions_of(subject: LimitSubject) -> Mapping[str, str]:
    """The dimensions of the totals that count for a subject."""
    if subject.kind == "everyone":
        return _NOTHING
    name = "key_id" if subject.kind == "key" else "team"
    return {name: subject.name.partition(":")[2]}


def has_dimensions(row: TotalsRow, dimensions: Mapping[str, str]) -> bool:
    """Whether a row has these dimensions."""
    return all(row.dimensions.get(name) == value for name, value in dimensions.items())


def top_of(
    rows: Sequence[TotalsRow], user_rows: Sequence[TotalsRow], dimensions: Mapping[str, str]
) -> Top:
    """The top three of the rows with these dimensions.

    Users of one model are not known: then there are none.
    """
    found = [row for row in rows if has_dimensions(row, dimensions)]
    users = [row for row in user_rows if has_dimensions(row, dimensions)]
    return Top(_most(found, "key"), _most(found, "model"), _most(users, "user"))


def _most(rows: Iterable[TotalsRow], dimension: str) -> tuple[Spender, ...]:
    costs: Counter[str] = Counter()
    for row in rows:
        if (name := row.dimensions.get(dimension)) is not None:
            costs[str(name)] += row.sums.cost_micros
    ranked = sorted(costs.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(Spender(clean(name), cost) for name, cost in ranked[:TOP] if cost > 0)


# ── amounts ─────────────────────────────────────────────────────────────────────────────────


def dollars(usd_micros: int) -> float:
    """Micro-dollars as a JSON number of dollars."""
    return usd_micros / MICROS_PER_USD


def show_usd(usd_micros: int) -> str:
    """Micro-dollars for people: to the cent, and below a cent exactly."""
    sign, amount = ("-", -usd_micros) if usd_micros < 0 else ("", usd_micros)
    if 0 < amount < MICROS_PER_USD // 100:
        return f"{sign}${amount / MICROS_PER_USD:.6f}"
    return f"{sign}${amount / MICROS_PER_USD:,.2f}"


def amount_in_unit(limit: Limit, amount: int) -> float:
    """An amount as the API shows it: money in dollars."""
    return dollars(amount) if limit.unit == "usd_micros" else amount


def _show_amount(limit: Limit, amount: int) -> str:
    return show_usd(amount) if limit.unit == "usd_micros" else f"{amount:,} {limit.unit}"


def _used_of(use: LimitUse) -> str:
    maximum = _show_amount(use.limit, use.rule.maximum)
    used = show_usd(use.used) if use.limit.unit == "usd_micros" else f"{use.used:,}"
    return f"{used} of {maximum}"


def _percent(ratio: float) -> str:
    # Rounded down: 99.9% is not all of it.
    return f"{int(ratio * 100)}%"
