"""The hot tier: images that this process served lately, in memory, in both views.

Bytes are named by their content, so what is here can be old but never wrong: only a take-down
drops any. How much a process may hold is its own bound, in bytes; where the bytes come from when
they are not here is `blobs`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, get_args

from gateway.images import Representation

MAX_SHARE: Final = 2
"""Larger ones than the bound divided by this would evict too much, and are not kept."""


class MemoryCache:
    """The most recently used views of images, of at most `limit_bytes` together; 0 keeps none."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._views: OrderedDict[tuple[str, Representation], bytes] = OrderedDict()

    def __len__(self) -> int:
        """How many views it holds."""
        return len(self._views)

    @property
    def size_bytes(self) -> int:
        """What they have together."""
        return self._size_bytes

    def get(self, digest: str, representation: Representation) -> bytes | None:
        """A representation, which then counts as used just now; None if it is not here."""
        data = self._views.get((digest, representation))
        if data is not None:
            self._views.move_to_end((digest, representation))
        return data

    def put(self, digest: str, representation: Representation, data: bytes) -> None:
        """Keeps a representation; the least recently used make room for it."""
        self._remove(digest, representation)
        if not 0 < len(data) <= self._limit_bytes // MAX_SHARE:
            return
        self._views[digest, representation] = data
        self._size_bytes += len(data)
        while self._size_bytes > self._limit_bytes:
            _, oldest = self._views.popitem(last=False)
            self._size_bytes -= len(oldest)

    def drop(self, digest: str) -> None:
        """Forgets an image in both views."""
        for representation in get_args(Representation):
            self._remove(digest, representation)

    def _remove(self, digest: str, representation: Representation) -> None:
        data = self._views.pop((digest, representation), b"")
        self._size_bytes -= len(data)
