"""Receives the bodies of answers: large ones without copies, and those of many answers in turns.

aiohttp copies each piece of a body three times: out of the loop's buffer, out of its parser, and
to join the pieces. `WholeBody` is filled by the system itself. When the bodies of many images
arrive at the same time, `ReceiveTurns` lets the event loop do other work between them.
`connection` decides which bodies are received whole.
"""

from __future__ import annotations

import asyncio
import ctypes
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

TURN_BYTES: Final = 2 << 20
"""Received in one turn of the event loop, from all connections together: about a millisecond."""

MIN_READ_BYTES: Final = 32 << 10
"""What a connection may read although the bytes of the turn are used up."""

RESUMED_PER_TURN: Final = 4
"""Connections that go on in a turn, of those that wait."""

# `bytearray(n)` fills itself with zeros, which for 10 MB of new memory takes as long as ten
# milliseconds. The contents are never read before they are received.
_create_unfilled: Final = ctypes.pythonapi.PyByteArray_FromStringAndSize
_create_unfilled.restype = ctypes.py_object
_create_unfilled.argtypes = [ctypes.c_void_p, ctypes.c_ssize_t]


class ReceiveTurns:
    """Shares the turns of the event loop among the connections that receive bodies."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._has_begun = False
        self.left_bytes = TURN_BYTES
        """So many may still be received in this turn; less than 0 if a piece was larger."""

    def spend(self, size_bytes: int) -> bool:
        """Counts received bytes. False: the connection should pause, and call `wait`."""
        self.left_bytes -= size_bytes
        self._begin_once()
        return self.left_bytes > 0

    def wait(self, go_on: Callable[[], None]) -> None:
        """Calls `go_on` in a later turn, after those that wait already."""
        self._waiting.append(go_on)
        self._begin_once()

    def _begin_once(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._loop.call_soon(self._end)

    def _end(self) -> None:
        self._has_begun = False
        self.left_bytes = TURN_BYTES
        for _ in range(min(RESUMED_PER_TURN, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            self._begin_once()


class Receiving(Protocol):
    """The connection that a body is received for."""

    def received_directly(self, size_bytes: int) -> None:
        """So many bytes more are in the buffer."""

    def eof_received(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class WholeBody(asyncio.BufferedProtocol):
    """A body of known length, which the event loop receives into one buffer.

    It is the protocol of the transport until the last byte has come, and reads not beyond it.
    """

    def __init__(self, length: int, connection: Receiving, turns: ReceiveTurns) -> None:
        self._length = length
        self._connection = connection
        self._turns = turns
        self._buffer: bytearray = _create_unfilled(None, length)
        self._view = memoryview(self._buffer)
        self._filled = 0

    @property
    def missing_bytes(self) -> int:
        """So many bytes are still to come."""
        return self._length - self._filled

    def add(self, data: bytes) -> None:
        """Adds bytes that were received before; at most those that are missing."""
        self._view[self._filled : self._filled + len(data)] = data
        self._filled += len(data)

    def release(self) -> bytearray:
        """The body, which is complete."""
        assert not self.missing_bytes  # noqa: S101 - the rest of the buffer was never written
        self._view.release()
        # uvloop's transport refers to the latest protocol of this kind for as long as it is open.
        buffer, self._buffer = self._buffer, bytearray()
        return buffer

    # ── asyncio.BufferedProtocol ────────────────────────────────────────────────────────────

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        size = min(self.missing_bytes, max(MIN_READ_BYTES, self._turns.left_bytes))
        return self._view[self._filled : self._filled + size]

    def buffer_updated(self, nbytes: int) -> None:
        """Called when they are there."""
        self._filled += nbytes
        self._connection.received_directly(nbytes)

    def eof_received(self) -> None:
        """The peer has closed the connection within the body."""
        self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is lost within the body."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """As of the connection: a request may still be written."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """As of the connection."""
        self._connection.resume_writing()


def switch_protocol(transport: asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
    """Gives what arrives next to another protocol."""
    # uvloop asks which kind of protocol it has when it starts to read.
    transport.pause_reading()
    cast(Any, transport).set_protocol(protocol)
    transport.resume_reading()


def may_end_chunks(data: bytes) -> bool:
    """Whether a chunked body may end in the next bytes that arrive: at an empty line.

    The line before it may have ended in the bytes before.
    """
    found = -1
    while not data.startswith((b"\n", b"\r\n"), found + 1):
        found = data.find(b"\n", found + 1)
        if found < 0:
            return False
    return True
