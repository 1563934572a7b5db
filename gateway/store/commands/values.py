"""Values with a time to live, by space and name."""

from __future__ import annotations

from gateway.frozen import frozen
from gateway.store.protocol import Command


@frozen
class SetValue(Command[bool]):
    """Sets a small value. False, and no change, if a condition is not met.

    With `only_if_absent` there must be none, with `expected` it must be one of those; with both,
    either. The value expires after `ttl_seconds`; None: never. With `is_kept`, processes may
    keep the value in memory (`kept_reads`), and the store reports the change to them at once.
    """

    space: str
    name: str
    value: bytes
    ttl_seconds: float | None
    only_if_absent: bool = False
    expected: tuple[bytes, ...] = ()
    is_kept: bool = False


@frozen
class GetValue(Command[bytes | None]):
    """The value; None if there is none."""

    space: str
    name: str


@frozen
class AdvanceCounter(Command[int]):
    """Adds `amount` to a value that counts from 0 modulo `modulus`; returns it as it was before.

    It is the decimal digits of the count, and expires `ttl_seconds` after the first addition,
    however many follow.
    """

    space: str
    name: str
    amount: int
    modulus: int
    ttl_seconds: float


@frozen
class DeleteValue(Command[None]):
    """Deletes the value if there is one, with `expected` only if it is that one.

    Also works in a full store.
    """

    space: str
    name: str
    expected: bytes | None = None
