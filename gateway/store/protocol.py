"""What a store is: it executes commands, and its watchers hear of events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar

R = TypeVar("R")


class Command(Generic[R]):
    """Something the store does in one atomic step, answered with an `R`."""

    __slots__ = ()


# ── asking ──────────────────────────────────────────────────────────────────────────────────


class Watch(Protocol):
    """Wakes whoever waits for something to be published on one flight."""

    async def wait(self, timeout_seconds: float) -> None:
        """Returns after a publication since the last wait, or after the time."""


class Store(Protocol):
    """Where state lives. Opened by `open_store`, shared by a whole process."""

    name: str
    """What a person is told about where it is, without secrets."""

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Runs verbs in order, in one round trip; their answers in the same order.

        Raises `errors.StoreUnavailable` when the store cannot be reached or does not answer
        within two seconds; what was asked may then still happen later. Raises `errors.StoreFull`
        when a verb needed room and there is none: the others of the batch may have been done.
        """

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """Watches a flight. Enter it *before* the look-up that decides to wait."""


class BlobStore(Protocol):
    """Where image bytes live, by content hash."""

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `lifetime_seconds` from now; repeating it only prolongs.

        Raises `errors.StoreFull` when there is no room left; whatever was there is unharmed.
        """

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> Command[None] | None:
        """The command that does what `put` does, for a batch of the store; None: use `put`.

        There is one where the store keeps the bytes too, for bytes that are small enough not to
        delay the commands of others, and to fit into a store that is full.
        """

    async def get(self, digest: str) -> bytes | None:
        """The bytes, or None when they are gone."""

    async def delete(self, digest: str) -> None:
        """Removes them, if they are there; works also where there is no room left."""

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """About `limit` digests with their sizes in bytes, from the mark `after` ("" = the start).

        Answers the mark of the next page, None at the end. Whatever stays from the first page to
        the last is on at least one of them.
        """

    async def capacity_bytes(self) -> int | None:
        """How much may lie here when nobody has said; None when the place has no limit of its own.

        In a Redis half of its `maxmemory`, or 1 GiB where that is not set (CONTRACT §3).
        """

    def ephemeral(self) -> BlobStore:
        """A place of its own beside this one, for bytes that live for minutes: no scan finds them.

        What lies there is in nobody's books; its end is all that bounds it.
        """
