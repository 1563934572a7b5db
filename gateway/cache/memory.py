"""The memory cache: images that this worker served recently, raw or as base64.

Bytes are named by their hash, so they can be old but never wrong: only a take-down drops any. Each
worker has its own bound. Where bytes come from that are not here is `blobs`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, get_args

from gateway.images import Representation

MAX_SHARE: Final = 2
"""Bytes larger than the bound divided by this would evict too much, and are not cached."""


class MemoryCache:
    """The most recently used representations, of at most `max_bytes` together; 0 disables it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._cached: OrderedDict[tuple[str, Representation], bytes] = OrderedDict()

    def __len__(self) -> int:
        """How many representations are cached."""
        return len(self._cached)

    @property
    def size_bytes(self) -> int:
        """The bytes of all of them together."""
        return self._size_bytes

    def get(self, digest: str, representation: Representation) -> bytes | None:
        """The bytes, which now count as used last; None if they are not cached."""
        data = self._cached.get((digest, representation))
        if data is not None:
            self._cached.move_to_end((digest, representation))
        return data

    def peek(self, digest: str, representation: Representation) -> bytes | None:
        """As `get`, without counting as a use."""
        return self._cached.get((digest, representation))

    def put(self, digest: str, representation: Representation, data: bytes) -> None:
        """Caches bytes, and evicts the least recently used to make room."""
        self._remove(digest, representation)
        if not 0 < len(data) <= self._max_bytes // MAX_SHARE:
            return
        self._cached[digest, representation] = data
        self._size_bytes += len(data)
        while self._size_bytes > self._max_bytes:
            _, evicted = self._cached.popitem(last=False)
            self._size_bytes -= len(evicted)

    def drop(self, digest: str) -> None:
        """Drops an image in all representations."""
        for representation in get_args(Representation):
            self._remove(digest, representation)

    def _remove(self, digest: str, representation: Representation) -> None:
        data = self._cached.pop((digest, representation), b"")
        self._size_bytes -= len(data)
