"""How a command of the store becomes a command of Redis. Pure: nothing is sent here.

`encode` dispatches on the command's class; the modules beside this one register an encoder for
each command. Times and durations are whole microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch
from typing import Any, Final, NamedTuple, cast

import hiredis

from gateway.store.protocol import Command
from gateway.store.redis.keys import Keys
from gateway.store.redis.plans import Planned
from gateway.store.redis.scripts import SCRIPTS, Script

Argument = bytes | str | int
"""Text is sent as UTF-8."""

SECOND: Final = 1_000_000

MAX_PACKED: Final = 1024
"""How many packed commands each encoder of a frequent command caches."""


class RedisCommand(NamedTuple):
    """A command of Redis and how its reply is read.

    A tuple because a purchase makes 17 of them: a frozen dataclass of so many fields takes 1.6 µs,
    this 0.4.
    """

    command: tuple[Argument, ...] | bytes
    """As arguments, or packed for the connection."""
    read: Callable[[Any], Any]
    """Reply → result of the store's command."""
    script: Script | None = None
    """None for a plain command; those only read, so they can be repeated."""
    keys: tuple[str, ...] = ()
    """All keys that the command touches, in one hash slot; none if it is about a whole node."""
    arguments: tuple[Argument, ...] = ()
    """The arguments of a script that follow its keys."""
    recalls: tuple[str, ...] = ()
    """Topics of `repeats.LearnedKeys`, whose keys the command declares as well."""
    teaches: str = ""
    """The topic under which the keys of this command are remembered."""
    offers: tuple[str, ...] = ()
    """Keys that later commands of the first topic will need, once one of them has asked."""
    asked_often: str = ""
    """A key that never exists. Declaring it makes the script do without further keys."""
    follow_up: Callable[[Any], Sequence[RedisCommand]] | None = None
    """Reply → further commands, in any slots. `read` then gets a list: this reply, and theirs."""
    planned: Planned | None = None
    """Of a reservation: what it changes, remembered for its settlement, see `Keys.planned`."""
    name: str = ""
    """The name of the script, or of the plain command."""
    merge: Callable[[Sequence[Any]], Any] | None = None
    """Results → one result, for a command about servers, which every primary of a cluster executes.
    The first result is that of the books' node."""
    cursor_at: int | None = None
    """For a scan over a whole server: the index of the argument that is the cursor."""

    def with_keys(self, more: Iterable[str]) -> RedisCommand:
        """The same script with further keys."""
        if self.script is None:
            raise TypeError("Only a script can have further keys.")
        keys = tuple(dict.fromkeys((*self.keys, *more)))
        if len(keys) == len(self.keys):
            return self
        command = ("EVALSHA", self.script.sha, len(keys), *keys, *self.arguments)
        return self._replace(command=command, keys=keys)


@singledispatch
def encode(command: Command[Any], keys: Keys) -> RedisCommand:
    """The Redis command for `command`. Raises `TypeError` for a command without an encoder."""
    raise TypeError(f"The Redis store has no encoder for the command {type(command).__name__}.")


def script_command(
    name: str,
    keys: Sequence[str],
    arguments: Iterable[Argument],
    *,
    read: Callable[[Any], Any],
    merge: Callable[[Sequence[Any]], Any] | None = None,
    cursor_at: int | None = None,
    recalls: tuple[str, ...] = (),
    teaches: str = "",
    offers: tuple[str, ...] = (),
    asked_often: str = "",
    follow_up: Callable[[Any], Sequence[RedisCommand]] | None = None,
    planned: Planned | None = None,
) -> RedisCommand:
    """Runs a script of `lua/`. `keys` are all that it touches, as far as they are known."""
    script, declared, rest = SCRIPTS[name], tuple(keys), tuple(arguments)
    # Not by the class itself, whose call takes as long as the rest: a purchase has 13 scripts.
    return tuple.__new__(
        RedisCommand,
        (
            ("EVALSHA", script.sha, len(declared), *declared, *rest),
            read,
            script,
            declared,
            rest,
            recalls,
            teaches,
            offers,
            asked_often,
            follow_up,
            planned,
            name,
            merge,
            cursor_at,
        ),
    )


def plain_command(
    name: str, key: str, *arguments: Argument, read: Callable[[Any], Any]
) -> RedisCommand:
    """A command that reads one key."""
    return RedisCommand((name, key, *arguments), read, keys=(key,), name=name)


def packed(command: RedisCommand) -> RedisCommand:
    """The same, packed, for an encoder that caches its commands."""
    return command._replace(command=hiredis.pack_command(cast(Any, command.command)))


def no_result(reply: Any) -> None:
    """Reads the reply to a command that has no result."""


def unchanged(reply: Any) -> Any:
    """Reads a reply that is the result."""
    return reply


def read_texts(reply: Sequence[bytes]) -> Sequence[str]:
    """Reads a list of UTF-8 strings."""
    return [text.decode() for text in reply]


def read_cursor(cursor: bytes) -> str | None:
    """The cursor with which `SCAN` continues; None at the end."""
    return None if cursor == b"0" else cursor.decode()


def microseconds(seconds: float) -> int:
    """Seconds as microseconds, rounded up."""
    return math.ceil(seconds * SECOND)


def milliseconds(seconds: float) -> int:
    """Seconds as milliseconds, rounded up, for scripts that do without the clock."""
    return math.ceil(seconds * 1000)


def optional(value: bytes | None) -> tuple[Argument, Argument]:
    """Bytes that may be absent, as the scripts read them."""
    return (0, b"") if value is None else (1, value)


def pairs(flat: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    """The items of a flat list by twos, as Redis returns a hash."""
    items = iter(flat)
    return zip(items, items, strict=True)


def flatten(items: Iterable[tuple[Argument, Argument]]) -> list[Argument]:
    """The inverse of `pairs`."""
    return [item for pair in items for item in pair]
