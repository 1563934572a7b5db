"""Holds requests until a test has seen the state that it checks.

A simulated upstream receives requests, and answers only after the test has opened its gate. A
wrapper of the store counts acquired leases, so a test knows how many requests lead or follow.
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
    """Holds the image requests of a test's upstream while it is shut."""

    arrived: int = 0
    """Image requests received since it was last shut."""
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _order: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self._open.set()

    @web.middleware
    async def admit(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """A middleware for a simulated upstream."""
        if request.method == "POST":
            await self.enter()
        return await handler(request)

    async def enter(self) -> None:
        self.arrived += 1
        # In the order of arrival: the first one to pass may get the one fault of its prompt.
        async with self._order:
            await self._open.wait()

    @asynccontextmanager
    async def shut(self) -> AsyncIterator[Gate]:
        """Shuts the gate until the block is left or `open` is called."""
        self.arrived = 0
        self._open.clear()
        try:
            yield self
        finally:
            self.open()

    def open(self) -> None:
        self._open.set()

    async def until(self, count: int) -> None:
        """Waits until `count` image requests have arrived."""
        await eventually(lambda: self.arrived >= count)


class StreamGate:
    """Stops simulated streams after a number of events."""

    def __init__(self, *, after: int) -> None:
        self._after = float(after)
        self._moved = asyncio.Event()

    async def wait(self, position: int) -> None:
        while position >= self._after:
            await self._moved.wait()

    def open(self, *, after: float = math.inf) -> None:
        """Lets streams continue: to their end, or up to `after` events."""
        moved, self._moved, self._after = self._moved, asyncio.Event(), after
        moved.set()


@contextmanager
def hold_streams(*, after: int) -> Iterator[StreamGate]:
    """Every simulated stream stops after `after` events, until the gate is opened."""
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
    """A store that counts the lease commands it has executed."""

    def __init__(self, store: Store) -> None:
        self.name, self.kept = store.name, store.kept
        self.watch = store.watch
        self.count = 0
        self._store = store

    async def execute(self, commands: Sequence[Command[Any]]) -> list[Any]:
        results = await self._store.execute(commands)
        self.count += sum(isinstance(command, AcquireLease) for command in commands)
        return results


class Leases:
    """The sum of these counters, from now on."""

    def __init__(self, *counters: LeaseCounter) -> None:
        self._counters = counters
        self._before = self._total()

    def _total(self) -> int:
        return sum(counter.count for counter in self._counters)

    @property
    def count(self) -> int:
        return self._total() - self._before

    async def until(self, count: int) -> None:
        """Waits until `count` requests lead or follow a flight."""
        await eventually(lambda: self.count >= count)
