"""When each key was last used, to the minute.

It is kept outside the key's record, which workers compare with every request, and is written in
the background: a kill loses the uses of the last seconds.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from gateway.store.commands import GetValue, SetValue
from gateway.store.protocol import Store

SPACE: Final = "key_uses"
KEEP_SECONDS: Final = 400 * 86_400.0
WRITE_EVERY_SECONDS: Final = 5.0
BATCH: Final = 200
MAX_WAITING: Final = 10_000
"""Keys whose use this worker remembers until it is written, and after."""


class KeyUses:
    """Collects the uses of keys, writes them, and reads those of all workers."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._waiting: dict[str, int] = {}
        self._written: OrderedDict[str, int] = OrderedDict()

    def mark(self, key_id: str) -> None:
        """The key is used now."""
        minute = int(self._clock()) // 60 * 60
        if self._written.get(key_id) == minute:
            return
        if key_id in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[key_id] = minute

    async def write(self) -> None:
        """Writes what was marked. Raises `StoreUnavailable`; then it stays marked."""
        waiting, self._waiting = self._waiting, {}
        try:
            while waiting:
                batch = dict(list(waiting.items())[:BATCH])
                await self._write_batch(batch)
                for key_id in batch:
                    del waiting[key_id]
        finally:
            # What was marked meanwhile is later.
            self._waiting = {**waiting, **self._waiting}

    async def _write_batch(self, uses: dict[str, int]) -> None:
        """Moves times forward only: another worker may have written a later one."""
        stored = await self._store.execute([GetValue(SPACE, key_id) for key_id in uses])
        later = {
            key_id: value
            for (key_id, minute), value in zip(uses.items(), stored, strict=True)
            if _decode(value) < minute
        }
        is_written = await self._store.execute(
            [
                SetValue(
                    SPACE,
                    key_id,
                    b"%d" % uses[key_id],
                    KEEP_SECONDS,
                    only_if_absent=value is None,
                    expected=() if value is None else (value,),
                )
                for key_id, value in later.items()
            ]
        )
        lost = {key_id for key_id, done in zip(later, is_written, strict=True) if not done}
        for key_id, minute in uses.items():
            if key_id in lost:  # another worker wrote at the same moment; the next time decides
                self._waiting.setdefault(key_id, minute)
                continue
            self._written[key_id] = minute
            self._written.move_to_end(key_id)
            if len(self._written) > MAX_WAITING:
                self._written.popitem(last=False)

    async def read(self, key_ids: Sequence[str]) -> dict[str, int]:
        """Unix seconds of the minute in which each key was last used; without unused ones."""
        found: dict[str, int] = {}
        for start in range(0, len(key_ids), BATCH):
            part = key_ids[start : start + BATCH]
            values = await self._store.execute([GetValue(SPACE, key_id) for key_id in part])
            times = zip(part, map(_decode, values), strict=True)
            found |= {key_id: at for key_id, at in times if at}
        return found


def _decode(value: bytes | None) -> int:
    """The stored time; 0 if there is none, or if it is unreadable."""
    return int(value) if value is not None and value.isdigit() and len(value) < 16 else 0
