"""Holds what is under way until a test has seen the state that it is about.

A simulated upstream receives requests and answers them only when the test lets go. Meanwhile the
store tells how many requests know whether they lead a flight or follow one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from gateway.simulator.streams import Play
from gateway.store.commands import AcquireLease
from gateway.store.protocol import Command, Store
from tests.waiting import eventually

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Gate:
    """Where an upstream of the tests keeps image requests waiting while it is shut."""

    arrived: int = 0
    """How many image requests have come since it was shut last."""
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    @web.middleware
    async def admit(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """A middleware of a simulated upstream."""
        if request.method == "POST":
            await self.enter()
        return await handler(request)

    async def enter(self) -> None:
        self.arrived += 1
        await self._open.wait()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[Gate]:
        """Until the block is left, or `open` is called."""
        self.arrived = 0
        self._open.clear()
        try:
            yield self
        finally:
            self.open()

    def open(self) -> None:
        self._open.set()

    async def until(self, count: int) -> None:
        """Until so many image requests have come."""
        await eventually(lambda: self.arrived >= count)


class StreamGate:
    """Where simulated streams wait once they have sent so many events."""

    def __init__(self, *, after: int) -> None:
        self._after = float(after)
        self._moved = asyncio.Event()

    async def wait(self, position: int) -> None:
        while position >= self._after:
            await self._moved.wait()

    def open(self, *, after: float = math.inf) -> None:
        """Lets them go on, for ever or until they have sent so many events."""
        moved, self._moved, self._after = self._moved, asyncio.Event(), after
        moved.set()


@contextmanager
def hold_streams(*, after: int) -> Iterator[StreamGate]:
    """Every simulated stream stops after so many events until the gate is opened."""
    gate, wait_for = StreamGate(after=after), Play.wait_for

    async def wait_at_the_gate(play: Play, position: int) -> None:
        await gate.wait(position)
        await wait_for(play, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Play, "wait_for", wait_at_the_gate)
        try:
            yield gate
        finally:
            gate.open()


class LeaseCounter:
    """A store that counts the leases that it has answered."""

    def __init__(self, store: Store) -> None:
        self.name = store.name
        self.watch = store.watch
        self.count = 0
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        answers = await self._store.execute(commands)
        self.count += sum(isinstance(command, AcquireLease) for command in commands)
        return answers


class Leases:
    """The leases that are answered from now on, over these counters together."""

    def __init__(self, *counters: LeaseCounter) -> None:
        self._counters = counters
        self._before = self._total()

    def _total(self) -> int:
        return sum(counter.count for counter in self._counters)

    @property
    def count(self) -> int:
        return self._total() - self._before

    async def until(self, count: int) -> None:
        """Until so many requests know whether they lead or follow."""
        await eventually(lambda: self.count >= count)
