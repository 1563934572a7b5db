"""Images of which this worker knows that a link to them can be followed.

A link needs the image's record in the image index and its bytes, for as long as it lives. Both
outlive an entry that has the image. So while the entry has it, what was true once stays true,
unless an eviction was interrupted between the bytes and the slots that it empties.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

LINKABLE_SECONDS: Final = 3600.0
"""After which the store is asked again: a link finds what an interrupted eviction left behind."""

MAX_LINKABLE: Final = 10_000


class LinkableImages:
    """Remembers images by their ids, the most recently checked ones."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._checked_at: OrderedDict[str, float] = OrderedDict()

    def add(self, image_ids: Iterable[str]) -> None:
        """Their records and bytes are in the store now."""
        for image_id in image_ids:
            self._checked_at[image_id] = self._clock()
            self._checked_at.move_to_end(image_id)
        while len(self._checked_at) > MAX_LINKABLE:
            self._checked_at.popitem(last=False)

    def has_all(self, image_ids: Iterable[str]) -> bool:
        """Whether all of these were there within the last hour."""
        since, checked_at = self._clock() - LINKABLE_SECONDS, self._checked_at
        return all(
            image_id in checked_at and checked_at[image_id] >= since for image_id in image_ids
        )
