"""Durations, sizes and counts as people write them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|MB|GB|TB)?", re.ASCII)
_SECONDS: Final = {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_BYTES: Final = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("iB", 1024), ("B", 1000))
    for power, prefix in enumerate("KMGT" if unit == "iB" else "kMGT", start=1)
}
_SWITCH: Final = {"true": True, "false": False}


def parse_duration(value: object) -> float:
    """Seconds above zero, from a number of seconds or `500ms`, `600s`, `10m`, `1h`, `30d`."""
    seconds = _measure(value, _DURATION, _SECONDS)
    if seconds is None or seconds <= 0:
        raise ValueError("a duration such as 600s, 10m, 1h, 30d, or a number of seconds")
    return seconds


def parse_size(value: object) -> int:
    """Bytes above zero, from a number of bytes or `1MiB`, `64MiB`, `10GiB` (`MB` is 10^6)."""
    size = _measure(value, _SIZE, _BYTES)
    if size is None or size < 1:
        raise ValueError("a size such as 512KiB, 1MiB, 10GiB, or a number of bytes")
    return int(size)


def parse_count(value: object) -> int:
    """A whole number above zero; `33e6` is one, which YAML itself takes for text."""
    number = _whole(value)
    if number is None or number < 1:
        raise ValueError("a whole number above zero")
    return number


def parse_count_or_zero(value: object) -> int:
    """A whole number; 0 stands for none."""
    number = _whole(value)
    if number is None or number < 0:
        raise ValueError("a whole number, 0 for none")
    return number


def parse_switch(value: object) -> bool:
    """`true` or `false`; from the environment it comes as text."""
    switch = _SWITCH.get(str(value).strip().lower())
    if switch is None:
        raise ValueError("true or false")
    return switch


def parse_size_or_zero(value: object) -> int:
    """As a size; 0 stands for none."""
    return 0 if _whole(value) == 0 else parse_size(value)


def _whole(value: object) -> int | None:
    """A whole number however it is written; None when it is none."""
    try:
        number = math.nan if isinstance(value, bool) else float(str(value))
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


def _measure(value: object, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    """A number with one of `units`; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    match = pattern.fullmatch(str(value).strip())
    return float(match[1]) * units[match[2] or ""] if match else None
