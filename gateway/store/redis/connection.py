"""One Redis connection that all requests of a process share.

redis-py connects (TLS, password, database); then the socket belongs to this module. Commands of one
turn of the event loop go out in one write, without waiting for earlier replies, and replies come
back in order. A request that is cancelled disturbs no other: its replies are counted and dropped.
Reconnecting is `client`.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from gateway.store.redis import faults

RawCommand = tuple[Any, ...] | bytes
"""Arguments (bytes, integers, and text that is sent as UTF-8), or a packed command."""

STALL_SECONDS: Final = 0.1
"""If a deadline is noticed later than this, the process stalled and the server may have replied."""

SILENT_SECONDS: Final = 0.4
"""A request that expires closes the connection only if the server was silent for this long. If the
request was sent just before its deadline, the server may be well."""

_INCOMPLETE: Final = object()
"""hiredis returns it until a whole reply has arrived."""

PLAIN_REPLIES: Final = frozenset({bytes, int, list, type(None)})
"""The types of almost all replies. One of another type may be an error, or a push."""


@dataclass(slots=True, eq=False)
class _PendingRequest:
    """Commands that were sent together, and their replies so far."""

    count: int
    done: asyncio.Future[list[Any]]
    sent_at: float
    deadline: float
    replies: list[Any]


class PipelinedConnection(asyncio.Protocol):
    """A connection that is open until it is lost or retired; it never reconnects.

    It retires when the server says that it takes no writes now, as a demoted master does: requests
    that were sent still get their replies, and then it closes. `retires` knows these errors. Times
    are those of the event loop's clock.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        *,
        retires: Callable[[BaseException], bool] = faults.retires,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._retires = retires
        connected = cast(Any, connection)
        self._writer = connected._writer  # noqa: SLF001 - no other way
        self._transport: asyncio.Transport = self._writer.transport
        # From here on redis-py receives nothing from this socket.
        self._transport.set_protocol(self)
        self._reader = hiredis.Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=connected._parser.parse_error,  # noqa: SLF001 - for its classes of errors
            notEnoughData=_INCOMPLETE,
        )
        # Nor does it close the socket.
        connected._reader = connected._writer = None  # noqa: SLF001 - as above
        self._outgoing: list[bytes] = []
        self._pending: deque[_PendingRequest] = deque()
        self._last_received = self._loop.time()
        self._next_check = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._is_lost = False
        self.is_open = True
        """Whether it takes requests."""

    async def execute(self, commands: Sequence[RawCommand], *, deadline: float) -> list[Any]:
        """The replies in order; a command that Redis refuses has a `ResponseError` as its reply.

        Raises one of `client.CONNECTION_ERRORS` if the connection is lost, or at the deadline, and
        `UnicodeEncodeError` for text that cannot be encoded; then nothing is sent.
        """
        # The future is in no variable here: its error has this frame in the traceback.
        return await self.send(commands, deadline=deadline) if commands else []

    def send(self, commands: Sequence[RawCommand], *, deadline: float) -> asyncio.Future[list[Any]]:
        """As `execute`, for at least one command."""
        # Before the request is queued: for a command that cannot be encoded no reply would come.
        packed = _pack(commands)
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        self._pending.append(
            _PendingRequest(len(commands), done, self._loop.time(), deadline, replies=[])
        )
        if deadline < self._next_check:
            self._call_at(deadline, self._check_deadlines)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing += packed
        return done

    def abort(self, reason: Exception) -> None:
        """Closes the connection; pending requests fail with `reason`."""
        self._fail(reason)
        self._transport.abort()

    @property
    def is_pending(self) -> bool:
        """Whether it still waits for replies."""
        return not self._is_lost and any(not request.done.done() for request in self._pending)

    def retire(self) -> None:
        """Takes no more requests, and closes after the replies to those that were sent."""
        self.is_open = False
        if all(request.done.done() for request in self._pending):
            self.abort(redis_errors.ConnectionError("the connection is retired"))

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if not self._is_lost:
            self._transport.writelines(outgoing)

    # ── deadlines: one timer for all pending requests ───────────────────────────────────────

    def _call_at(self, time: float, check: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next_check, self._timer = time, self._loop.call_at(time, check)

    def _check_deadlines(self) -> None:
        now = self._loop.time()
        late_seconds = now - self._next_check
        if late_seconds > STALL_SECONDS:
            # The process stalled, so replies may be waiting in the socket: read them first.
            self._call_at(now + late_seconds, self._expire_requests)
        else:
            self._expire_requests()

    def _expire_requests(self) -> None:
        now = self._loop.time()
        self._next_check = math.inf
        for request in tuple(self._pending):
            if request.deadline > now:
                if request.deadline < self._next_check:
                    self._call_at(request.deadline, self._check_deadlines)
            elif not request.done.done():
                request.done.set_exception(TimeoutError())
                silent_since = max(self._last_received, self._pending[0].sent_at)
                is_silent = now - silent_since >= SILENT_SECONDS
                if is_silent and self._last_received <= request.sent_at:
                    # The server sent nothing in all that time: no other request should wait for it.
                    self.abort(TimeoutError())
                    return
        if not (self.is_open or self._is_lost):
            self.retire()

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────

    def data_received(self, data: bytes) -> None:
        """Hands replies to the pending requests."""
        self._last_received = self._loop.time()
        next_reply = self._reader.gets
        try:
            self._reader.feed(data)
            while True:
                reply = next_reply()
                if type(reply) in PLAIN_REPLIES and self.is_open and self._pending:
                    # As `_receive`, for the usual reply: a purchase gets 17.
                    request = self._pending[0]
                    replies = request.replies
                    replies.append(reply)
                    if len(replies) == request.count:
                        self._end_first()
                elif reply is _INCOMPLETE:
                    return
                else:
                    self._receive(reply)
        except redis_errors.RedisError as error:
            self.abort(error)

    def connection_lost(self, reason: Exception | None) -> None:
        """Fails the pending requests."""
        message = str(reason or "the server has closed the connection")
        self._fail(redis_errors.ConnectionError(message))

    def _receive(self, reply: Any) -> None:
        if not self._pending:
            # A server that refuses the connection says so before the first request.
            is_refusal = isinstance(reply, redis_errors.RedisError)
            raise reply if is_refusal else redis_errors.InvalidResponse("a reply without a request")
        request = self._pending[0]
        request.replies.append(reply)
        if len(request.replies) == request.count:
            self._end_first()
        if isinstance(reply, redis_errors.RedisError) and self._retires(reply):
            self.is_open = False
        if not (self.is_open or self._is_lost):
            self.retire()

    def _end_first(self) -> None:
        """Ends the first pending request, which has its replies."""
        request = self._pending.popleft()
        # A cancelled or expired request is done already, and its replies are dropped.
        if not request.done.done():
            request.done.set_result(request.replies)

    def _fail(self, reason: Exception) -> None:
        self.is_open, self._is_lost = False, True
        if self._timer is not None:
            self._timer.cancel()
        pending, self._pending = self._pending, deque()
        for request in pending:
            if not request.done.done():
                # A copy for each, because the traceback of one that is raised would grow.
                request.done.set_exception(copy.copy(reason))


def _pack(commands: Sequence[RawCommand]) -> list[bytes]:
    pieces: list[bytes] = []
    is_large = False
    for command in commands:
        if isinstance(command, bytes):
            pieces.append(command)
        elif command[0] != b"SET":
            pieces.append(hiredis.pack_command(command))
        else:
            # The bytes of an image are written from where they are, without a copy.
            is_large = True
            pieces.append(b"*%d\r\n" % len(command))
            for argument in command:
                pieces += (b"$%d\r\n" % len(argument), argument, b"\r\n")
    return pieces if is_large else [b"".join(pieces)]
