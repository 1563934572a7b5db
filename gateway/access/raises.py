"""Raises: what is added to a limit until the end of a day, with a reason. Pure.

A raise ends by itself: nothing runs at its end, and its record is removed some time later.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, TypeAdapter

from gateway.access.limit_values import as_number, check_limit_name, parse_amount
from gateway.calendar import Calendar
from gateway.errors import MAX_ECHO

MAX_RAISES: Final = 50
"""Raises of one limit subject that hold at the same time."""
MAX_REASON: Final = 500
LAST_DAY: Final = date(9000, 12, 31)
"""No raise is for longer: calendars end in the year 9999."""

_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DAY: Final = timedelta(days=1)


class Raise(BaseModel):
    """A raise in the store."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    limit: str
    amount: Decimal
    """In dollars if the limit is money."""
    until: date
    """The last day on which it holds, in `billing.time_zone`."""
    reason: str
    by: str = ""
    created_at: int = 0

    def ends_at(self, calendar: Calendar) -> int:
        """Unix seconds from which on it does not hold any more."""
        return calendar.start_of(min(self.until, LAST_DAY) + _DAY)

    def public(self) -> dict[str, Any]:
        """The raise for the admin API and the command line."""
        return {
            "id": self.id,
            "limit": self.limit,
            "amount": as_number(self.amount),
            "until": self.until.isoformat(),
            "reason": self.reason,
            "by": self.by,
            "created_at": self.created_at,
        }


_RAISES: Final = TypeAdapter(tuple[Raise, ...])


def encode_raises(raises: Sequence[Raise]) -> bytes | None:
    """The bytes in the store; None if there are none."""
    return _RAISES.dump_json(tuple(raises)) if raises else None


def decode_raises(data: bytes) -> tuple[Raise, ...]:
    """The inverse of `encode_raises`."""
    return _RAISES.validate_json(data)


def active_raises(
    raises: Iterable[Raise], calendar: Calendar, now: float
) -> tuple[tuple[Raise, ...], float]:
    """The raises that hold at `now`, and when the first of them ends (infinity if none does)."""
    ends = [(raised, raised.ends_at(calendar)) for raised in raises]
    active = [(raised, end) for raised, end in ends if end > now]
    first_end = min((end for _, end in active), default=float("inf"))
    return tuple(raised for raised, _ in active), first_end


def raised_amounts(raises: Iterable[Raise]) -> Mapping[str, Decimal]:
    """What the raises add to each limit."""
    amounts: dict[str, Decimal] = defaultdict(Decimal)
    for raised in raises:
        amounts[raised.limit] += raised.amount
    return amounts


def parse_raise(fields: Mapping[str, Any], calendar: Calendar, now: float) -> dict[str, Any]:
    """The checked `limit`, `amount`, `until` and `reason` of a new raise.

    Raises `BadRaise`, which names the field.
    """
    limit = fields.get("limit")
    if not isinstance(limit, str):
        raise BadRaise("limit", "Missing 'limit': the name of a limit, such as usd_per_month.")
    try:
        check_limit_name(limit)
        amount = parse_amount(limit, fields.get("amount"))
    except ValueError as error:
        param = "amount" if "Unknown limit" not in str(error) else "limit"
        raise BadRaise(param, f"Invalid '{param}': {error}") from None
    if amount <= 0:
        raise BadRaise("amount", "Invalid 'amount': a raise adds more than 0 to a limit.")
    until = _parse_until(fields.get("until"), calendar, now)
    return {
        "limit": limit,
        "amount": amount,
        "until": until,
        "reason": _parse_reason(fields.get("reason")),
    }


class BadRaise(ValueError):
    """A field of a raise is wrong. The message is a sentence."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def _parse_until(value: object, calendar: Calendar, now: float) -> date:
    try:
        if not isinstance(value, str) or not _DATE.fullmatch(value.strip()):
            raise ValueError
        until = date.fromisoformat(value.strip())
    except ValueError:
        shown = repr(value)[:MAX_ECHO]
        raise BadRaise(
            "until", f"Invalid 'until': expected a date such as 2026-12-31, but got {shown}."
        ) from None
    today = calendar.date_at(now)
    if until < today:
        raise BadRaise("until", f"Invalid 'until': {until} is in the past; today is {today}.")
    if until > LAST_DAY:
        raise BadRaise("until", f"Invalid 'until': expected a date up to {LAST_DAY}.")
    return until


def _parse_reason(value: object) -> str:
    text = value.strip() if isinstance(value, str) else ""
    if not 0 < len(text) <= MAX_REASON or not text.isprintable():
        raise BadRaise(
            "reason",
            f"Invalid 'reason': expected a text of 1 to {MAX_REASON} printable characters that "
            "says why.",
        )
    return text
