"""What the parent does before it forks."""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import (
    suppress,
)
from pathlib import Path

import structlog

from gateway.assembly import DATABASE, TOKEN_FILE
from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite.connection import create_sqlite_schema

log = structlog.get_logger(__name__)


# ── before anything is served ───────────────────────────────────────────────────────────────


def prepare(settings: Settings) -> None:
    """What the parent does before it forks: data folder, the embedded store's layout, the token.

    Raises `SchemaMismatch`, `OSError`.
    """
    folder = settings.store.data_dir
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if settings.store.redis_url is None:
        create_sqlite_schema(folder / DATABASE)
    if settings.server.admin_token is None:
        _create_token(folder / TOKEN_FILE)


def _create_token(path: Path) -> None:
    """Makes the admin token once; the file is complete from the moment it is there."""
    if path.exists():
        return
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # readable by us alone
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    with suppress(FileExistsError):  # another gateway that starts on the same folder was first
        path.hardlink_to(fresh)
        log.info("admin_token_created", file=str(path))
    Path(fresh).unlink()


async def check_store(settings: Settings) -> None:
    """Refuses a Redis of another layout before anything is served; one that is away may come.

    Raises `SchemaMismatch`.
    """
    if settings.store.redis_url is None:
        return
    async with open_redis_store(settings.store.redis_url.get_secret_value()) as store:
        try:
            await store.check_schema()
        except StoreUnavailable:
            log.warning("store_away_at_start", store=store.name)
