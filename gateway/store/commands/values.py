"""Values with a time to live."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.store.protocol import Command

# ── notes and lists: small things with a life of their own ──────────────────────────────────


@dataclass(frozen=True, slots=True)
class SetValue(Command[bool]):
    """Writes a small value under a name. False (and no change) if `is_new` and one lives there.

    It lives `lifetime_seconds` from now; None: until it is dropped.
    """

    space: str
    name: str
    value: bytes
    ttl_seconds: float | None
    only_if_absent: bool = False


@dataclass(frozen=True, slots=True)
class GetValue(Command[bytes | None]):
    """What stands under a name, or None."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class DeleteValue(Command[None]):
    """Removes it, if it is there."""

    space: str
    name: str
