"""`POST /v1/usage/ask-for-more`: a key asks the operators for more of a limit."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from aiohttp import web

from gateway.access.limit_values import MAX_LIMIT
from gateway.api.admin.requests import invalid_value, read_parameters
from gateway.api.auth import KEY
from gateway.api.http.json import json_response
from gateway.api.services import SERVICES, Services
from gateway.billing.alerts import MAX_REASON, amount_in_unit, span_at
from gateway.billing.counted_limits import LimitState
from gateway.errors import MAX_ECHO
from gateway.events import Watched
from gateway.images import LimitSubject, Principal
from gateway.limits import CALENDAR_PERIODS, LIMITS, MICROS_PER_USD, CalendarPeriod, Limit
from gateway.values import nearest


async def ask_for_more(request: web.Request) -> web.StreamResponse:
    """Makes an event, once for each key, limit and window; works with the budget used up."""
    given = await read_parameters(request, ("limit", "amount", "reason"))
    limit = _read_limit(given.get("limit"))
    amount, reason = _read_amount(limit, given.get("amount")), _read_reason(given.get("reason"))
    services, principal = request.app[SERVICES], request[KEY].principal
    states = await _states(services, principal, limit)
    watch = services.alert_watch
    span = span_at(watch.calendar, _period(limit), services.clock())
    alert = watch.alerts.of_request_for_more(
        _watched(principal),
        limit,
        span=span,
        amount=amount,
        reason=reason,
        states=[_shown(state) for state in states],
    )
    if not await watch.tell(alert):
        status = "already_sent"
    else:
        status = "sent" if watch.is_wanted(alert) else "kept"
    return json_response({"limit": limit.name, "window": span.label, "status": status})


def _read_limit(value: object) -> Limit:
    if isinstance(value, str) and value in LIMITS:
        return LIMITS[value]
    known = ", ".join(LIMITS)
    if not isinstance(value, str):
        raise invalid_value("limit", f"one of {known}")
    near = nearest(value, LIMITS)
    raise invalid_value(
        "limit", f"one of {known}, but got '{value[:MAX_ECHO]}'. Did you mean '{near}'?"
    )


def _read_amount(limit: Limit, value: object) -> int | None:
    """The amount in the limit's unit."""
    if value is None:
        return None
    is_money = limit.unit == "usd_micros"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Through text: `Decimal(0.1)` would have all digits of the binary fraction.
    number = Decimal(str(value)) if is_number else Decimal("nan")
    units = number * (MICROS_PER_USD if is_money else 1)
    if not units.is_finite() or not 0 < units <= MAX_LIMIT or units % 1:
        raise invalid_value(
            "amount", "a positive amount in US dollars" if is_money else "a positive whole number"
        )
    return int(units)


def _read_reason(value: object) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= MAX_REASON):
        return value
    raise invalid_value("reason", f"a text of at most {MAX_REASON} characters")


async def _states(services: Services, principal: Principal, limit: Limit) -> list[LimitState]:
    """The limits of this name that hold for the key. Raises 400 if there are none."""
    names = {name: None for subject in principal.subjects for name in subject.rules}
    if limit.name not in names:
        known = ", ".join(names) or "it has none"
        raise invalid_value("limit", f"a limit that this key has ({known})")
    # While the store is unavailable none is read; then the claim of the event raises 503.
    found = await services.proxy.read_limits(principal)
    return [state for state in found if state.limit.name == limit.name]


def _period(limit: Limit) -> CalendarPeriod:
    """The window in which one request is enough; of a rate the day."""
    return next((period for period in CALENDAR_PERIODS if period == limit.period), "day")


def _watched(principal: Principal) -> Watched:
    name = f"key:{principal.key_id}"
    return Watched(LimitSubject(name, "key", principal.key_name, rules={}), principal.team)


def _shown(state: LimitState) -> dict[str, Any]:
    return {
        "scope": state.scope,
        "max": amount_in_unit(state.limit, state.maximum),
        "used": amount_in_unit(state.limit, state.counter.used),
        "reserved": amount_in_unit(state.limit, state.counter.reserved),
    }
