"""Takedowns: which bytes may never be served again.

Every worker holds the whole list in memory, so that asking costs nothing on the way of a request,
and looks twice a second whether somebody has added to it. What goes with an image that is taken
down is `removal`.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from typing import Final

from gateway.errors import INVALID_REQUEST, Charge, UpstreamFailure
from gateway.images import Usage
from gateway.store.batch import Batch, execute
from gateway.store.commands import AddToSet, GetSet, GetValue, SetValue
from gateway.store.protocol import Store

LOOK_SECONDS: Final = 0.4
"""How often a worker looks; all know within a second (CONTRACT §6, *Take-down*)."""

SPACE: Final = "takedowns"
LIST: Final = "digests"
VERSION: Final = "version"
TAKEN_DOWN: Final = "content_taken_down"
"""The error's code."""
FOREVER_SECONDS: Final = 100 * 365 * 86_400.0


class Takedowns:
    """The digests that were taken down, as this worker knows them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._digests: frozenset[str] = frozenset()
        self._removed: frozenset[str] = frozenset()
        self._version: bytes | None = None

    def __len__(self) -> int:
        """How many there are."""
        return len(self._digests)

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def add(self, batch: Batch, digests: Iterable[str]) -> None:
        """Takes bytes down; every worker learns it at its next look, this one now."""
        digests = tuple(digests)
        batch.add(AddToSet(SPACE, LIST, digests, FOREVER_SECONDS))
        batch.add(SetValue(SPACE, VERSION, secrets.token_bytes(12), None))
        self._digests |= frozenset(digests)

    async def refresh(self) -> Collection[str]:
        """Reads the list if it has changed; answers what is still to be removed.

        At the first look nothing is: whoever took it down has done so. Raises `StoreUnavailable`.
        """
        version = await execute(self._store, GetValue(SPACE, VERSION)) or b""
        if version != self._version:
            listed = await execute(self._store, GetSet(SPACE, LIST))
            digests = frozenset(listed)
            if self._version is None:
                self._removed = digests
            self._digests, self._version = digests | self._digests, version
        return self._digests - self._removed

    def were_removed(self, digests: Collection[str]) -> None:
        """Their bytes are gone from memory and store; until then each look names them again."""
        self._removed |= frozenset(digests)


def content_taken_down(
    *,
    charge: Charge = Charge.FREE,
    usage: Usage | None = None,
    upstream_request_id: str | None = None,
) -> UpstreamFailure:
    """The answer to a question, or to a purchase, that leads to what was taken down."""
    return UpstreamFailure(
        "This image was taken down by the operator of the gateway.",
        charge=charge,
        status=403,
        type=INVALID_REQUEST,
        code=TAKEN_DOWN,
        source="gateway",
        usage=usage,
        upstream_request_id=upstream_request_id,
    )


def is_taken_down(refusal: UpstreamFailure | None) -> bool:
    """Whether a question is refused because it was taken down."""
    return refusal is not None and refusal.code == TAKEN_DOWN
