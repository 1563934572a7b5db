"""The embedded store's steady clock: Unix seconds that setting the machine's clock does not change.

All processes of a machine share the time since its boot, which is never set. The database has the
difference to Unix time, from when it was first opened after the boot. So what lives for seconds or
minutes (leases, buckets, heartbeats, events, values) is untouched when the machine's clock is set,
forward or back. After a reboot the steady clock goes on where it was, or later.

What belongs to the calendar (windows, records, expiry of images) is on the machine's clock.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.store.sqlite.connection import connect, write_lock

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

SAME_SECONDS: Final = 0.005
"""Below this, the two clocks have not drifted apart; they were not read at the same instant."""

ReadClocks = Callable[[], tuple[float, float]]
"""Reads the machine's clock and the steady one, both in Unix seconds."""


def single(clock: Callable[[], float]) -> ReadClocks:
    """One clock as both."""

    def read() -> tuple[float, float]:
        now = clock()
        return now, now

    return read


def open_clocks(path: Path) -> ReadClocks:
    """The clocks of the database at `path`. Raises `sqlite3.Error` or `OSError`."""
    with contextlib.closing(connect(path)) as db:
        offset_seconds = _read_offset(db)
    if offset_seconds is None:  # the first time since the boot
        with write_lock(path), contextlib.closing(connect(path)) as db:
            offset_seconds = _begin(db)
    ahead = 0.0

    def read() -> tuple[float, float]:
        nonlocal ahead
        steady = offset_seconds + seconds_since_boot()
        # Between two settings of the machine's clock both advance by exactly the same.
        if abs((found := time.time() - steady) - ahead) > SAME_SECONDS:
            ahead = found
        return steady + ahead, steady

    return read


def _read_offset(db: sqlite3.Connection) -> float | None:
    row = db.execute("SELECT boot, offset_seconds, latest FROM steady_clock").fetchone()
    # Where a boot has no id, the time since it has fallen back.
    if row is None or row[0] != _boot_id() or row[1] + seconds_since_boot() < row[2]:
        return None
    return float(row[1])


def _begin(db: sqlite3.Connection) -> float:
    """Starts the clock, unless another process has done so meanwhile."""
    db.execute("BEGIN IMMEDIATE")
    offset_seconds = _read_offset(db)
    if offset_seconds is None:
        (latest,) = db.execute("SELECT coalesce(max(latest), 0) FROM steady_clock").fetchone()
        # A machine without a battery boots in the past, and learns the time later.
        offset_seconds = max(time.time(), float(latest)) - seconds_since_boot()
        db.execute("DELETE FROM steady_clock")
        db.execute(
            "INSERT INTO steady_clock VALUES (?, ?, ?)", (_boot_id(), offset_seconds, latest)
        )
    db.execute("COMMIT")
    return offset_seconds


def seconds_since_boot() -> float:
    """The same in all processes of a machine; goes on while it is suspended, where it can."""
    # Other systems than Linux have another name for it, or none.
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return BOOT_ID.read_text("ascii", "replace").strip()
    return ""
