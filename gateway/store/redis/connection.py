"""One connection to Redis that everybody shares: what is asked goes out at once, replies in order.

redis-py connects (TLS, password, database); then the socket is ours. Whoever asks during one turn
of the event loop travels in one write, nobody waits for somebody else's reply to be read, and an
asker who gives up disturbs nobody: its replies are counted and dropped. What to do about a server
that is away is `redis_link`.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import hiredis
from redis import exceptions as faults
from redis.asyncio.connection import AbstractConnection

Command = tuple[Any, ...] | bytes
"""Of bytes, text and whole numbers; text goes out as UTF-8. Or all of it as it goes out."""

STANDSTILL_SECONDS: Final = 0.1
"""A deadline that is noticed so late was missed by this process: the server may have answered."""

_NOT_YET: Final = object()


@dataclass(slots=True, eq=False)
class _Asked:
    """Commands of one asker, and what has come back so far."""

    count: int
    answered: asyncio.Future[list[Any]]
    at: float
    """The loop's time."""
    until: float
    """The loop's time at which the asker gives up."""
    replies: list[Any] = field(default_factory=list)


class Wire(asyncio.Protocol):
    """A connection that is open until it is lost; it is never opened again."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._loop = asyncio.get_running_loop()
        taken = cast(Any, connection)
        self._transport: asyncio.Transport = taken._writer.transport  # noqa: SLF001 - no other way
        self._transport.set_protocol(self)
        self._reader = hiredis.Reader(
            protocolError=faults.InvalidResponse,
            replyError=taken._parser.parse_error,  # noqa: SLF001 - its classes of errors
            notEnoughData=_NOT_YET,
        )
        self._outgoing: list[bytes] = []
        self._waiting: deque[_Asked] = deque()
        self._heard_at = self._loop.time()
        self._looks_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = True

    async def ask(self, commands: Sequence[Command], *, until: float) -> list[Any]:
        """The replies in order; a command that was refused has its `ResponseError` as reply.

        Raises one of `redis_link.LOST` when the connection is lost, or at `until` (the loop's
        time), and UnicodeEncodeError for text that cannot be encoded: then nothing is sent.
        """
        if not commands:
            return []
        return await self._send(commands, until).answered

    def hang_up(self, reason: Exception) -> None:
        """Closes the connection; whoever still waits is told why."""
        self._fail(reason)
        self._transport.abort()

    def _send(self, commands: Sequence[Command], until: float) -> _Asked:
        packed = [piece for command in commands for piece in _packed(command)]
        asked = _Asked(len(commands), self._loop.create_future(), self._loop.time(), until)
        self._waiting.append(asked)
        self._look_by(until)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += packed
        return asked

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if self.is_open:
            self._transport.writelines(outgoing)

    def _look_by(self, time: float) -> None:
        """Has somebody look by then who waits for too long: one timer does for all."""
        if time < self._looks_at:
            self._look_at(time)

    def _look_at(self, time: float, *, again: bool = False) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at, self._timer = time, self._loop.call_at(time, self._look, again)

    def _look(self, again: bool) -> None:
        """Gives up for those who wait for too long.

        Time in which this process stood still does not count: what came then is yet to be read.
        """
        now = self._loop.time()
        late_seconds, self._looks_at = now - self._looks_at, math.inf
        if late_seconds > STANDSTILL_SECONDS and not again:
            self._look_at(now + late_seconds, again=True)
            return
        for asked in tuple(self._waiting):
            if asked.until > now:
                self._look_by(asked.until)
            elif not asked.answered.done():
                self._give_up(asked)

    def _give_up(self, asked: _Asked) -> None:
        """Nobody else should wait for a server that has said nothing for all that time."""
        asked.answered.set_exception(TimeoutError())
        if self._heard_at <= asked.at:
            self.hang_up(TimeoutError())

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Hands replies to those who wait for them."""
        self._heard_at = self._loop.time()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOT_YET:
                self._take(reply)
        except faults.RedisError as fault:
            self.hang_up(fault)

    def connection_lost(self, reason: Exception | None) -> None:
        """Tells everyone who waits."""
        self._fail(faults.ConnectionError(str(reason or "the server has closed the connection")))

    def _take(self, reply: Any) -> None:
        if isinstance(reply, faults.ConnectionError):  # "loading", for example
            raise reply
        if not self._waiting:
            raise faults.InvalidResponse("a reply that nobody has asked for")
        asked = self._waiting[0]
        asked.replies.append(reply)
        if len(asked.replies) == asked.count:
            self._waiting.popleft()
            if not asked.answered.done():
                asked.answered.set_result(asked.replies)

    def _fail(self, reason: Exception) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        for asked in waiting:
            if not asked.answered.done():
                asked.answered.set_exception(reason)


def _packed(command: Command) -> list[bytes]:
    """A command as Redis reads it; the bytes of an image go out as they lie in memory."""
    if isinstance(command, bytes):
        return [command]
    if command[0] != b"SET":
        return [hiredis.pack_command(command)]
    pieces = [b"*%d\r\n" % len(command)]
    for argument in command:
        pieces += (b"$%d\r\n" % len(argument), argument, b"\r\n")
    return pieces
