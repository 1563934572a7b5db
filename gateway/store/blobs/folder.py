"""Image bytes as files: `root/ab/<digest>`, one file an image, by content hash.

A file's modification time is the moment from which it counts as gone; its last real change is
nobody's business. Several processes may use one folder: files appear whole, by a rename, and
hold what their name says. Bytes in Redis are `redis`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.errors import StoreFull, StoreUnavailable

STALE_SECONDS: Final = 3600.0
"""A temporary file this old was left behind by a process that died."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_TEMPORARY: Final = "tmp-"
_PASSING: Final = "passing"
"""The folder inside the root for what lives for minutes. No digest begins like that."""


class FolderBlobs:
    """A `verbs.BlobStore` in a folder of this machine.

    `clock` answers Unix seconds. Folders are made as they are needed (0700). Every verb raises
    `StoreUnavailable` when the disk fails, `StoreFull` when it has no room left, and `ValueError`
    for a digest that is no SHA-256.

    `home` is a folder that is never made here: without it the disk has failed. Else a volume that
    is away for a while would be written to beneath the place where it comes back.
    """

    def __init__(
        self, root: Path, clock: Callable[[], float] = time.time, *, home: Path | None = None
    ) -> None:
        self._root = root
        self._clock = clock
        self._home = home

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `lifetime_seconds` from now; repeating it only prolongs."""
        path = self._path(digest)
        await asyncio.to_thread(self._put, path, data, expires_at=self._clock() + ttl_seconds)

    async def get(self, digest: str) -> bytes | None:
        """The bytes, or None when they are gone or their time is over."""
        return await asyncio.to_thread(self._get, self._path(digest))

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """None: no command writes files."""

    async def delete(self, digest: str) -> None:
        """Removes them, if they are there."""
        await asyncio.to_thread(self._delete, self._path(digest))

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """Up to `limit` digests with their sizes in bytes, in order, after the digest `after`.

        Answers also the mark of the next page, None at the end.
        """
        return await asyncio.to_thread(self._scan, after, limit)

    async def capacity_bytes(self) -> None:
        """A folder has no limit of its own."""

    def ephemeral(self) -> FolderBlobs:
        """A folder inside this one, for bytes that live for minutes; swept on its own."""
        return FolderBlobs(self._root / _PASSING, self._clock, home=self._home)

    async def sweep(self, limit: int) -> int:
        """Removes up to `limit` files whose time is over, or that are half-written and old."""
        return await asyncio.to_thread(self._sweep, limit)

    def _path(self, digest: str) -> Path:
        """A digest becomes a path, so nothing but a digest may pass."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError("a blob's name is a SHA-256 in lower-case hex")
        return self._root / digest[:2] / digest

    def _put(self, path: Path, data: bytes, *, expires_at: float) -> None:
        with _disk_errors():
            self._make_folder(path.parent)
            with self._locked():
                if self._prolong(path, expires_at):
                    return
            self._create(path, data, expires_at=expires_at)

    def _make_folder(self, folder: Path) -> None:
        """Makes `folder` and its parents below `home`. Raises if `home` itself is missing."""
        if self._home is None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return
        # One level at a time: `parents=True` would make `home` again if it is unmounted meanwhile.
        level = self._home
        for name in folder.relative_to(self._home).parts:
            level /= name
            level.mkdir(mode=0o700, exist_ok=True)

    def _create(self, path: Path, data: bytes, *, expires_at: float) -> None:
        """Writes beside the place and renames: whoever looks sees all of it or nothing."""
        temporary = _write_aside(path.parent, data)
        try:
            with self._locked():
                if not self._prolong(path, expires_at):  # nobody else was faster
                    os.utime(temporary, (expires_at, expires_at))
                    temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)

    def _prolong(self, path: Path, expires_at: float) -> bool:
        """Whether the bytes are there already; then they live at least until `expires_at`."""
        modified = _modified(path)
        if modified is None or modified <= self._clock():
            return False
        with contextlib.suppress(FileNotFoundError):  # deleted this moment
            os.utime(path, (max(modified, expires_at),) * 2)
            return True
        return False

    def _get(self, path: Path) -> bytes | None:
        with _disk_errors(), contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if os.fstat(file.fileno()).st_mtime > self._clock():
                return file.read()
        return None

    def _delete(self, path: Path) -> None:
        with _disk_errors():
            path.unlink(missing_ok=True)

    def _scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        with _disk_errors():
            page = dict(itertools.islice(self._live_after(after), limit))
        return (max(page) if len(page) == limit else None), page

    def _live_after(self, after: str) -> Iterator[tuple[str, int]]:
        """Digests and sizes, in order. Only one folder at a time is looked into."""
        for folder in sorted(self._root.glob("??")):
            if folder.name < after[:2]:
                continue
            for path in sorted(folder.iterdir()):
                size = self._live_size(path) if path.name > after else None
                if size is not None:
                    yield path.name, size

    def _live_size(self, path: Path) -> int | None:
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if _DIGEST.fullmatch(path.name) and found.st_mtime > self._clock():
                return found.st_size
        return None

    def _sweep(self, limit: int) -> int:
        with _disk_errors():
            over = (path for path in self._root.glob("??/*") if self._remove_if_over(path))
            return sum(1 for _ in itertools.islice(over, limit))

    def _remove_if_over(self, path: Path) -> bool:
        grace = STALE_SECONDS if path.name.startswith(_TEMPORARY) else 0.0
        if not self._is_over(path, grace):
            return False
        with self._locked():
            if not self._is_over(path, grace):
                return False
            path.unlink(missing_ok=True)
            return True

    def _is_over(self, path: Path, grace: float) -> bool:
        modified = _modified(path)
        return modified is not None and modified + grace <= self._clock()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a sweep from removing what a `put` of another process prolongs this moment."""
        descriptor = os.open(self._root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _write_aside(folder: Path, data: bytes) -> Path:
    """A temporary file that holds the bytes, on disk and not only in memory."""
    descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _sync_folder(folder: Path) -> None:
    """The rename itself survives a power cut only when its folder was written too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified(path: Path) -> float | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull from error
        raise StoreUnavailable from error
