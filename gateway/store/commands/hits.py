"""How often each image was a hit, and when last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.store.protocol import Command

MAX_HITS: Final = 200
"""The most images of one command, so that none takes long."""


class Hits(NamedTuple):
    """The hits of an image."""

    total: int
    last_at: float
    """The store's time in Unix seconds at which they were last counted; 0 without any."""


NO_HITS: Final = Hits(0, 0.0)


@dataclass(frozen=True, slots=True)
class CountHits(Command[None]):
    """Adds to the hits of at most `MAX_HITS` images.

    They live for `ttl_seconds` after they were last counted.
    """

    hits: tuple[tuple[str, int], ...]
    """Image ids, each with the number of its hits."""
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class ReadHits(Command[Sequence[Hits]]):
    """The hits of each image, in their order."""

    image_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeleteHits(Command[None]):
    """Deletes the hits of images. Also works in a full store."""

    image_ids: tuple[str, ...]
