"""Before the parent forks: creates the data folder and the embedded store, checks the Redis."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

import structlog

from gateway.assembly import DATABASE, TOKEN_FILE, read_admin_token
from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import create_sqlite_schema

log = structlog.get_logger(__name__)


def prepare(settings: Settings) -> None:
    """Creates the data folder, the schema of an embedded store, and the admin token.

    Raises `ConfigError` for a weak token in the folder, `SchemaMismatch`, `OSError`.
    """
    folder = settings.store.data_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # `mkdir` leaves the mode of an existing folder as it is.
    folder.chmod(0o700)
    if settings.store.redis_url is None:
        create_sqlite_schema(folder / DATABASE)
    if settings.server.admin_token is None:
        _create_admin_token(folder / TOKEN_FILE)
    read_admin_token(settings)


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
    """Refuses a Redis with another schema version. An unavailable Redis may still come up.

    Raises `SchemaMismatch`.
    """
    if settings.store.redis_url is None:
        return
    async with open_redis_store(settings.store.redis_url.get_secret_value()) as store:
        try:
            await store.check_schema()
        except StoreUnavailable:
            log.warning("store_unavailable", during="start", store=store.name)
