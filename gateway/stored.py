"""Decodes values of the store. An unreadable one is logged once, and affects no other value.

Bytes in the store may be damaged, or written by another program. The module that reads a value
decides what an unreadable one means: a missing image, an unknown key, a record that is left out.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

UNREADABLE: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What decoders raise for bytes of another shape: a list in place of an object, a missing key."""

MAX_LOGGED: Final = 1000
"""How many unreadable values a worker remembers to have logged."""

T = TypeVar("T")

log = structlog.get_logger(__name__)

_logged: OrderedDict[bytes, None] = OrderedDict()


def read_stored(
    kind: str, data: bytes, decode: Callable[[bytes], T], *, name: str = ""
) -> T | None:
    """The decoded bytes; None if they are unreadable, which is logged once as `<kind>_unreadable`.

    The log has their name and size, and nothing of their content.
    """
    try:
        return decode(data)
    except UNREADABLE as fault:
        _log_once(kind, data, name=name, fault=type(fault).__name__)
        return None


def _log_once(kind: str, data: bytes, *, name: str, fault: str) -> None:
    value = hashlib.sha256(f"{kind} {name} ".encode() + data).digest()
    if value in _logged:
        return
    _logged[value] = None
    if len(_logged) > MAX_LOGGED:
        _logged.popitem(last=False)
    event = f"{kind}_unreadable"
    log.error(event, name=name, size_bytes=len(data), fault=fault)
