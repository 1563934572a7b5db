"""Ordered sets of strings with a time to live, by space and name.

Members are in the order of their bytes, and are read from the last one down. A list by time has
members that begin with a time of a fixed width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.frozen import frozen
from gateway.store.protocol import Command

MAX_TRIMMED: Final = 10
"""Members that one addition removes from a set: more than it adds, so no set stays too long."""


@frozen
class AddToOrderedSets(Command[None]):
    """Adds a member to each of the sets; may be repeated.

    Each set lives for at least `ttl_seconds` from now. It loses up to `MAX_TRIMMED` of the members
    before `oldest`, and as many of its first members while it has more than `max_members`.
    """

    space: str
    names: tuple[str, ...]
    member: str
    ttl_seconds: float
    max_members: int
    oldest: str = ""


@frozen
class RemoveFromOrderedSets(Command[None]):
    """Removes a member from each of the sets. Also works in a full store."""

    space: str
    names: tuple[str, ...]
    member: str


@frozen
class ReadOrderedSet(Command[Sequence[str]]):
    """The last `limit` members, of those before `before` ("": of all), last first."""

    space: str
    name: str
    limit: int
    before: str = ""


@frozen
class CountOrderedSets(Command[Sequence[int]]):
    """How many members each of the sets has, in their order."""

    space: str
    names: tuple[str, ...]
