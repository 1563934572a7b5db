"""Blobs as files: `root/ab/<digest>`, one file for each image, named by its content hash.

A file's modification time is the moment it expires. Several processes may share a folder: files
appear complete, by a rename, and their content never changes.
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

import structlog

from gateway.conditions import Condition
from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.blobs.digests import DIGEST, check_digest
from gateway.store.private_files import (
    OTHERS,
    PRIVATE_FILE,
    create_private_folder,
    create_private_level,
    find_shared,
)

log = structlog.get_logger(__name__)

QUIET_SECONDS: Final = 2.0
"""Without a failed call, after which an outage is over: other folders may still be readable."""

ABANDONED_SECONDS: Final = 3600.0
"""A temporary file this old was left by a process that died."""

_SUBFOLDER: Final = re.compile(r"[0-9a-f]{2}")
_TEMPORARY: Final = "tmp-"
_LOCK: Final = "lock"
_EPHEMERAL: Final = "ephemeral"
"""A folder inside the root. Scans and sweeps of the root pass over it: they read `??/` only."""


class FolderBlobs:
    """A `BlobStore` in a folder of this machine.

    `clock` returns Unix seconds. Folders are created when they are needed (0700), and files are
    0600, whatever the umask. Methods raise `StoreUnavailable` if the disk fails, `StoreFull` if it
    has no room left, and `ValueError` for a digest that is no SHA-256 in lower-case hex.

    `data_dir`, a parent of `root`, is never created: while it is missing, the disk has failed. An
    unmounted volume would otherwise be written to below its mount point.
    """

    listing_seconds: float | None = None

    def __init__(
        self, root: Path, clock: Callable[[], float] = time.time, *, data_dir: Path | None = None
    ) -> None:
        self._root = root
        self._clock = clock
        self._data_dir = data_dir
        self._outage = Condition(
            log,
            "store_unavailable",
            "store_available",
            counted="failed_calls",
            fields={"store": f"folder {root}", "holds": "bytes"},
        )
        self._swept_before = ""
        """The subfolder in which the last sweep has stopped; empty if it has reached the end."""

    async def put(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """Stores bytes for at least `ttl_seconds` from now. Repeating it never shortens that."""
        path = self._path(digest)
        await asyncio.to_thread(self._put, path, data, expires_at=self._clock() + ttl_seconds)

    async def get(self, digest: str) -> bytes | None:
        """The bytes; None if they are missing or expired."""
        return await asyncio.to_thread(self._get, self._path(digest))

    def put_command(self, digest: str, data: bytes, ttl_seconds: float) -> None:
        """None: the store's commands do not write files."""

    async def delete(self, digest: str) -> None:
        """Removes the bytes, if they exist."""
        await asyncio.to_thread(self._delete, self._path(digest))

    async def scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        """Up to `limit` digests after the digest `after`, in order, with their sizes in bytes.

        The first element is the `after` of the next page, None at the end.
        """
        return await asyncio.to_thread(self._scan, after, limit)

    async def capacity_bytes(self) -> None:
        """None: a folder has no limit of its own."""

    def remote(self) -> None:
        """None: the bytes are near."""

    def ephemeral(self) -> FolderBlobs:
        """A folder inside this one, for bytes that live for minutes. It has its own sweep."""
        return FolderBlobs(self._root / _EPHEMERAL, self._clock, data_dir=self._data_dir)

    def may_be_on(self, digest: str, node: str) -> bool:
        """True: their entries and rows in the index may be on any node."""
        return True

    async def sweep(self, limit: int) -> int:
        """Removes up to `limit` expired or abandoned files. Returns how many.

        Goes on where the last call has stopped, so that many calls look at each file once. The
        thread takes one subfolder at a time: other work of the process has its turn in between.
        """
        removed = 0
        for folder in await asyncio.to_thread(self._subfolders, self._swept_before):
            self._swept_before = folder.name
            removed += await asyncio.to_thread(self._sweep, folder, limit - removed)
            if removed == limit:
                return removed
        self._swept_before = ""
        return removed

    def _path(self, digest: str) -> Path:
        check_digest(digest)
        return self._root / digest[:2] / digest

    def _put(self, path: Path, data: bytes, *, expires_at: float) -> None:
        with _raising_store_errors(self._outage):
            self._create_folder(path.parent)
            with self._locked():
                if self._extend(path, expires_at):
                    return
            # Without the lock: writing and syncing would hold up all other processes.
            temporary = _write_temporary(path.parent, data)
            try:
                with self._locked():
                    # Another process may have stored the same bytes meanwhile.
                    if not self._extend(path, expires_at):
                        # Before the rename: the file appears with its expiry, so no sweep takes it
                        # for expired.
                        os.utime(temporary, (expires_at, expires_at))
                        temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(path.parent)

    def _create_folder(self, folder: Path) -> None:
        if self._data_dir is None:
            create_private_folder(folder)
            return
        # One level at a time: `parents=True` would create the data folder if it is unmounted
        # meanwhile.
        level = self._data_dir
        for name in folder.relative_to(self._data_dir).parts:
            level /= name
            create_private_level(level)

    def _extend(self, path: Path, expires_at: float) -> bool:
        """Lets an existing file live until `expires_at`. False if it is missing or expired."""
        modified = _modified_at(path)
        if modified is None or modified <= self._clock():
            return False
        with contextlib.suppress(FileNotFoundError):  # deleted since
            os.utime(path, (max(modified, expires_at),) * 2)
            return True
        return False

    def _get(self, path: Path) -> bytes | None:
        with (
            _raising_store_errors(self._outage),
            contextlib.suppress(FileNotFoundError),
            path.open("rb") as f,
        ):
            if os.fstat(f.fileno()).st_mtime > self._clock():
                return f.read()
        return None

    def _delete(self, path: Path) -> None:
        with _raising_store_errors(self._outage):
            path.unlink(missing_ok=True)

    def _scan(self, after: str, limit: int) -> tuple[str | None, Mapping[str, int]]:
        with _raising_store_errors(self._outage):
            page = dict(itertools.islice(self._sizes_after(after), limit))
        return (max(page) if len(page) == limit else None), page

    def _sizes_after(self, after: str) -> Iterator[tuple[str, int]]:
        """Digests and sizes, in order. Lists one folder at a time."""
        for folder in sorted(self._root.glob("??")):
            if folder.name < after[:2]:
                continue
            for path in sorted(folder.iterdir()):
                size_bytes = self._unexpired_size(path) if path.name > after else None
                if size_bytes is not None:
                    yield path.name, size_bytes

    def _unexpired_size(self, path: Path) -> int | None:
        with contextlib.suppress(FileNotFoundError):  # deleted since
            found = path.stat()
            if DIGEST.fullmatch(path.name) and found.st_mtime > self._clock():
                return found.st_size
        return None

    def _subfolders(self, first: str) -> list[Path]:
        """The folders of files from the name `first` on, in order."""
        with _raising_store_errors(self._outage):
            return sorted(path for path in self._root.glob("??") if path.name >= first)

    def _sweep(self, folder: Path, limit: int) -> int:
        with _raising_store_errors(self._outage), os.scandir(folder) as entries:
            removed = (entry for entry in entries if self._remove_expired(folder / entry.name))
            return sum(1 for _ in itertools.islice(removed, limit))

    def _remove_expired(self, path: Path) -> bool:
        """Removes a file if it has expired. Returns whether it did."""
        if not self._is_expired(path):
            return False
        with self._locked():
            # Another process may have extended it before this one had the lock.
            if not self._is_expired(path):
                return False
            path.unlink(missing_ok=True)
            return True

    def _is_expired(self, path: Path) -> bool:
        # A temporary file has the time of its last write, and another process may be writing it.
        grace_seconds = ABANDONED_SECONDS if path.name.startswith(_TEMPORARY) else 0.0
        modified = _modified_at(path)
        return modified is not None and modified + grace_seconds <= self._clock()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps a sweep from removing a file that another process extends at the same time."""
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        descriptor = os.open(self._root / _LOCK, flags, PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def find_shared_blobs(root: Path) -> Iterator[Path]:
    """What a `FolderBlobs` has created in `root`, and others than its user have rights on.

    Includes `root` itself unless other files are in it: an operator may have named a folder that
    has other uses, and the gateway must not lock their users out.
    """
    if not root.is_dir():
        return
    with os.scandir(root) as entries:
        is_shared_with_others = any(not _is_own(entry) for entry in entries)
    if not is_shared_with_others and root.stat().st_mode & OTHERS:
        yield root
    yield from find_shared(root, is_own=_is_own, is_large=is_full_of_blobs)


def is_full_of_blobs(entry: os.DirEntry[str]) -> bool:
    """Whether a folder may have so many files that listing them takes long."""
    return _SUBFOLDER.fullmatch(entry.name) is not None


def _is_own(entry: os.DirEntry[str]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return entry.name == _EPHEMERAL or is_full_of_blobs(entry)
    return entry.name == _LOCK


def _write_temporary(folder: Path, data: bytes) -> Path:
    """A new temporary file with these bytes, synced to disk."""
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
    """Syncs a folder to disk: a rename in it survives a power cut only then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modified_at(path: Path) -> float | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime
    return None


@contextmanager
def _raising_store_errors(outage: Condition) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull from error
        reason = f"{type(error).__name__}: {error.strerror}"
        outage.occurs(reason, reason=reason)
        raise StoreUnavailable from error
    if outage.lasts:
        outage.ends_if_quiet(QUIET_SECONDS)
