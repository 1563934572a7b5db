"""How long upstream asks to wait: `Retry-After` in seconds or as a date, and `retry-after-ms`.

Pure. What is relayed of it is the dialect's; how long a retry waits is `failures`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

_SECONDS: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")
_MILLISECONDS: Final = re.compile(r"[0-9]{1,12}")

_MONTHS: Final = (
    *("jan", "feb", "mar", "apr", "may", "jun"),
    *("jul", "aug", "sep", "oct", "nov", "dec"),
)
_DAY: Final = r"(?:mon|tue|wed|thu|fri|sat|sun)"
_LONG_DAY: Final = r"(?:mon|tues|wednes|thurs|fri|satur|sun)day"
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES: Final = tuple(
    re.compile(form, re.ASCII | re.IGNORECASE)
    for form in (
        rf"{_DAY}, (?P<day>\d\d?) {_MONTH} (?P<year>\d{{4}}) {_TIME} (?:GMT|UTC)",
        rf"{_LONG_DAY}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"{_DAY} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)
"""The three forms of RFC 9110 §5.6.7, the preferred one first."""

_MAX_DATE: Final = 64
"""Characters of a date that is read."""


def retry_after_seconds(
    headers: Mapping[str, str], *, received_at: float | None = None
) -> float | None:
    """The seconds of `Retry-After`; None without one that is valid and above 0.

    Names are in lower case. A date counts from upstream's own `Date`, whose clock may be wrong too,
    and without one from `received_at` in Unix seconds.
    """
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value) or None
    now = parse_date(headers.get("date", ""), near=received_at)
    now = received_at if now is None else now
    at = parse_date(value, near=now)
    return None if at is None or now is None or at <= now else at - now


def retry_after_milliseconds(headers: Mapping[str, str]) -> int | None:
    """The milliseconds of `retry-after-ms`; None without one that is valid and above 0."""
    value = headers.get("retry-after-ms", "").strip()
    return (int(value) or None) if _MILLISECONDS.fullmatch(value) else None


def parse_date(text: str, *, near: float | None) -> float | None:
    """The Unix seconds of an HTTP date; None for any other text.

    A year of two digits is the latest one that is not more than 50 years after `near`.
    """
    text = text.strip()
    found = (form.fullmatch(text) for form in _DATES if len(text) <= _MAX_DATE)
    if (match := next(filter(None, found), None)) is None:
        return None
    year, day, hour, minute, second = (
        int(match[part]) for part in ("year", "day", "hour", "minute", "second")
    )
    if len(match["year"]) == 2:
        if near is None:
            return None
        latest = datetime.fromtimestamp(near, UTC).year + 50
        year = latest - (latest - year) % 100
    month = _MONTHS.index(match["month"].lower()) + 1
    try:
        minutes = datetime(year, month, day, hour, minute, tzinfo=UTC)
    except ValueError:
        return None
    return minutes.timestamp() + second if second <= 60 else None  # 60 is a leap second
