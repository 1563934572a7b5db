"""The master that sentinels have elected.

A master that was replaced often goes on answering: it may be cut off from the sentinels, may wake
after a pause, or may not know of its successor yet. So every connection first asks the server for
its role, and the gateway drops its connections to the old master as soon as a sentinel announces
the change.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import structlog
from redis.asyncio.connection import AbstractConnection

from gateway.conditions import Condition
from gateway.store.redis.faults import Fault, NoMaster, NotMaster
from gateway.store.redis.pools import create_pool
from gateway.store.redis.topology.addresses import Address, Connector
from gateway.store.redis.topology.diagnosis import diagnose, is_reachable
from gateway.store.redis.topology.sentinel_url import parse_sentinel_url
from gateway.store.redis.topology.sentinels import ABORTS, PROMOTES, Master, Sentinels

log = structlog.get_logger(__name__)

_POLL_SECONDS: Final = 1.0
"""The sentinels are asked this often, because an announcement may be lost."""

_PROMOTION_SECONDS: Final = 3.0
"""How long a promotion that was announced keeps the gateway from the old master, at most."""


class SentinelMaster:
    """`Addresses` of a service that sentinels watch. Raises `ValueError` for an invalid URL."""

    is_elected = True

    def __init__(self, url: str) -> None:
        parsed = parse_sentinel_url(url)
        pool = create_pool(parsed.master_url)
        self.location = parsed.location
        self.user = str(pool.connection_kwargs.get("username") or "default")
        self._service = parsed.service
        self._connector = Connector(pool)
        self.is_tls = self._connector.is_tls
        self._sentinels = Sentinels(
            parsed.sentinels,
            parsed.service,
            connect=lambda: Connector(create_pool(parsed.sentinel_url)),
            on_event=self._handle_event,
        )
        self.current: Address | None = None
        self.on_replaced: list[Callable[[], None]] = []
        self._master: Master | None = None
        self._leaving: Address | None = None
        """A master that is being replaced. Writes that it accepts now may be lost."""
        self._leaving_until = 0.0
        self._is_needed, self._should_look = asyncio.Event(), asyncio.Event()
        self._outage = Condition(
            log,
            "sentinels_unavailable",
            "sentinels_available",
            fields={"store": self.location},
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Follows the sentinels from the first use until exit."""
        async with self._sentinels.open():
            tasks = [
                asyncio.create_task(self._follow(), name="redis-sentinels"),
                asyncio.create_task(self._keep_looking(), name="redis-sentinels-poll"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def resolve(self) -> Sequence[Address | None]:
        """The master that the sentinels name, or the last known one if none of them answers."""
        self._is_needed.set()
        known = self._master
        try:
            found = await self._sentinels.find_master(known_epoch=known.epoch if known else 0)
        except NoMaster:
            if known is None:
                raise
            # The master may be cut off from the sentinels too. `connect` asks for its role.
            return [known.address]
        if known is not None and found.epoch < known.epoch and not found.is_known_to_most:
            # These few sentinels may be cut off from the others, with an earlier master.
            return [known.address]
        # If most agree, a lower epoch counts: an operator who sets sentinels up again begins at 0.
        self._use(found)
        return [found.address]

    async def connect(self, address: Address | None) -> AbstractConnection:
        """A connection to a server whose role is master. Raises `NotMaster` for any other role."""
        if address is not None and address == self._leaving:
            if asyncio.get_running_loop().time() < self._leaving_until:
                raise NotMaster(
                    Fault(f"is being replaced: a replica of {_name(address)} becomes the master.")
                )
            self._leaving = None
        connection = await self._connector.connect(address)
        try:
            await connection.send_packed_command(connection.pack_command("ROLE"))
            role: Any = await connection.read_response()
            if role[0] != b"master":
                raise NotMaster(
                    Fault(
                        f"has no master now: {_name(address)} is a replica, and the sentinels have"
                        " not named another server yet."
                    )
                )
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def diagnose(self) -> Fault | None:
        """Why the last known master, or without one a sentinel, cannot be used; None if unknown."""
        if self._master is None:
            return await self._sentinels.diagnose()
        address = self._master.address
        found = await diagnose(self._connector, host=address.host, port=address.port)
        if found is not None or await is_reachable(address.host, address.port):
            return found
        return Fault(
            f"cannot be reached at {_name(address)}, where its sentinels say that the master is:"
            " check the network, and the options replica-announce-ip and replica-announce-port."
        )

    # ── following ───────────────────────────────────────────────────────────────────────────

    async def _follow(self) -> None:
        await self._is_needed.wait()
        await self._sentinels.follow()

    async def _keep_looking(self) -> None:
        await self._is_needed.wait()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._should_look.wait()
            # The sentinel that made an announcement may know of a later election than the others.
            epoch = self._master.epoch + self._should_look.is_set() if self._master else 0
            self._should_look.clear()
            try:
                found = await self._sentinels.find_master(known_epoch=epoch)
            except NoMaster as error:
                # The master can be used without them until it fails.
                self._outage.occurs(error.fault.text, reason=error.fault.text)
                continue
            self._outage.ends()
            # A sentinel that was cut off names the master of an earlier election.
            if self._master is None or found.epoch > self._master.epoch:
                self._use(found)

    def _handle_event(self, channel: bytes) -> None:
        if channel == PROMOTES and self._master is not None:
            # From now on the replica gets no writes from the master. A write that the master
            # acknowledges now would be lost.
            self._leaving = self._master.address
            self._leaving_until = asyncio.get_running_loop().time() + _PROMOTION_SECONDS
            self._replace()
        elif channel == ABORTS:
            self._leaving = None
        self._should_look.set()

    def _use(self, found: Master) -> None:
        previous, self._master = self._master, found
        if previous is None or previous.address == found.address:
            return
        log.info(
            "store_master_changed",
            store=self.location,
            master=_name(found.address),
            previous=_name(previous.address),
        )
        self._replace()

    def _replace(self) -> None:
        self.current = None
        for replaced in self.on_replaced:
            replaced()


def _name(address: Address | None) -> str:
    return f"{address.host}:{address.port}" if address is not None else ""
