"""Usage reports as people ask for them and read them: parameters, columns and cells. Pure.

The API and the command line share it. The columns are those of
`docs/reference/billing.md#reports`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from gateway.billing.reports import (
    LABEL,
    Field,
    ReportQuery,
    ReportRefused,
    ReportRow,
    Width,
)
from gateway.billing.totals_periods import MAX_TIME
from gateway.billing.what_if import WhatIfAnswer
from gateway.calendar import Calendar
from gateway.limits import MICROS_PER_USD
from gateway.values import nearest, parse_duration, show_usd

DEFAULT_SINCE: Final = "7d"

WIDTHS: Final[Mapping[str, Width]] = {"1m": "minute", "1h": "hour", "1d": "day"}
"""`bucket_width` → the bucket."""

PARAMETERS: Final[Mapping[Field, str]] = {
    "since": "since",
    "until": "until",
    "bucket": "bucket_width",
    "group_by": "group_by",
}
"""The parameter of each field. Each filter is a parameter with the dimension's name."""

COLUMNS: Final = (
    *("from", "to", "time_zone", "team", "key", "user", "labels", "model", "size", "quality"),
    *("requests", "hits", "images_bought", "images_served"),
    *("tokens_text_in", "tokens_image_in", "tokens_text_out", "tokens_image_out"),
    *("cost_usd", "saved_usd", "presumed_usd"),
)
MORE_COLUMNS: Final = ("key_id", "outcome", "source")
"""Groups that have a column only where they were asked for."""
WHAT_IF: Final = "what_if_usd"
"""The column of what a row would have cost, only where that was asked for."""
MONEY: Final = ("cost_usd", "saved_usd", "presumed_usd", WHAT_IF)

_SECONDS: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?", re.ASCII)
_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])", re.ASCII)
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_SPACE_FOR_PLUS: Final = re.compile(r" (?=[0-9]{2}:?[0-9]{2}$)", re.ASCII)
"""In a query string, the `+` of an offset is a space unless it is escaped."""


# ── parameters ──────────────────────────────────────────────────────────────────────────────


def usage_query(
    *,
    since: str | None,
    until: str | None,
    bucket_width: str | None,
    group_by: Iterable[str],
    time_zone: str,
    now: float,
    filters: Mapping[str, frozenset[str]],
) -> ReportQuery:
    """A query from its parameters as text. Raises `ReportRefused`."""
    if bucket_width is not None and bucket_width not in WIDTHS:
        meant = nearest(bucket_width, WIDTHS) or "1d"
        raise ReportRefused(
            "bucket",
            f"one of {', '.join(WIDTHS)}, but got '{bucket_width[:64]}'. Did you mean '{meant}'?",
        )
    since = DEFAULT_SINCE if since is None else since
    begin = read_moment("since", since, time_zone=time_zone, now=now)
    return ReportQuery(
        begin,
        # Not `now`, which is over when the report is read. Nothing is later than that anyway.
        MAX_TIME if until is None else read_moment("until", until, time_zone=time_zone, now=now),
        "all" if bucket_width is None else WIDTHS[bucket_width],
        group_by=split_groups(group_by),
        filters=filters,
    )


def split_groups(given: Iterable[str]) -> tuple[str, ...]:
    """Groups that are separated by commas or given one by one, each once."""
    names = (name.strip() for names in given for name in names.split(","))
    return tuple(dict.fromkeys(name for name in names if name))


def read_moment(field: Field, text: str, *, time_zone: str, now: float) -> float:
    """Unix seconds from Unix seconds, RFC 3339, a date, or a duration before now.

    A date, and a duration in days, begin at the start of the day in the time zone.
    """
    try:
        moment = _moment(text.strip(), ZoneInfo(time_zone), now)
    except (ValueError, OverflowError):
        moment = None
    if moment is None or not 0 <= moment < MAX_TIME:
        raise ReportRefused(
            field,
            "Unix seconds such as 1795824000, a time such as 2026-11-28T12:00:00Z, a date such as "
            f"2026-11-28 in {time_zone}, or a duration such as 7d or 12h, but got '{text[:64]}'",
        )
    return moment


def _moment(text: str, zone: ZoneInfo, now: float) -> float | None:
    calendar = Calendar(zone)
    if _SECONDS.fullmatch(text):
        return float(text)
    if match := _DURATION.fullmatch(text):
        if match[2] == "d":
            return calendar.start_of(calendar.date_at(now) - timedelta(days=int(match[1])))
        return now - parse_duration(text)
    if _DATE.fullmatch(text):
        return calendar.start_of(date.fromisoformat(text))
    moment = datetime.fromisoformat(_SPACE_FOR_PLUS.sub("+", text))
    return (moment if moment.tzinfo else moment.replace(tzinfo=zone)).timestamp()


# ── rows ────────────────────────────────────────────────────────────────────────────────────


def columns_of(group_by: Iterable[str], *, what_if: bool = False) -> tuple[str, ...]:
    """The columns of a report's rows."""
    more = tuple(name for name in MORE_COLUMNS if name in group_by)
    return (*COLUMNS, *more, *((WHAT_IF,) if what_if else ()))


def usage_row(
    row: ReportRow,
    *,
    time_zone: str,
    also: Mapping[str, str | None] | None = None,
    what_if_micros: int | None = None,
) -> dict[str, Any]:
    """A row with its columns. `also` are dimensions that all rows of the report have."""
    dimensions, sums = {**(also or {}), **row.dimensions}, row.sums
    labels = {n.removeprefix(LABEL): v for n, v in dimensions.items() if n.startswith(LABEL)}
    tokens = sums.tokens
    found: dict[str, Any] = {
        "from": _show_time(row.starts_at, time_zone),
        "to": _show_time(row.ends_at, time_zone),
        "time_zone": time_zone,
        **{name: dimensions.get(name) for name in ("team", "key", "user")},
        "labels": labels or None,
        **{name: dimensions.get(name) for name in ("model", "size", "quality")},
        "requests": sums.requests,
        "hits": sums.hits,
        "images_bought": sums.images_bought,
        "images_served": sums.images_served,
        # What upstream had in its cache is input too.
        "tokens_text_in": tokens.get("text_in", 0) + tokens.get("cached_text_in", 0),
        "tokens_image_in": tokens.get("image_in", 0) + tokens.get("cached_image_in", 0),
        "tokens_text_out": tokens.get("text_out", 0),
        "tokens_image_out": tokens.get("image_out", 0),
        # Exact: a float has the six decimals of any sum below a billion dollars.
        "cost_usd": sums.cost_micros / MICROS_PER_USD,
        "saved_usd": sums.saved_micros / MICROS_PER_USD,
        "presumed_usd": sums.presumed_micros / MICROS_PER_USD,
    }
    found |= {name: row.dimensions[name] for name in MORE_COLUMNS if name in row.dimensions}
    if what_if_micros is not None:
        found[WHAT_IF] = what_if_micros / MICROS_PER_USD
    return found


def what_if_object(question: str, answer: WhatIfAnswer) -> dict[str, Any]:
    """The answer for all rows together."""
    return {
        "question": question,
        "charged_usd": answer.charged_micros / MICROS_PER_USD,
        WHAT_IF: answer.cost_micros / MICROS_PER_USD,
        "uncomputed": [
            {
                "model": part.model,
                "reason": part.reason,
                "cost_usd": part.cost_micros / MICROS_PER_USD,
            }
            for part in answer.uncomputed
        ],
    }


def usage_cells(row: Mapping[str, Any]) -> list[str]:
    """The cells of a row, for CSV and tables."""
    return [_cell(name, value) for name, value in row.items()]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in MONEY:
        return show_usd(round(value * MICROS_PER_USD))
    if name == "labels":
        return " ".join(f"{label}={text or ''}" for label, text in value.items())
    return str(value)


@lru_cache(maxsize=4096)
def _show_time(moment: float, time_zone: str) -> str:
    return datetime.fromtimestamp(moment, ZoneInfo(time_zone)).isoformat()
