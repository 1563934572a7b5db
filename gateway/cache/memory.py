"""The hot tier: pictures that this process served lately, in memory, in both views.

Bytes are named by their content, so what is here can be old but never wrong: only a take-down
drops any. How much a process may hold is its own bound, in bytes; where the bytes come from when
they are not here is `blobs`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Literal, get_args

View = Literal["data", "base64"]
"""A picture's bytes as they are, or as a JSON answer shows them."""

LARGEST_SHARE: Final = 2
"""A view larger than the bound divided by this would push too much out, and is not kept."""


class Hot:
    """The most recently used views of pictures, of at most `limit_bytes` together; 0 keeps none."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._views: OrderedDict[tuple[str, View], bytes] = OrderedDict()

    def __len__(self) -> int:
        """How many views it holds."""
        return len(self._views)

    @property
    def size_bytes(self) -> int:
        """What they have together."""
        return self._size_bytes

    def get(self, digest: str, view: View) -> bytes | None:
        """A view, which then counts as used just now; None if it is not here."""
        data = self._views.get((digest, view))
        if data is not None:
            self._views.move_to_end((digest, view))
        return data

    def put(self, digest: str, view: View, data: bytes) -> None:
        """Keeps a view; the least recently used make room for it."""
        self._remove(digest, view)
        if not 0 < len(data) <= self._limit_bytes // LARGEST_SHARE:
            return
        self._views[digest, view] = data
        self._size_bytes += len(data)
        while self._size_bytes > self._limit_bytes:
            _, oldest = self._views.popitem(last=False)
            self._size_bytes -= len(oldest)

    def drop(self, digest: str) -> None:
        """Forgets a picture in both views."""
        for view in get_args(View):
            self._remove(digest, view)

    def _remove(self, digest: str, view: View) -> None:
        data = self._views.pop((digest, view), b"")
        self._size_bytes -= len(data)
