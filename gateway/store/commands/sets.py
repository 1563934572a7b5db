"""Sets of names with a time to live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Command


@dataclass(frozen=True, slots=True)
class AddToSet(Command[None]):
    """Puts members onto a list, which is a set; the whole list lives at least so long from now."""

    space: str
    name: str
    members: tuple[str, ...]
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class GetSet(Command[Sequence[str]]):
    """The members of a list, in any order; none when there is no such list."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class RemoveFromSet(Command[None]):
    """Takes members off a list."""

    space: str
    name: str
    members: tuple[str, ...]
