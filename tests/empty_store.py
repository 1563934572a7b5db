"""An empty database, which is made once and copied: its tables take longer than a test's start."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from gateway.store.private_files import PRIVATE_FILE, create_private_folder
from gateway.store.sqlite.connection import create_sqlite_schema


def place_empty_store(path: Path) -> None:
    """Copies an empty database to `path`, unless there is one. Other processes make theirs.

    A folder that cannot be used stays as it is: the gateway's start says what is wrong with it.
    """
    with suppress(OSError):
        if path.exists():
            return
        create_private_folder(path.parent)
        path.touch(PRIVATE_FILE)
        path.write_bytes(_empty_store())


@cache
def _empty_store() -> bytes:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        create_sqlite_schema(path)
        return path.read_bytes()  # all of it: the last connection writes the log back
