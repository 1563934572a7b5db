"""Before the parent forks: creates the data folder and the embedded store, checks the Redis.

The data folder is private: nothing in it may be read by other users of the machine.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.process.bucket_check import check_bucket
from gateway.process.unusable_folder import FolderUnusable
from gateway.room_settings import TOKEN_FILE, read_admin_token
from gateway.store.batch import execute
from gateway.store.blobs import folder_of
from gateway.store.blobs.folder import find_shared_blobs, is_full_of_blobs
from gateway.store.blobs.redis import RedisBlobs, open_redis_blobs
from gateway.store.commands import Inspect, StoreFacts
from gateway.store.handshake import StoreMisconfigured, StoreReadOnly
from gateway.store.private_files import (
    OTHERS,
    PRIVATE_FOLDER,
    create_private_folder,
    find_shared,
    make_private,
)
from gateway.store.redis.store import RedisStore, open_redis_store
from gateway.store.redis.urls import is_redis_url
from gateway.store.sqlite.connection import create_sqlite_schema
from gateway.wiring.stores import DATABASE

log = structlog.get_logger(__name__)

ROOT: Final = 0

READ_ONLY_SECONDS: Final = 5.0
"""How long a start waits for a replica to be promoted, or for the address to leave it."""

READ_ONLY_RETRY_SECONDS: Final = 0.25


def prepare(settings: Settings) -> None:
    """Creates the data folder, the schema of an embedded store, and the admin token.

    Raises `ConfigError` for a weak token in the folder, `SchemaMismatch`, `FolderUnusable`.
    """
    folder = settings.store.data_dir
    try:
        create_private_folder(folder)
        _make_folder_private(folder)
        if settings.store.redis_url is None:
            create_sqlite_schema(folder / DATABASE)
        if settings.server.admin_token is None:
            _create_admin_token(folder / TOKEN_FILE)
        read_admin_token(settings)
    except StoreUnavailable as error:
        # Another folder helps against missing rights, not against a damaged database.
        if not isinstance(error.__cause__, OSError):
            raise
        raise FolderUnusable(folder, _describe(error.__cause__)) from None
    except OSError as error:
        raise FolderUnusable(folder, _describe(error)) from None
    _prepare_blobs_folder(settings)
    _make_private(find_shared_files(settings))


def _prepare_blobs_folder(settings: Settings) -> None:
    """Creates the folder of a `file:` URL. Otherwise the first image would find it unusable."""
    url = settings.store.plain_blobs_url
    if not url.startswith("file:"):
        return
    folder = folder_of(url)
    try:
        create_private_folder(folder)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    except OSError as error:
        problem, variable = _describe(error), "GATEWAY_BLOBS_URL"
        raise FolderUnusable(
            folder, problem, better="file:// and a folder", variable=variable
        ) from None


def _describe(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}." if error.filename else f"{error}."


def _make_folder_private(folder: Path) -> None:
    """Removes the rights of others. A folder of another user stays as it is, and may be used."""
    found = folder.stat()
    is_own = os.geteuid() in (found.st_uid, ROOT)
    if is_own:
        # An older installation, or a copy of it, may be open to other users.
        folder.chmod(PRIVATE_FOLDER)
        return
    # As in OpenShift, where a container has any user, and writes as a member of a group.
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise FolderUnusable(
            folder,
            f"it belongs to another user (uid {found.st_uid}, gid {found.st_gid}, mode "
            f"{stat.S_IMODE(found.st_mode):04o}).",
        )
    # Any user could replace the gateway's files.
    if found.st_mode & stat.S_IWOTH:
        raise FolderUnusable(
            folder,
            f"it belongs to another user (uid {found.st_uid}), and every user can write to it.",
            better=f"a folder in it, such as {folder / 'gateway'}, or to another folder",
        )
    # Group members could have put them there, with a token that they know.
    for path in (folder / TOKEN_FILE, folder / DATABASE):
        if path.exists() and path.stat().st_uid not in (os.geteuid(), ROOT):
            raise FolderUnusable(folder, f"{path} belongs to another user.")


def find_shared_files(settings: Settings) -> Iterator[Path]:
    """Files and folders of the gateway that other users of this machine have rights on."""
    folder = settings.store.data_dir
    if folder.is_dir() and folder.stat().st_mode & OTHERS:
        yield folder
    yield from find_shared(folder, is_large=is_full_of_blobs)
    url = settings.store.plain_blobs_url
    if url.startswith("file:") and not folder_of(url).is_relative_to(folder.absolute()):
        yield from find_shared_blobs(folder_of(url))


def _make_private(paths: Iterator[Path]) -> None:
    changed, refused = 0, []
    for path in paths:
        try:
            changed += make_private(path)
        except FileNotFoundError:
            continue  # another gateway on the same folder has removed it
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
    if changed:
        log.info("files_made_private", files=changed)
    if refused:
        log.warning("files_not_private", files=len(refused), example=refused[0])


def _create_admin_token(path: Path) -> None:
    if path.exists():
        return
    # Only we can read this file. The link makes it appear complete, and fails if another gateway
    # that starts on the same folder was first.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    with suppress(FileExistsError):
        path.hardlink_to(temporary)
        log.info("admin_token_created", file=str(path))
    Path(temporary).unlink()


async def check_store(settings: Settings) -> None:
    """Refuses a Redis or a bucket that no gateway can use. One that is unavailable may come up.

    Raises `SchemaMismatch` and `StoreMisconfigured`.
    """
    if settings.store.redis_url is not None:
        async with open_redis_store(settings.store.redis_url.get_secret_value()) as store:
            if await _is_usable(store):
                with suppress(StoreUnavailable):
                    refuse_eviction(settings, await execute(store, Inspect()), store=store.name)
    await check_bucket(settings)
    if is_redis_url(settings.store.plain_blobs_url):
        async with open_redis_blobs(settings.store.plain_blobs_url) as blobs:
            await _is_usable(blobs)


async def _is_usable(store: RedisStore | RedisBlobs) -> bool:
    """False if it may become usable by itself; then the reason is logged."""
    started = time.monotonic()
    while True:
        try:
            await store.check_schema()
        except StoreReadOnly:
            # During a failover the address may lead to a replica for some seconds.
            if time.monotonic() - started > READ_ONLY_SECONDS:
                raise
            await asyncio.sleep(READ_ONLY_RETRY_SECONDS)
        except StoreUnavailable as error:
            reason = error.reason or error.message
            log.warning("store_unavailable", during="start", store=store.name, reason=reason)
            return False
        else:
            return True


def refuse_eviction(settings: Settings, facts: StoreFacts, *, store: str) -> None:
    """Raises `StoreMisconfigured` for a Redis that may evict what was spent."""
    policy = facts.eviction_policy
    if policy not in (None, "noeviction") and not settings.store.allow_eviction:
        raise StoreMisconfigured(
            f"The Redis at {store} has maxmemory-policy {policy}, so it may forget keys, budgets"
            " and the ledger: set noeviction (images may have a Redis of their own with any policy,"
            " GATEWAY_BLOBS_URL), or store.allow_eviction: true if that is meant."
        )
