"""Ids that begin with the time at which they were made.

A record of the ledger is looked up by its id without an index: the time says where to search.
"""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

_TIME_DIGITS: Final = 12
_EARLIEST: Final = 1_700_000_000.0
"""Unix seconds. An id of an older gateway is random, and hardly ever begins like a later time."""

_HEX: Final = re.compile(r"(?:req_)?([0-9a-f]{28,32})(?:-late)?")


def new_request_id() -> str:
    """An id as the images API makes them: `req_` and 32 hex digits."""
    return f"req_{_time_now()}{secrets.token_hex(10)}"


def new_purchase_id() -> str:
    """28 hex digits."""
    return f"{_time_now()}{secrets.token_hex(8)}"


def time_of(name: str, *, now: float) -> float | None:
    """When a request, purchase or correction got its id, in Unix seconds; None: it says nothing."""
    if (found := _HEX.fullmatch(name)) is None:
        return None
    made_at = int(found[1][:_TIME_DIGITS], 16) / 1000
    return made_at if _EARLIEST <= made_at <= now + 86_400 else None


def _time_now() -> str:
    """The milliseconds since 1970 in hex."""
    return f"{time.time_ns() // 1_000_000:0{_TIME_DIGITS}x}"
