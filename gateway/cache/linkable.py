"""Images that this worker may link to without asking the store.

A link works while the image index has the image's record and the store has its bytes. Both expire
later than an entry with the image. So once the worker has seen both, it can rely on them while the
entry has the image. The exception is an eviction that is interrupted after it has deleted the bytes
and before it has emptied the slots.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

LINKABLE_SECONDS: Final = 3600.0
"""After this time the worker asks the store again, because of interrupted evictions."""

MAX_LINKABLE: Final = 10_000


class LinkableImages:
    """The ids of the images that were checked last."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._checked_at: OrderedDict[str, float] = OrderedDict()

    def add(self, image_ids: Iterable[str]) -> None:
        """Notes that their records and bytes are in the store now."""
        for image_id in image_ids:
            self._checked_at[image_id] = self._clock()
            self._checked_at.move_to_end(image_id)
        while len(self._checked_at) > MAX_LINKABLE:
            self._checked_at.popitem(last=False)

    def has_all(self, image_ids: Iterable[str]) -> bool:
        """Whether the store had all of them within the last hour."""
        since, checked_at = self._clock() - LINKABLE_SECONDS, self._checked_at
        return all(
            image_id in checked_at and checked_at[image_id] >= since for image_id in image_ids
        )
