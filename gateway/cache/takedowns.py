"""Take-downs: which bytes may never be served again.

Every worker has the whole list in memory, so that a check costs no request to the store, and
refreshes it when the store says that it has changed. How an image is taken down is `invalidation`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Iterable
from typing import Final

from gateway.errors import INVALID_REQUEST, Charge, ErrorCode, UpstreamFailure
from gateway.failure_report import FailureReport, Reason
from gateway.images import Usage
from gateway.store.batch import Batch, execute, execute_kept
from gateway.store.commands import AddToSet, GetValue, SetValue
from gateway.store.pages import scan_set
from gateway.store.protocol import Store

REFRESH_SECONDS: Final = 0.4
"""How often a worker looks for take-downs if the store cannot tell it of one at once."""

SPACE: Final = "takedowns"
DIGESTS: Final = "digests"
VERSION: Final = "version"
FOREVER_SECONDS: Final = 100 * 365 * 86_400.0
_READ_VERSION: Final = GetValue(SPACE, VERSION)


class Takedowns:
    """The digests that are taken down, as this worker knows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._digests: frozenset[str] = frozenset()
        self._deleted: frozenset[str] = frozenset()
        self._version: bytes | None = None
        self.changed = asyncio.Event()
        """The list may have changed since the last refresh."""
        self.has_undeleted = asyncio.Event()
        """Set by a refresh that finds bytes to delete."""
        store.kept.watch(_READ_VERSION, self.changed.set)

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def add(self, batch: Batch, digests: Iterable[str]) -> None:
        """Takes bytes down: in this worker now, in every other one at its next refresh."""
        digests = tuple(digests)
        batch.add(AddToSet(SPACE, DIGESTS, digests, FOREVER_SECONDS))
        # The version after the list: a worker that sees the new version also reads the new list.
        batch.add(SetValue(SPACE, VERSION, secrets.token_bytes(12), None, is_kept=True))
        self._digests |= frozenset(digests)

    @property
    def undeleted(self) -> Collection[str]:
        """The digests whose bytes are to be deleted: those that the first refresh did not find."""
        return self._digests - self._deleted

    async def refresh(self, *, asks_store: bool = False) -> None:
        """Reads the list if it has changed.

        With `asks_store` it reads every take-down that was answered before; otherwise those that
        the store has reported to this worker. Raises `StoreUnavailable`.
        """
        self.changed.clear()
        read = execute if asks_store else execute_kept
        # The version before the list: a change in between is read at the next refresh.
        version = await read(self._store, _READ_VERSION) or b""
        if version != self._version:
            digests = frozenset([digest async for digest in scan_set(self._store, SPACE, DIGESTS)])
            # At the first refresh: other workers have deleted the bytes of these.
            if self._version is None:
                self._deleted = digests
            # A take-down of this worker may not have reached the store yet.
            self._digests, self._version = digests | self._digests, version
        if self.undeleted:
            self.has_undeleted.set()

    def mark_deleted(self, digests: Collection[str]) -> None:
        """These bytes are deleted. Until then each refresh finds them again."""
        self._deleted |= frozenset(digests)


def content_taken_down(
    *,
    charge: Charge = Charge.FREE,
    usage: Usage | None = None,
    upstream_request_id: str | None = None,
) -> UpstreamFailure:
    """The error of a request, or of a purchase, whose image is taken down."""
    return UpstreamFailure(
        "This image was taken down by the operator of the gateway.",
        charge=charge,
        type=INVALID_REQUEST,
        code=ErrorCode.CONTENT_TAKEN_DOWN,
        source="gateway",
        usage=usage,
        upstream_request_id=upstream_request_id,
        report=FailureReport(Reason.TAKEN_DOWN),
    )


def is_taken_down(refusal: UpstreamFailure | None) -> bool:
    """Whether a refusal is that of a prompt that was taken down."""
    return refusal is not None and refusal.code == ErrorCode.CONTENT_TAKEN_DOWN
