"""The sentinels of one service: which master they have elected, and when they elect another.

All are asked at once, and the answer of the latest election counts: a sentinel that a partition
cuts off still names the old master. The gateway subscribes to each, because any of them may lead
the next election.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog
from redis import exceptions as redis_errors

from gateway.conditions import Condition
from gateway.store.redis.connection import PipelinedConnection
from gateway.store.redis.faults import (
    CONNECTION_ERRORS,
    Fault,
    NoMaster,
    code_of,
    find_connection_fault,
)
from gateway.store.redis.topology.addresses import Address, Connector
from gateway.store.redis.topology.diagnosis import diagnose
from gateway.store.redis.topology.multi_host_url import FORMS
from gateway.store.redis.urls import SENTINEL_SCHEME

log = structlog.get_logger(__name__)

_ASK_SECONDS: Final = 0.5
"""For one question to one sentinel, connecting included."""

_RECONNECT_SECONDS: Final = 0.5

_PING_SECONDS: Final = 2.0
"""A silent sentinel is pinged this often. After two pings without a reply the connection ends."""

PROMOTES: Final = b"+failover-state-send-slaveof-noone"
"""The leader of an election is about to promote a replica."""

ABORTS: Final = b"-failover-abort-slave-timeout"
"""The replica was not promoted, so the master stays the same."""

_CHANNELS: Final = (PROMOTES, ABORTS, b"+promoted-slave", b"+switch-master")

_ERRORS: Final = (*CONNECTION_ERRORS, redis_errors.ResponseError)


@dataclass(frozen=True, slots=True)
class Master:
    """The master that a sentinel names."""

    address: Address
    epoch: int
    """Grows with every election."""
    is_known_to_most: bool = False
    """Whether most sentinels have answered, none of which knows of a later election."""


class Sentinels:
    """Asks and follows the sentinels at `addresses` about `service`.

    `on_event` is called with a channel (`PROMOTES`, `ABORTS` or another that announces a change),
    and with an empty one after every subscription.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        service: str,
        *,
        connect: Callable[[], Connector],
        on_event: Callable[[bytes], None],
    ) -> None:
        self._service = service
        self._on_event = on_event
        self._sentinels = [_Sentinel(address, connect()) for address in addresses]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Closes the connections on exit."""
        try:
            yield
        finally:
            for sentinel in self._sentinels:
                sentinel.close()

    async def find_master(self, *, known_epoch: int = 0) -> Master:
        """The master of the latest election that most sentinels, or all that answer, know of.

        If these know only of elections before `known_epoch`, this waits for all sentinels: the one
        that led an election knows of it seconds before the others. Raises `NoMaster` if none
        answers, or none knows the service.
        """
        tasks = [asyncio.create_task(each.ask(self._service)) for each in self._sentinels]
        found: list[Master | None] = []
        faults: list[Exception] = []
        try:
            for next_done in asyncio.as_completed(tasks):
                answer = await next_done
                if isinstance(answer, Exception):
                    faults.append(answer)
                else:
                    found.append(answer)
                masters = [each for each in found if each is not None]
                latest = max(masters, key=lambda master: master.epoch, default=None)
                has_most = len(masters) > len(tasks) // 2
                if latest is not None and has_most and latest.epoch >= known_epoch:
                    break
        finally:
            for task in tasks:
                task.cancel()
            # A connection that one of them was opening is closed before the store can be.
            await asyncio.gather(*tasks, return_exceptions=True)
        if latest is not None:
            return replace(latest, is_known_to_most=has_most)
        raise NoMaster(self._explain(found, faults))

    async def diagnose(self) -> Fault | None:
        """Why the first sentinel cannot be used, if none has answered; None if unknown."""
        first = self._sentinels[0]
        fault = await diagnose(first.connector, host=first.address.host, port=first.address.port)
        if fault is None:
            return None
        return Fault(f"cannot be found: its sentinel {first.name} {fault.text}", lasts=fault.lasts)

    async def follow(self) -> None:
        """Stays subscribed to every sentinel until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for sentinel in self._sentinels:
                tasks.create_task(self._follow(sentinel))

    async def _follow(self, sentinel: _Sentinel) -> None:
        while True:
            try:
                await self._receive(sentinel)
            except CONNECTION_ERRORS:
                pass  # `find_master` reports this
            except redis_errors.ResponseError as error:
                sentinel.events_refused.occurs(str(error), reason=str(error))
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _receive(self, sentinel: _Sentinel) -> None:
        """Hands over events until the connection is lost."""
        async with asyncio.timeout(_ASK_SECONDS):
            connection = await sentinel.connector.connect(sentinel.address)
        try:
            await connection.send_packed_command(connection.pack_command(b"SUBSCRIBE", *_CHANNELS))
            # Announcements before the subscription were missed.
            self._on_event(b"")
            unanswered = 0
            while unanswered < 2:
                message = await connection.read_response(timeout=_PING_SECONDS)
                if message is None:
                    unanswered += 1
                    await connection.send_packed_command(connection.pack_command(b"PING"))
                    continue
                unanswered = 0
                sentinel.events_refused.ends()
                self._handle(message)
        finally:
            await connection.disconnect(nowait=True)

    def _handle(self, message: Any) -> None:
        if not isinstance(message, list) or message[:1] != [b"message"]:
            return
        if len(message) != 3 or not isinstance(message[2], bytes):
            raise redis_errors.InvalidResponse("the text of an announcement was expected")
        # `+switch-master` begins with the service, and the others end with an instance and
        # "@ service host port".
        if self._service.encode() in message[2].split():
            self._on_event(message[1])

    def _explain(self, found: Sequence[Master | None], faults: Sequence[Exception]) -> Fault:
        if found:
            return Fault(
                f"cannot be found: its sentinels watch no service {self._service}. The URL's path"
                " must begin with the name that `sentinel monitor` gives the master.",
                lasts=True,
            )
        names = ", ".join(sentinel.name for sentinel in self._sentinels)
        codes = {code_of(fault) for fault in faults}
        if codes & {"NOAUTH", "WRONGPASS"} or any(
            isinstance(fault, redis_errors.AuthenticationError) for fault in faults
        ):
            return Fault(
                f"cannot be found: its sentinels {names} refuse the password: set"
                " sentinel_password, and sentinel_username for an ACL user, in the URL's options.",
                lasts=True,
            )
        if "NOPERM" in codes:
            return Fault(
                f"cannot be found: its sentinels {names} refuse the user a command. It needs"
                " +sentinel|get-master-addr-by-name +sentinel|master +subscribe +ping allchannels.",
                lasts=True,
            )
        if any("unknown command" in str(fault).lower() for fault in faults):
            return Fault(
                f"cannot be found: one of {names} is no sentinel but a Redis. The URL names hosts"
                f" and ports of the sentinels, usually {FORMS[SENTINEL_SCHEME].default_port}.",
                lasts=True,
            )
        for fault in faults:
            found_fault = find_connection_fault(fault, is_tls=self._sentinels[0].connector.is_tls)
            if found_fault.lasts:
                return Fault(
                    f"cannot be found: one of its sentinels {names} {found_fault.text}", lasts=True
                )
        reasons = dict.fromkeys(
            " ".join(str(fault).split()) or "no answer in time" for fault in faults
        )
        return Fault(
            f"cannot be found: none of its sentinels {names} answers"
            f" ({'; '.join(reasons).rstrip('.')}): check their addresses in the URL, whether they"
            " run, and ssl=true if they speak TLS."
        )


class _Sentinel:
    """One sentinel, with a connection for questions that stays open."""

    def __init__(self, address: Address, connector: Connector) -> None:
        self.address = address
        self.name = f"{address.host}:{address.port}"
        self.connector = connector
        self._pipeline: PipelinedConnection | None = None
        self._connecting = asyncio.Lock()
        self.events_refused = Condition(
            log,
            "sentinel_events_refused",
            "sentinel_events_received",
            fields={"sentinel": self.name},
        )

    async def ask(self, service: str) -> Master | Exception | None:
        """The master; None if the sentinel does not know the service; or the error."""
        deadline = asyncio.get_running_loop().time() + _ASK_SECONDS
        try:
            async with asyncio.timeout_at(deadline):
                pipeline = await self._connect()
                found, details = await pipeline.execute(
                    [
                        (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service),
                        (b"SENTINEL", b"MASTER", service),
                    ],
                    deadline=deadline,
                )
        except _ERRORS as error:
            return error
        if found is None:
            return None
        for reply in (found, details):
            if isinstance(reply, Exception):
                return reply
        # Not the address in `details`: there the leader of an election names the new master only
        # once the other replicas follow it.
        try:
            fields = dict(zip(details[::2], details[1::2], strict=True))
            address = Address(found[0].decode(), int(found[1]))
            return Master(address, int(fields[b"config-epoch"]))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return redis_errors.InvalidResponse("the address of a master was expected")

    def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.abort(redis_errors.ConnectionError("the store is closed"))

    async def _connect(self) -> PipelinedConnection:
        async with self._connecting:
            if self._pipeline is None or not self._pipeline.is_open:
                self._pipeline = PipelinedConnection(await self.connector.connect(self.address))
            return self._pipeline
