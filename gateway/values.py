"""Durations, sizes, counts and names as people write them.

One parser each, for settings, keys, the catalog and the command line. A parser raises
`ValueError` with what it expected, as the end of a sentence: "expected " + message.

Amounts of money are shown by `show_usd` alone.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?", re.ASCII)
UNIT_SECONDS: Final = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
UNIT_BYTES: Final = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT" if unit == "iB" else "kMGT", start=1)
}
_SWITCHES: Final = {"true": True, "false": False}


def parse_duration(value: object) -> float:
    """Seconds above zero, from a number of seconds or `500ms`, `600s`, `10m`, `1h`, `30d`."""
    seconds = _amount(value, DURATION, UNIT_SECONDS)
    if seconds is None or seconds <= 0:
        raise ValueError("a duration such as 600s, 10m, 1h, 30d, or a number of seconds")
    return seconds


def parse_size(value: object) -> int:
    """Bytes above zero, from a number of bytes or `1MiB`, `64MiB`, `10GiB` (`MB` is 10^6)."""
    size = _amount(value, SIZE, UNIT_BYTES)
    if size is None or size < 1:
        raise ValueError("a size such as 512KiB, 1MiB, 10GiB, or a number of bytes")
    return int(size)


def parse_size_or_zero(value: object) -> int:
    """As `parse_size`, or 0 for none."""
    return 0 if _whole_number(value) == 0 else parse_size(value)


def parse_count(value: object) -> int:
    """A whole number above zero. `33e6` is one, although YAML reads it as text."""
    number = _whole_number(value)
    if number is None or number < 1:
        raise ValueError("a whole number above zero")
    return number


def parse_count_or_zero(value: object) -> int:
    """A whole number, or 0 for none."""
    number = _whole_number(value)
    if number is None or number < 0:
        raise ValueError("a whole number, 0 for none")
    return number


def parse_ratio(value: object) -> float:
    """A number from 0 to 1."""
    try:
        ratio = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        ratio = math.nan
    if not 0 <= ratio <= 1:
        raise ValueError("a number from 0 to 1")
    return ratio


def parse_switch(value: object) -> bool:
    """`true` or `false`, also as text, because environment variables are text."""
    switch = _SWITCHES.get(str(value).strip().lower())
    if switch is None:
        raise ValueError("true or false")
    return switch


MAX_COMPARED: Final = 64
"""Characters of a name that are compared with known names. The time grows with their product."""


@lru_cache(maxsize=4096)  # most answers cost nothing, and save what many others save
def show_usd(usd_micros: int) -> str:
    """Micro-dollars as dollars with six decimals, exactly: `0.166000`, `-0.000001`."""
    sign, amount = ("-", -usd_micros) if usd_micros < 0 else ("", usd_micros)
    return f"{sign}{amount // 1_000_000}.{amount % 1_000_000:06d}"


def nearest(name: str, known: Iterable[str], *, min_similarity: float = 0.0) -> str | None:
    """The most similar of the known names, for "Did you mean …?"; None if there is none."""
    compared = name[:MAX_COMPARED]
    matches = difflib.get_close_matches(compared, list(known), n=1, cutoff=min_similarity)
    return matches[0] if matches else None


def _whole_number(value: object) -> int | None:
    # True is an int in Python. It is not a count.
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _amount(value: object, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    """A number with one of `units`; None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = pattern.fullmatch(str(value).strip())
    if match is None:
        return None
    amount = float(match[1]) * units[match[2] or ""]
    return amount if math.isfinite(amount) else None  # 400 digits are more than a float holds
