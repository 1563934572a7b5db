"""The last use of keys on both stores: to the minute, of all workers, and only forward."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from gateway.access.key_uses import BATCH, SPACE, KeyUses
from gateway.errors import StoreUnavailable
from gateway.store.batch import execute
from gateway.store.commands import SetValue
from gateway.store.protocol import Command, Store
from tests.conftest import OpenStore

NOON = 1_800_000_000 // 60 * 60


class Clock:
    now = float(NOON)

    def __call__(self) -> float:
        return self.now


class CountedStore:
    """A store that counts commands, and can be unavailable."""

    def __init__(self, store: Store) -> None:
        self.name, self.watch, self._store = store.name, store.watch, store
        self.commands: list[Command[Any]] = []
        self.is_down = False

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if self.is_down:
            raise StoreUnavailable
        self.commands += commands
        return await self._store.execute(commands)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(open_store: OpenStore) -> AsyncIterator[CountedStore]:
    async with open_store() as opened:
        yield CountedStore(opened)


async def test_the_minute_of_the_last_use_is_read_by_every_worker(
    store: CountedStore, clock: Clock
):
    here, there = KeyUses(store, clock=clock), KeyUses(store, clock=clock)
    clock.now = NOON + 59.9
    here.mark("a")
    assert await there.read(["a", "b"]) == {}
    await here.write()
    assert await there.read(["a", "b"]) == {"a": NOON}
    clock.now = NOON + 60
    there.mark("a")
    there.mark("b")
    await there.write()
    assert await here.read(["a", "b"]) == {"a": NOON + 60, "b": NOON + 60}


async def test_a_key_is_written_once_a_minute(store: CountedStore, clock: Clock):
    uses = KeyUses(store, clock=clock)
    for second in range(60):
        clock.now = NOON + second
        uses.mark("a")
        await uses.write()
    assert len(store.commands) == 2  # one read, one write


async def test_a_late_write_moves_nothing_back(store: CountedStore, clock: Clock):
    late, early = KeyUses(store, clock=clock), KeyUses(store, clock=clock)
    late.mark("a")
    clock.now = NOON + 120
    early.mark("a")
    await early.write()
    await late.write()
    assert await late.read(["a"]) == {"a": NOON + 120}


async def test_uses_wait_for_an_unavailable_store(store: CountedStore, clock: Clock):
    uses = KeyUses(store, clock=clock)
    names = [f"k{number}" for number in range(BATCH + 50)]
    for name in names:
        uses.mark(name)
    store.is_down = True
    with pytest.raises(StoreUnavailable):
        await uses.write()
    clock.now = NOON + 60
    uses.mark("k0")
    store.is_down = False
    await uses.write()
    found = await uses.read(names)
    assert found == {**dict.fromkeys(names, NOON), "k0": NOON + 60}


async def test_an_unreadable_time_counts_as_none_and_is_replaced(store: CountedStore, clock: Clock):
    uses = KeyUses(store, clock=clock)
    await execute(store, SetValue(SPACE, "a", b"\xff", None))
    assert await uses.read(["a"]) == {}
    uses.mark("a")
    await uses.write()
    assert await uses.read(["a"]) == {"a": NOON}
