"""`/admin/overview`: everything that an admin should see at once.

Each part is read on its own: while the store is unavailable, its parts are null and the answer is
still 200. Amounts are those of `billing.recent_days`: every settled purchase is in them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from aiohttp import web

from gateway.access.key_records import KeyRecord
from gateway.api.admin import attention as judge
from gateway.api.admin.attention import Attention
from gateway.api.admin.requests import check_query
from gateway.api.http.json import json_response
from gateway.api.inspection import ShownFinding
from gateway.api.services import SERVICES, ExpiringKey, Services
from gateway.billing.alerts import LimitUse, dollars, span_at
from gateway.billing.counted_limits import LimitState
from gateway.billing.forecast import forecast
from gateway.billing.recent_days import COST, SAVED, DaySums, RecentView, Spender
from gateway.billing.running_totals import EVERYONE
from gateway.billing.verification import Verified
from gateway.calendar import next_month
from gateway.errors import GatewayError, StoreUnavailable
from gateway.events import Watched
from gateway.limits import CALENDAR_PERIODS
from gateway.purchasing.upstream_health import UpstreamState
from gateway.purchasing.upstream_switches import Switch
from gateway.store.commands import LruTotals
from gateway.webhooks.kept_events import KeptEvent, unfinished

T = TypeVar("T")

STORE_SECONDS: Final = 2.5
"""How long a part may take. A call of the store takes two seconds at most."""
PATIENCE_SECONDS: Final = 0.08
"""How long new records may take to be added up; after that, the sums of a moment ago are shown."""
FIRST_SECONDS: Final = 2.0
"""The same while the totals are read, once after a worker's start and once a day."""
MAX_SCOPES: Final = 20
"""Scopes whose budgets are looked at, because events were about them."""
TOP: Final = 5
USED_SECONDS: Final = 7 * 86_400.0


class Cache(NamedTuple):
    """The size of the cache."""

    totals: LruTotals
    bound_bytes: int | None


@dataclass(slots=True)
class Facts:
    """What was read. None: the store is unavailable."""

    now: float
    view: RecentView | None = None
    everyone: Sequence[LimitState] | None = None
    reserved_micros: int = 0
    cache: Cache | None = None
    upstreams: Sequence[UpstreamState] | None = None
    verified: Sequence[Verified] | None = None
    events: Sequence[KeptEvent] = ()
    limits: Sequence[LimitState] = ()
    expiring: Sequence[ExpiringKey] = ()
    findings: Sequence[ShownFinding] = ()
    failed: list[str] = field(default_factory=list)
    """Parts that could not be read."""

    @property
    def is_unread(self) -> bool:
        """Whether the store has answered nothing."""
        return {"limits", "cache", "books"} <= {*self.failed}


async def show_overview(request: web.Request) -> web.StreamResponse:
    """`GET /admin/overview`: 200 also while the store is unavailable."""
    check_query(request, ())
    services = request.app[SERVICES]
    facts = await read_facts(services)
    live = await asyncio.to_thread(services.metrics.read_live)
    return json_response(
        {
            "now": facts.now,
            "time_zone": services.calendar.time_zone,
            **_spending(services, facts),
            "cache": _cache(facts.cache),
            # This request is one of them.
            "live": {**live._asdict(), "requests": max(0, live.requests - 1)},
            "health": _health(services, facts),
            "attention": [one.public() for one in judge.in_order(_attention(services, facts))],
        }
    )


# ── reading ─────────────────────────────────────────────────────────────────────────────────


async def read_facts(services: Services) -> Facts:
    """Reads all parts at once, each as far as it can be read."""
    facts = Facts(services.clock())
    recent, caches = services.recent_days, services.overview_caches
    patience = PATIENCE_SECONDS if recent.is_read else FIRST_SECONDS
    async with asyncio.TaskGroup() as parts:

        def read(name: str, work: Coroutine[Any, Any, T]) -> asyncio.Task[T | None]:
            return parts.create_task(_part(facts, name, work))

        view = read("days", recent.read(facts.now, patience_seconds=patience))
        everyone = read("limits", _read_everyone(services))
        cache = read("cache", _read_cache(services))
        upstreams = read("upstreams", services.upstream_health.read_all())
        verified = read("books", services.limit_gauges.read_verified())
        events = read("events", caches.events.read(partial(_read_events, services), name="events"))
        expiring = read(
            "keys", caches.expiring.read(partial(_read_expiring, services), name="expiring_keys")
        )
        findings = read(
            "findings", caches.findings.read(partial(_read_findings, services), name="findings")
        )
    facts.view, facts.cache = view.result(), cache.result()
    facts.upstreams, facts.verified = upstreams.result(), verified.result()
    facts.everyone, facts.reserved_micros = everyone.result() or (None, 0)
    facts.events, facts.limits = events.result() or ((), ())
    facts.expiring, facts.findings = expiring.result() or (), findings.result() or ()
    if facts.is_unread:
        facts.view = None  # amounts of before the outage would look like those of now
    if facts.view is not None:
        facts.now = facts.view.as_of  # the amounts are of that moment
    return facts


async def _part(facts: Facts, name: str, work: Coroutine[Any, Any, T]) -> T | None:
    try:
        async with asyncio.timeout(STORE_SECONDS):
            return await work
    except (StoreUnavailable, TimeoutError):
        facts.failed.append(name)
        return None


async def _read_everyone(services: Services) -> tuple[Sequence[LimitState], int]:
    """The limits of everyone, and what is reserved in this month."""
    found = await services.limit_changes.show(EVERYONE)
    states = await services.read_limit_states(found.subject)
    return states, await services.limit_gauges.read_reserved(found.subject)


async def _read_cache(services: Services) -> Cache:
    blobs = services.cache.blobs
    return Cache(await blobs.totals(), await blobs.bound_bytes())


async def _read_events(services: Services) -> tuple[Sequence[KeptEvent], Sequence[LimitState]]:
    """The events whose window is not over, and the limits of those that they are about."""
    kept, _ = await services.kept_events.read(limit=1000)
    events = unfinished(kept, services.clock())
    about = [e for e in events if e.kind in judge.LIMIT_EVENTS or e.kind == "asked_for_more"]
    # Those with a budget that is used up first.
    about.sort(key=lambda event: event.kind != "limit_exhausted")
    scopes = dict.fromkeys(str(event.data.get("scope")) for event in about)
    states = await asyncio.gather(
        *(_read_limits(services, scope) for scope in list(scopes)[:MAX_SCOPES])
    )
    return events, [state for found in states for state in found]


async def _read_limits(services: Services, scope: str) -> Sequence[LimitState]:
    try:
        found = await services.limit_changes.show(scope)
    except StoreUnavailable:
        raise
    except GatewayError:  # the key or team is gone
        return ()
    return await services.read_limit_states(found.subject)


async def _read_expiring(services: Services) -> Sequence[ExpiringKey]:
    """Keys that expire soon and were used lately."""
    now = services.clock()

    def find(record: KeyRecord) -> tuple[str, ExpiringKey] | None:
        expires_at = record.expires_at
        if expires_at is None or not record.is_active(now):
            return None
        is_soon = expires_at - now <= judge.EXPIRES_SECONDS
        return (record.id, ExpiringKey(record.name, expires_at)) if is_soon else None

    found = dict(filter(None, await services.keys.map_keys(find)))
    uses = await services.keys.uses.read(list(found))
    return [key for key_id, key in found.items() if uses.get(key_id, 0) >= now - USED_SECONDS]


async def _read_findings(services: Services) -> Sequence[ShownFinding]:
    return await asyncio.to_thread(services.inspection.judge)


# ── spending ────────────────────────────────────────────────────────────────────────────────


def _spending(services: Services, facts: Facts) -> dict[str, Any]:
    view = facts.view
    if view is None:
        return {"spend": None, "days": None, "top": None, "hit_ratio": None}
    days = view.last_days()
    served = sum(day.sums.images_served for day in days)
    images = served + sum(day.sums.images_bought for day in days)
    return {
        "spend": _spend(services, facts, view),
        "days": [_day(day) for day in days],
        "top": {
            f"{dimension}s": [_spender(one) for one in view.top(dimension, TOP)]
            for dimension in ("key", "team", "model")
        },
        "hit_ratio": served / images if images > 0 else None,
    }


def _spend(services: Services, facts: Facts, view: RecentView) -> dict[str, Any] | None:
    if facts.everyone is None:
        return None
    today, calendar = view.today, services.calendar
    tomorrow, first = today + timedelta(days=1), today.replace(day=1)
    month_to = next_month(today)
    month = view.micros(COST, first, tomorrow)
    starts_at, ends_at = calendar.start_of(first), calendar.start_of(month_to)
    return {
        "today_usd": dollars(view.micros(COST, today, tomorrow)),
        "week_usd": dollars(view.micros(COST, _monday(today), tomorrow)),
        "month_usd": dollars(month),
        "reserved_usd": dollars(facts.reserved_micros),
        "saved_month_usd": dollars(view.micros(SAVED, first, tomorrow)),
        "month_limit_usd": _month_limit(facts.everyone),
        "month_forecast_usd": dollars(
            forecast(month, starts_at=starts_at, ends_at=ends_at, now=view.as_of)
        ),
        # All of it: that is what the forecast can be compared with.
        "previous_month_usd": dollars(view.micros(COST, _month_before(first), first)),
        "month_from": starts_at,
        "month_to": ends_at,
    }


def _month_limit(everyone: Sequence[LimitState]) -> float | None:
    return next((dollars(s.maximum) for s in everyone if s.limit.name == "usd_per_month"), None)


def _monday(today: date) -> date:
    return today - timedelta(days=today.weekday())


def _month_before(first: date) -> date:
    return (first - timedelta(days=1)).replace(day=1)


def _day(day: DaySums) -> dict[str, Any]:
    sums = day.sums
    return {
        "from": int(day.starts_at),
        "to": int(day.ends_at),
        "cost_usd": dollars(sums.cost_micros),
        "saved_usd": dollars(sums.saved_micros),
        "requests": sums.requests,
        "hits": sums.hits,
        "images_bought": sums.images_bought,
        "images_served": sums.images_served,
    }


def _spender(spender: Spender) -> dict[str, Any]:
    return {
        "name": spender.name,
        "cost_usd": dollars(spender.cost_micros),
        "saved_usd": dollars(spender.saved_micros),
    }


def _cache(cache: Cache | None) -> dict[str, Any] | None:
    if cache is None:
        return None
    totals = cache.totals
    return {
        "images": totals.count,
        "bytes": totals.size_bytes,
        "total_bytes": cache.bound_bytes,
    }


# ── health ──────────────────────────────────────────────────────────────────────────────────


def _health(services: Services, facts: Facts) -> Mapping[str, Any]:
    upstreams = facts.upstreams
    if upstreams is None:  # as far as this worker knows
        upstreams = services.upstream_health.current()
    verified = _newest(facts.verified)
    books = judge.of_books(verified, now=facts.now, is_in_use=_is_in_use(facts.view))
    state, text = "ok" if books is None else books.level, judge.text_of_books(verified)
    if facts.verified is None:
        state, text = "warning", "Not known while the store is unavailable."
    checked_at = None if verified is None else verified.time
    return {
        "store": _store_health(services, facts),
        "upstreams": [
            _upstream(state, services.upstream_switches.switch_of(state.name))
            for state in upstreams
        ],
        "books": {"state": state, "text": text, "checked_at": checked_at},
    }


def _store_health(services: Services, facts: Facts) -> Mapping[str, str]:
    health = services.health
    if _is_store_down(services, facts):
        text = health.store_reason() or "The store does not answer."
        return {"state": "fault", "text": text}
    if health.is_store_nearly_full or health.is_books_memory_low:
        return {"state": "warning", "text": "Memory or disk is running out."}
    return {"state": "ok", "text": "Available."}


def _upstream(state: UpstreamState, switch: Switch | None) -> Mapping[str, Any]:
    level = "fault" if state.is_failing else "warning" if state.failures_since_success else "ok"
    last, text = state.last_failure, judge.text_of_upstream(state)
    if switch is not None:
        because = f": {switch.reason}" if switch.reason else ""
        level, text = (
            "warning",
            f"Out of service{because}. `gateway upstreams enable` puts it back.",
        )
    return {
        "name": state.name,
        "state": level,
        "text": text,
        "last_failure_at": None if last is None else last.time,
    }


def _newest(verified: Collection[Verified] | None) -> Verified | None:
    return max(verified or (), key=lambda one: one.time, default=None)


def _is_in_use(view: RecentView | None) -> bool:
    """Whether anything was requested before today: by then the books were verified."""
    return view is not None and any(day.sums.requests for day in view.last_days()[:-1])


def _is_store_down(services: Services, facts: Facts) -> bool:
    # An embedded store can often be read although it cannot be written.
    return facts.is_unread or not services.health.store_up


# ── attention ───────────────────────────────────────────────────────────────────────────────


def _attention(services: Services, facts: Facts) -> list[Attention]:
    health, policy, view = services.health, services.policy(), facts.view
    upstreams = facts.upstreams or services.upstream_health.current()
    found: list[Attention | None] = [judge.of_policy(health.policy_fault())]
    if _is_store_down(services, facts):
        found.append(judge.of_store(health.store_reason()))
    else:
        found += judge.of_room(
            are_books_low=health.is_books_memory_low, is_nearly_full=health.is_store_nearly_full
        )
        verified = _newest(facts.verified)
        found.append(judge.of_books(verified, now=facts.now, is_in_use=_is_in_use(view)))
    found += [judge.of_upstream(state) for state in upstreams]
    states = [*(facts.everyone or ()), *(s for s in facts.limits if s.scope != EVERYONE)]
    found += [_of_limit(services, state) for state in states]
    found += judge.of_events(facts.events, judge.maxima_of(states))
    found += judge.of_keys(facts.expiring, now=facts.now)
    if view is not None:
        used = view.names("model")
        found += judge.of_models(policy.retiring_models, used, today=view.today)
        found.append(judge.of_over_estimates(view.over_estimates(facts.now - 86_400)))
    found += judge.of_findings(facts.findings)
    return [one for one in found if one is not None]


def _of_limit(services: Services, state: LimitState) -> Attention | None:
    """By the rules of the events: the worst of them."""
    period = next((each for each in CALENDAR_PERIODS if each == state.limit.period), None)
    if period is None:
        return None
    now = services.clock()
    use = LimitUse(
        Watched(state.subject, None),
        state.limit,
        state.rule,
        span_at(services.calendar, period, now),
        used=state.counter.used,
        reserved=state.counter.reserved,
        now=now,
    )
    alerts = services.alert_watch.alerts.of_limit(use)
    return judge.of_limit(alerts[-1], state) if alerts else None
