"""The keys that `access.yaml` declares, as the store remembers them.

A declared key needs no record to work. But once it is removed from the file, only the store can
tell that a secret which a client still sends was the secret of a key: `revoked_secrets` looks
there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from gateway.access.access_file import AccessFile
from gateway.access.key_records import KeyRecord
from gateway.access.key_spaces import REVOKED_SECONDS
from gateway.store.batch import execute
from gateway.store.commands import CompareAndSet, Write
from gateway.store.pages import scan_records
from gateway.store.protocol import Store
from gateway.store.turns import PART_OF_INTERVAL, take_turn
from gateway.stored import read_stored

DECLARED_KEYS: Final = "declared_keys"
"""The space. A record's name is the key's id."""
RECORD_EVERY_SECONDS: Final = 5.0
WRITES_AT_ONCE: Final = 100


class DeclaredKeys:
    """Records the declared keys, and when they were removed from the file."""

    def __init__(
        self,
        store: Store,
        declared: Callable[[], AccessFile],
        *,
        worker: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._declared = declared
        self._worker = worker
        self._clock = clock
        self._version: int | None = None
        """Of the file that was recorded last."""

    async def record(self) -> None:
        """Records the file if it is another one than the last time. Raises `StoreUnavailable`."""
        declared = self._declared()
        if declared.version == self._version:
            return
        seconds = RECORD_EVERY_SECONDS * PART_OF_INTERVAL
        if not await take_turn(self._store, DECLARED_KEYS, self._worker, seconds=seconds):
            return
        stored: dict[str, bytes] = {}
        async for page in scan_records(self._store, DECLARED_KEYS):
            stored |= page
        # In a thread: encoding a thousand keys would stop the event loop.
        writes = await asyncio.to_thread(
            lambda: [*_declare(declared.ids, stored), *self._revoke(declared.ids, stored)]
        )
        results = [
            await execute(self._store, CompareAndSet(tuple(batch)))
            for batch in _batches(writes, WRITES_AT_ONCE)
        ]
        if all(result is None for result in results):
            self._version = declared.version

    def _revoke(
        self, declared: Mapping[str, KeyRecord], stored: Mapping[str, bytes]
    ) -> list[Write]:
        """Those that were removed from the file end now, and are forgotten some time later."""
        now, writes = int(self._clock()), []
        for key_id, data in stored.items():
            record = read_stored("declared_key", data, KeyRecord.decode)
            if key_id in declared or record is None:
                continue
            if record.revoked_at is None:
                ended = record.model_copy(update={"revoked_at": now}).encode()
                writes.append(Write(DECLARED_KEYS, key_id, ended, expected=data))
            elif record.revoked_at < now - REVOKED_SECONDS:
                writes.append(Write(DECLARED_KEYS, key_id, None, expected=data))
        return writes


def _declare(declared: Mapping[str, KeyRecord], stored: Mapping[str, bytes]) -> list[Write]:
    writes = []
    for key_id, key in declared.items():
        # What an event says of a key, and nothing that would have to be written more often.
        data = KeyRecord(
            id=key_id,
            name=key.name,
            prefix="",
            secrets=key.secrets,
            team=key.team,
            created_at=0,
            declared_in=key.declared_in,
        ).encode()
        if stored.get(key_id) != data:
            writes.append(Write(DECLARED_KEYS, key_id, data, expected=stored.get(key_id)))
    return writes


def _batches(writes: Sequence[Write], size: int) -> list[list[Write]]:
    rest = iter(writes)
    return list(iter(lambda: list(itertools.islice(rest, size)), []))
