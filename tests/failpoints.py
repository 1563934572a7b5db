"""Fail points: a store that kills its process at a chosen step of a purchase.

A step is a store command that belongs to image requests, or the bytes of one image. Batches are
executed command by command, so that every state between two commands can be tested. Test and
process communicate through a folder: the test arms a point there, and the process with the next
step takes it, so its replacement has none. At the point that process stops, with heartbeats, until
the test kills it. A process that passes its last step lives on, and takes the next point too.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from gateway.configuration.settings import Settings
from gateway.store.commands import (
    AcquireLease,
    Admit,
    Publish,
    PutBlob,
    ReadEntry,
    Receive,
    ReleaseLease,
    RenewLease,
    Reserve,
    Settle,
    StoreImages,
)
from gateway.store.protocol import BlobStore, Command, Store, Watch

STEPS: Final = (
    Admit,
    ReadEntry,
    AcquireLease,
    Reserve,
    RenewLease,
    ReleaseLease,
    PutBlob,
    Receive,
    StoreImages,
    Settle,
    Publish,
)
"""The commands that are steps. Those of heartbeats, ledger writes, sweeps, followers are not."""

LOOK_SECONDS: Final = 0.005

FOLDER_VARIABLE: Final = "FAIL_POINTS"
MORTAL_LEASE_SECONDS: Final = 3.0
"""The lease in a gateway with fail points, until its purchase has reserved."""

When = Literal["before", "after"]
OpenStore = Callable[[Settings], AbstractAsyncContextManager[tuple[Store, BlobStore]]]
T = TypeVar("T")


@dataclass(frozen=True)
class KillPoint:
    """A process is killed right before or right after this step, counted from 1."""

    when: When
    step: int


@dataclass(frozen=True)
class Strings:
    """The folder through which a test controls a failing gateway."""

    folder: Path

    def arm(self, point: KillPoint) -> None:
        """Arms a point for the next purchase in any process, once, and forgets the last one."""
        for file in self.folder.iterdir():
            file.unlink()
        aside = self.folder / "arming"
        aside.write_text(f"{point.when} {point.step}")
        aside.rename(self._armed)

    def take(self) -> KillPoint | None:
        """The armed point, for the first process that calls this."""
        taken = self.folder / f"taken-by-{os.getpid()}"
        with suppress(FileNotFoundError):
            self._armed.rename(taken)
            when, step = taken.read_text().split()
            return KillPoint("before" if when == "before" else "after", int(step))
        return None

    def record(self, step: str) -> None:
        """Records a finished step."""
        with (self.folder / "steps").open("a") as file:
            file.write(f"{step}\n")

    def steps(self) -> list[str]:
        """The steps of the process that took the armed point, from then on."""
        file = self.folder / "steps"
        return file.read_text().split() if file.exists() else []

    def hold(self) -> None:
        """Reports that the point is reached."""
        (self.folder / "reached").touch()

    def is_held(self) -> bool:
        """Whether a process waits at the point."""
        return (self.folder / "reached").exists()

    def kill(self) -> None:
        """Kills the process that waits at the point."""
        (self.folder / "die").touch()

    def must_die(self) -> bool:
        """Whether the test has called `kill`."""
        return (self.folder / "die").exists()

    @property
    def _armed(self) -> Path:
        return self.folder / "armed"


class FailPoints:
    """Counts the steps of one process and stops it at its point."""

    def __init__(self, strings: Strings) -> None:
        self._strings = strings
        self._point: KillPoint | None = None
        self._count = 0
        self._last = ""
        self._is_reached = False

    async def pass_through(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        """Does one step; the process may be killed before or after it."""
        if (point := self._strings.take()) is not None:
            self._point, self._count, self._last = point, 0, ""
        # How often a lease is renewed while upstream works depends on how long that takes.
        if self._point is None or name == RenewLease.__name__ == self._last:
            return await work()
        self._last = name
        self._count += 1
        number = self._count
        await self._die_at(KillPoint("before", number))
        result = await work()
        self._strings.record(name)
        await self._die_at(KillPoint("after", number))
        return result

    async def _die_at(self, here: KillPoint) -> None:
        """Once a purchase has reached the point, all purchases of this process stop here."""
        self._is_reached = self._is_reached or here == self._point
        if not self._is_reached:
            return
        self._strings.hold()
        while not self._strings.must_die():  # noqa: ASYNC110 - it is signalled by a file
            await asyncio.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)


class FailingStore:
    """A store that executes the commands of a batch one by one, through the fail points."""

    def __init__(self, store: Store, points: FailPoints) -> None:
        self.name, self.kept = store.name, store.kept
        self._store = store
        self._points = points

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        """Executes one command at a time."""
        return [await self._run_one(command) for command in commands]

    async def _run_one(self, command: Command[Any]) -> Any:
        async def work() -> Any:
            return (await self._store.execute([command]))[0]

        if not isinstance(command, STEPS):
            return await work()
        return await self._points.pass_through(type(command).__name__, work)

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        return self._store.watch(flight)


class FailingBlobs:
    """A blob store whose `put` goes through the fail points."""

    def __init__(self, blobs: BlobStore, points: FailPoints) -> None:
        self.put_command = blobs.put_command
        self.get = blobs.get
        self.delete = blobs.delete
        self.scan = blobs.scan
        self.capacity_bytes = blobs.capacity_bytes
        self.ephemeral = blobs.ephemeral
        self._blobs = blobs
        self._points = points

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        async def work() -> None:
            await self._blobs.put(digest, data, ttl_seconds)

        await self._points.pass_through(PutBlob.__name__, work)


def with_fail_points(open_store: OpenStore, strings: Strings) -> OpenStore:
    """Wraps `open_store`: the stores that it opens have fail points."""

    @asynccontextmanager
    async def open_failing(settings: Settings) -> AsyncIterator[tuple[Store, BlobStore]]:
        async with open_store(settings) as (store, blobs):
            points = FailPoints(strings)
            yield FailingStore(store, points), FailingBlobs(blobs, points)

    return open_failing
