"""Sets of strings with a time to live, by space and name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.frozen import frozen
from gateway.store.protocol import Command


@frozen
class AddToSet(Command[None]):
    """Adds members. The whole set lives for at least `ttl_seconds` from now."""

    space: str
    name: str
    members: tuple[str, ...]
    ttl_seconds: float


@frozen
class MembersPage:
    """Some members of a set."""

    members: Sequence[str]
    after: str | None
    """The cursor for the next `ScanSet`; None on the last page."""


@frozen
class ScanSet(Command[MembersPage]):
    """About `limit` members of a set from the cursor `after` ("": the start), in any order.

    Members that are in the set from the first page to the last are on at least one page.
    """

    space: str
    name: str
    after: str = ""
    limit: int = 500


@frozen
class HasMember(Command[bool]):
    """Whether a set has this member."""

    space: str
    name: str
    member: str


@frozen
class RemoveFromSet(Command[None]):
    """Removes members; the others stay. Also works in a full store."""

    space: str
    name: str
    members: tuple[str, ...]


class BoundedSet(NamedTuple):
    """A set of at most `max_members`, each with its own time to live."""

    space: str
    name: str
    max_members: int


@frozen
class AddToBoundedSets(Command[Sequence[str]]):
    """Adds each member to all of `sets`, or to none if it is new to one that is full.

    Returns the members that all sets have now. A member lives for `ttl_seconds` after it was last
    added, so a full set has room again by itself.
    """

    sets: tuple[BoundedSet, ...]
    members: tuple[str, ...]
    ttl_seconds: float
