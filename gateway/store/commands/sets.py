"""Sets of names with a time to live."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.store.protocol import Verb


@dataclass(frozen=True, slots=True)
class Enlist(Verb[None]):
    """Puts members onto a list, which is a set; the whole list lives at least so long from now."""

    space: str
    name: str
    members: tuple[str, ...]
    lifetime_seconds: float


@dataclass(frozen=True, slots=True)
class ReadList(Verb[Sequence[str]]):
    """The members of a list, in any order; none when there is no such list."""

    space: str
    name: str


@dataclass(frozen=True, slots=True)
class Strike(Verb[None]):
    """Takes members off a list."""

    space: str
    name: str
    members: tuple[str, ...]
