"""A worker judges others only while the store was there for everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateway.errors import StoreUnavailable
from gateway.purchasing.recovery import Recovery
from gateway.store.commands import Deregister, Heartbeat, OpenJournals
from gateway.store.protocol import Command, Watch
from tests.nothing_kept import NothingKept

DEAD_AFTER = 15.0


@dataclass
class Workers:
    """A store that knows which heartbeats are late, or is away (None), and a clock."""

    late: frozenset[str] | None = frozenset()
    now: float = 1000.0
    recovered: list[str] = field(default_factory=list)
    may_recover: asyncio.Event = field(default_factory=asyncio.Event)
    name = "a store of heartbeats"
    kept = NothingKept()

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        if self.late is None:
            raise StoreUnavailable
        if any(isinstance(command, OpenJournals) for command in commands):
            await self.may_recover.wait()
        return [self._execute(command) for command in commands]

    def _execute(self, command: Command[Any]) -> Any:
        match command:
            case Heartbeat():
                return sorted(self.late or ())
            case OpenJournals():
                return []
            case Deregister():
                self.recovered.append(command.worker)
                return True
        raise AssertionError(command)

    def watch(self, flight: str) -> AbstractAsyncContextManager[Watch]:
        raise AssertionError(flight)


@pytest.fixture
def workers() -> Workers:
    workers = Workers()
    workers.may_recover.set()
    return workers


def judge(workers: Workers) -> Recovery:
    return Recovery(
        workers,
        None,  # type: ignore[arg-type] - nobody has an open journal
        worker="me",
        expires_after_seconds=DEAD_AFTER,
        clock=lambda: workers.now,
    )


async def check(recovery: Recovery, workers: Workers, *late: str, after: float = 5.0) -> None:
    workers.now += after
    workers.late = frozenset(late)
    await recovery.send_heartbeat()
    await recovery.recover_dead()


async def test_a_worker_is_dead_after_two_late_heartbeats(workers: Workers) -> None:
    recovery = judge(workers)
    await check(recovery, workers, "other")
    assert workers.recovered == []
    await check(recovery, workers, "other")
    assert workers.recovered == ["other"]


async def test_a_worker_that_lives_again_is_not_recovered(workers: Workers) -> None:
    """The recovery of one dead worker may take minutes, and the others wait for their turn."""
    workers.may_recover.clear()
    recovery = judge(workers)
    workers.late = frozenset({"dead", "paused"})
    for _ in range(2):
        await recovery.send_heartbeat()
    recovering = asyncio.create_task(recovery.recover_dead())
    await asyncio.sleep(0)
    workers.late = frozenset({"dead"})
    await recovery.send_heartbeat()
    workers.may_recover.set()
    await recovering
    await recovery.recover_dead()
    assert workers.recovered == ["dead"]


async def test_after_an_outage_nobody_is_dead_until_all_have_had_time_for_a_heartbeat(
    workers: Workers,
) -> None:
    recovery = judge(workers)
    workers.late = None
    with pytest.raises(StoreUnavailable):
        await recovery.send_heartbeat()
    for _ in range(2):
        await check(recovery, workers, "other")
    assert workers.recovered == []
    for _ in range(2):
        await check(recovery, workers, "other")
    assert workers.recovered == ["other"]


@pytest.mark.parametrize("checks_late", [1, 4])
async def test_a_worker_whose_own_heartbeat_is_late_judges_nobody(
    workers: Workers, checks_late: int
) -> None:
    """As after a pause of the whole machine, or when the store's clock was set forward."""
    recovery = judge(workers)
    for _ in range(checks_late):
        await check(recovery, workers, "me", "other")
    for _ in range(2):
        await check(recovery, workers, "other")
    assert workers.recovered == []
    for _ in range(2):
        await check(recovery, workers, "other")
    assert workers.recovered == ["other"]
