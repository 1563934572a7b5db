"""The interfaces of a store: commands, watches and blobs.

The commands themselves are in `commands`. `redis` and `sqlite` are the stores that execute them,
and `blobs` has the stores of image bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, Protocol, TypeVar

R = TypeVar("R")


class Command(Generic[R]):
    """Something that the store does in one atomic step; its result is an `R`."""

    __slots__ = ()


class Watch(Protocol):
    """Waits for the events of one flight."""

    async def wait(self, timeout_seconds: float) -> None:
        """Returns when an event was published since the last wait, or after the timeout.

        It may also return early without an event, so the events are read after every wait.
        """


class KeptReads(Protocol):
    """Results of reads that this process keeps until the store says that they have changed.

    What `find` returns was true at most 100 ms ago, or 2 s ago if the connection to the store was
    cut without a word (`docs/reference/cache.md#hits-from-memory`). Which reads can be kept is in
    `kept_reads`.
    """

    def find(self, commands: Sequence[Command[Any]]) -> list[Any] | None:
        """The results, if all of them are kept and hold now. Nothing is sent."""

    def fill(self, commands: Sequence[Command[Any]]) -> None:
        """Reads what is not kept yet, in the background, if the store can say that it changes."""

    def watch(self, command: Command[Any], notify: Callable[[], None]) -> None:
        """Calls `notify` on the event loop when the result of `command` may have changed.

        Only after `fill`: the store reports only writes of names that were read.
        """

    async def find_refusal(self) -> str | None:
        """Why the store refuses to say what changes; None if it does not, or cannot be reached."""


class Store(Protocol):
    """The state of all gateways that share it. One is open per process."""

    name: str
    """Where it is, for logs and messages; never contains a password."""

    kept: KeptReads
    """Reads of this store that cost no round trip."""

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Executes commands in order, in one round trip; returns their results in that order.

        Raises `errors.StoreUnavailable` if the store cannot be reached or does not respond within
        two seconds; the commands may still be executed later. Raises `errors.StoreFull` if a
        command needs room and there is none; the other commands may have been executed.
        """

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        """Watches a flight. Enter it *before* reading the state that decides whether to wait."""


class RemoteBlobs(Protocol):
    """What a remote blob store can do as well: read parts of bytes, and give clients their URL.

    Every method raises `errors.StoreUnavailable` if the store cannot be reached.
    """

    async def size(self, digest: str) -> int | None:
        """How many bytes are stored; None if none are."""

    async def get_range(self, digest: str, part: range) -> bytes | None:
        """The bytes in a range that is not empty; None if they are not stored.

        They cannot be compared with the digest.
        """

    async def presign(self, digest: str, seconds: int) -> str | None:
        """A URL at which anyone can read the bytes for so long; None if they are not stored.

        Raises `errors.StoreUnavailable` too if the credentials cannot sign.
        """


class BlobStore(Protocol):
    """Image bytes by digest: their SHA-256 as 64 lower-case hex digits.

    Every method that does I/O raises `errors.StoreUnavailable` if the store cannot be reached.
    """

    listing_seconds: float | None
    """How often one worker of all gateways may scan and sweep, because each list costs money. None:
    every worker may at any time."""

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `ttl_seconds`; putting them again can only extend that.

        Raises `errors.StoreFull` if there is no room; blobs that are already stored stay.
        """

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> Command[None] | None:
        """`put` as a command for a batch; None: use `put`.

        Only a blob store in the same server as the store has one, and only for bytes that are too
        few to delay the commands of other requests.
        """

    async def get(self, digest: str) -> bytes | None:
        """The bytes; None if they are not stored."""

    async def delete(self, digest: str) -> None:
        """Deletes the bytes if they are stored; also works in a full store."""

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """About `limit` digests with their sizes in bytes, from the cursor `after` ("": the start).

        Returns the cursor of the next page, None on the last one. Blobs that are stored from the
        first page to the last are on at least one page.
        """

    async def capacity_bytes(self) -> int | None:
        """The bound on all blobs if none is configured; None: unlimited.

        In Redis half of `maxmemory`, or 1 GiB without one (docs/reference/cache.md#bytes).
        """

    def may_be_on(self, digest: str, node: str) -> bool:
        """Whether deleting the bytes may free room on this node of a cluster; see `StoreFull`."""

    async def sweep(self, limit: int) -> int:
        """Removes up to `limit` expired blobs; 0 in a store that expires them itself."""

    def remote(self) -> RemoteBlobs | None:
        """The same bytes with further methods, if the store is remote; None: read them whole."""

    def ephemeral(self) -> BlobStore:
        """A separate blob store in the same place for bytes that live for minutes.

        `scan` does not find these blobs, and the LRU index of images does not count them: they have
        one of their own.
        """
