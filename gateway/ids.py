"""Ids that begin with the time at which they were made.

A record of the ledger is looked up by its id without an index: the time says where to search.
"""

from __future__ import annotations

import os
import re
import time
from typing import Final

_TIME_DIGITS: Final = 12
_EARLIEST: Final = 1_700_000_000.0
"""Unix seconds. An id of an older gateway is random, and hardly ever begins like a later time."""

_DRAWN_AT_ONCE: Final = 128

_HEX: Final = re.compile(r"(?:req_)?([0-9a-f]{28,32})(?:-late)?")


def new_request_id() -> str:
    """An id as the images API makes them: `req_` and 32 hex digits."""
    return f"req_{_now_ms():012x}{_random_digits()}"


def new_purchase_id() -> str:
    """28 hex digits."""
    return f"{_now_ms():012x}{_random_digits()[:16]}"


def time_of(name: str, *, now: float) -> float | None:
    """The Unix time in the id of a request, purchase or correction; None if it contains none."""
    if (found := _HEX.fullmatch(name)) is None:
        return None
    made_at = int(found[1][:_TIME_DIGITS], 16) / 1000
    return made_at if _EARLIEST <= made_at <= now + 86_400 else None


_drawn: Final[list[str]] = []
"""Digits that no id has yet. A system call for each takes three times as long as the rest of it."""

# Otherwise both processes would make the same ids.
os.register_at_fork(after_in_child=_drawn.clear)


def _random_digits() -> str:
    """20 hex digits, which no other call gets, also in another thread."""
    while True:
        try:
            return _drawn.pop()
        except IndexError:
            digits = os.urandom(10 * _DRAWN_AT_ONCE).hex()
            _drawn.extend(digits[start : start + 20] for start in range(0, len(digits), 20))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
