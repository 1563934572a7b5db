"""Stores of each kind on a clock that a test moves, for what takes minutes.

The embedded store reads a clock that it is given. Redis has its own: here its scripts read a hash
instead of `TIME`, and are otherwise those that the gateway ships. Each node of a cluster has a hash
of its own, because scripts cannot read keys of other nodes. Whatever opens a store in this process,
a gateway too, gets one with this clock.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, cast

import pytest
import redis

from gateway.store.protocol import Store
from gateway.store.redis import tracking
from gateway.store.redis.commands.encoding import encode
from gateway.store.redis.scripts import SCRIPTS, Script
from gateway.store.redis.store import open_redis_store
from gateway.store.sqlite import store as sqlite_store
from gateway.store.sqlite.steady_clock import single
from gateway.store.sqlite.store import open_sqlite_store
from tests.redis_masters import open_masters

_READ_TIME: Final = "redis.call('TIME')"
_NOW: Final = re.compile(r"\bnow\b")
_READ_HASH: Final = """(function()
    for _, key in ipairs({%s}) do
        local time = redis.pcall('HMGET', key, 's', 'us')
        if time.err == nil and time[1] then return time end
    end
end)()"""


@dataclass
class ClockedStore:
    """A store whose clock stands still until it is moved."""

    open: Callable[[], AbstractAsyncContextManager[Store]]
    """Each call opens the same store, as a worker does."""
    url: str | None
    """None for the embedded one."""
    _tell: Callable[[float], Awaitable[None]]
    now: float
    """Unix seconds."""

    async def move_to(self, now: float) -> None:
        self.now = now
        await self._tell(now)


@asynccontextmanager
async def clocked(request: pytest.FixtureRequest) -> AsyncIterator[ClockedStore]:
    """An empty store of the kind of the fixture's parameter."""
    start = float(int(time.time()))
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    if request.param == "sqlite":
        path, times = request.getfixturevalue("sqlite_path"), [start]
        monkeypatch.setattr(sqlite_store, "open_clocks", lambda path: single(lambda: times[0]))

        async def set_clock(now: float) -> None:
            times[0] = now

        yield ClockedStore(lambda: open_sqlite_store(path), None, set_clock, start)
        return
    url: str = request.getfixturevalue(f"{request.param}_url")
    with redis_clock(url, start, monkeypatch) as write_clock:

        async def tell(now: float) -> None:
            await asyncio.to_thread(write_clock, now)

        yield ClockedStore(lambda: open_redis_store(url), url, tell, start)


@contextmanager
def redis_clock(
    url: str, start: float, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], None]]:
    """What sets the clock of all scripts that this process sends to a Redis, in Unix seconds."""
    # The server's own clock, by which kept reads go, is not the one of the test.
    monkeypatch.setattr(tracking, "TRUSTED_SECONDS", -1.0)
    with open_masters(url) as masters:
        keys = [_find_key(master) for master in masters]
        for name, script in SCRIPTS.items():
            monkeypatch.setitem(cast(Any, SCRIPTS), name, _with_clock(script, keys))
        forget_encoded()

        def write_clock(now: float) -> None:
            micros = round(now * 1e6)
            times = {"s": micros // 1_000_000, "us": micros % 1_000_000}
            for master, key in zip(masters, keys, strict=True):
                master.hset(key, mapping=times)

        write_clock(start)
        try:
            yield write_clock
        finally:
            forget_encoded()


def _find_key(master: Any) -> str:
    """A key that this master has."""
    for number in itertools.count():
        key = f"igw:{{{number}}}:test-clock"
        with suppress(redis.ResponseError):  # MOVED
            master.delete(key)
            return key
    raise AssertionError


def forget_encoded() -> None:
    """Forgets the commands that are kept as they were encoded, with the SHA-1 of their script.

    Otherwise the next test would run these scripts, and its server has no hash with a time.
    """
    for encoder in encode.registry.values():
        if clear := getattr(encoder, "cache_clear", None):
            clear()


def _with_clock(script: Script, keys: Sequence[str]) -> Script:
    assert (_READ_TIME in script.source) == bool(_NOW.search(script.source))
    names = ", ".join(f"'{key}'" for key in keys)
    source = script.source.replace(_READ_TIME, _READ_HASH % names)
    return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
