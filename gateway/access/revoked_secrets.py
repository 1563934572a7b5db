"""Revoked keys that clients still send.

A worker notes the hash of each incorrect secret. The secrets of revoked keys are not in the index
of secrets any more, so a background job looks for the hashes in the records of revoked keys, and of
keys that were removed from `access.yaml`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.access.declared_keys import DECLARED_KEYS
from gateway.access.key_records import KeyRecord
from gateway.access.key_spaces import REVOKED, decode_key, hash_secret
from gateway.access.watched import watched_key
from gateway.events import RevokedUse
from gateway.store.pages import scan_records
from gateway.store.protocol import Store

MAX_NOTED: Final = 1000
"""Different incorrect secrets between two looks. Further ones are not noted."""
LOOK_SECONDS: Final = 10.0
"""Revoked keys are read at most this often: a client may send a wrong secret all the time."""


@dataclass(slots=True)
class _Noted:
    requests: int = 0
    address: str = ""


class RevokedSecrets:
    """Finds revoked keys by the secrets that were refused."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._noted: dict[str, _Noted] = {}
        self._looked_at: float | None = None

    def note(self, secret: str, address: str) -> None:
        """A request with an incorrect secret was refused."""
        secret_hash = hash_secret(secret)
        noted = self._noted.get(secret_hash)
        if noted is None:
            if len(self._noted) >= MAX_NOTED:
                return
            noted = self._noted[secret_hash] = _Noted()
        noted.requests += 1
        noted.address = address

    async def find(self) -> list[RevokedUse]:
        """The revoked keys whose secrets were noted since the last call.

        Raises `StoreUnavailable`; the next call finds them then.
        """
        now = self._clock()
        is_early = self._looked_at is not None and now - self._looked_at < LOOK_SECONDS
        if not self._noted or is_early:
            return []
        self._looked_at = now
        noted = dict(self._noted)
        found: list[RevokedUse] = []
        for space in (REVOKED, DECLARED_KEYS):
            async for page in scan_records(self._store, space):
                found += await asyncio.to_thread(_find, page, noted)
        for secret_hash in noted:
            self._noted.pop(secret_hash, None)
        return found


def _find(page: Mapping[str, bytes], noted: Mapping[str, _Noted]) -> list[RevokedUse]:
    records = (decode_key(data) for data in page.values())
    return [use for record in records if record and (use := _use_of(record, noted)) is not None]


def _use_of(record: KeyRecord, noted: Mapping[str, _Noted]) -> RevokedUse | None:
    found = [noted[secret.sha256] for secret in record.secrets if secret.sha256 in noted]
    if not found or record.revoked_at is None:
        return None
    requests = sum(each.requests for each in found)
    return RevokedUse(watched_key(record), record.revoked_at, requests, found[-1].address)
