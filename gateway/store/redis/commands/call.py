"""A command as Redis sees it, and how its reply is read. Pure: nothing is sent here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any, Final, cast

import hiredis

from gateway.store.protocol import Command
from gateway.store.redis.keys import Keys
from gateway.store.redis.scripts import SCRIPTS, Script

Argument = bytes | str | int
"""What a command is made of; text goes out as UTF-8."""

SECOND: Final = 1_000_000
"""Microseconds: the unit of all times and durations in scripts and values."""

MAX_READ: Final = 1024
"""Slots whose meaning is kept, because an image that is asked for is asked for again."""

MAX_WRITTEN: Final = 1024
"""Commands that are asked again and again and are kept as they go out, of each such verb."""


# ── calls ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Call:
    """A command and how its reply is read."""

    command: tuple[Argument, ...] | bytes
    """Bytes are a command as it goes out."""
    read: Callable[[Any], Any]
    script: Script | None = None
    """None for a plain command; those only read, so they may be repeated at will."""


def _call(
    name: str, keys: Sequence[str], arguments: Iterable[Argument], *, read: Callable[[Any], Any]
) -> Call:
    script = SCRIPTS[name]
    command = ("EVALSHA", script.sha, len(keys), *keys, *arguments)
    return Call(command, read, script)


def _written(call: Call) -> Call:
    """The same, with its command as it goes out."""
    return replace(call, command=hiredis.pack_command(cast(Any, call.command)))


def _nothing(_: Any) -> None:
    """The answer of a verb that has none."""


def _as_is(reply: Any) -> Any:
    return reply


@singledispatch
def call_for(command: Command[Any], keys: Keys) -> Call:
    """The command that does `verb`. Raises TypeError for a verb that has none."""
    raise TypeError(f"the Redis store does not know the verb {type(command).__name__}")


def _optional(value: bytes | None) -> tuple[Argument, Argument]:
    return (0, b"") if value is None else (1, value)


def read_cursor(cursor: bytes) -> str | None:
    """Where `SCAN` goes on; None at the end."""
    return None if cursor == b"0" else cursor.decode()


def _read_texts(reply: Sequence[bytes]) -> Sequence[str]:
    return [text.decode() for text in reply]


# ── small change ────────────────────────────────────────────────────────────────────────────


def _micros(seconds: float) -> int:
    return math.ceil(seconds * SECOND)


def _pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    items = iter(flat)
    return zip(items, items, strict=True)


def _flat(pairs: Iterable[tuple[Argument, Argument]]) -> list[Argument]:
    return [item for pair in pairs for item in pair]
