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

_HEX: Final = re.compile(r"(?:req_)?([0-9a-f]{28,32})(?:-late)?")


def new_request_id() -> str:
    """An id as the images API makes them: `req_` and 32 hex digits."""
    return f"req_{_now_ms():012x}{os.urandom(10).hex()}"


def new_purchase_id() -> str:
    """28 hex digits."""
    return f"{_now_ms():012x}{os.urandom(8).hex()}"


def time_of(name: str, *, now: float) -> float | None:
    """The Unix time in the id of a request, purchase or correction; None if it contains none."""
    if (found := _HEX.fullmatch(name)) is None:
        return None
    made_at = int(found[1][:_TIME_DIGITS], 16) / 1000
    return made_at if _EARLIEST <= made_at <= now + 86_400 else None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
