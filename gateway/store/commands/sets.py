"""Sets of strings with a time to live, by space and name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Command


@dataclass(frozen=True, slots=True)
class AddToSet(Command[None]):
    """Adds members. The whole set lives for at least `ttl_seconds` from now."""

    space: str
    name: str
    members: tuple[str, ...]
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class GetSet(Command[Sequence[str]]):
    """The members of a set, in any order; none if there is no such set."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class RemoveFromSet(Command[None]):
    """Removes members; the others stay. Also works in a full store."""

    space: str
    name: str
    members: tuple[str, ...]
