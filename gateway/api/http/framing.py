"""Where heads and bodies of requests end in the bytes of a connection.

With it, each part is bounded and given to aiohttp's parser by itself. The parser reads the same
bytes and alone decides whether they are valid; a wrong guess here could only misjudge a bound.
"""

from __future__ import annotations

from typing import Final

HEAD_END: Final = b"\r\n\r\n"

IGNORED_BYTES: Final = 2
"""An empty line in front of a head is ignored, RFC 9112 §2.2."""


class HeadEnd:
    """Finds the end of a head. The empty lines in front of it count as a part of it."""

    __slots__ = ("_has_begun", "_last", "size_bytes")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Looks for the end of another head."""
        self.size_bytes = 0
        """So many bytes of it have arrived."""
        self._has_begun = False
        self._last = b""
        """Its latest bytes: its end may be split."""

    @property
    def is_awaited(self) -> bool:
        """Whether some of it has arrived, so that the rest must follow."""
        return self._has_begun or self.size_bytes > IGNORED_BYTES

    def find(self, data: bytes) -> int | None:
        """How many bytes of `data` belong to the head; None if it does not end in them."""
        start = 0
        if not self._has_begun:
            start = len(data) - len(data.lstrip(b"\r\n"))
            self._has_begun = start < len(data)
        end = self._end(data, start) if self._has_begun else None
        self.size_bytes += len(data) if end is None else end
        return end

    def _end(self, data: bytes, start: int) -> int | None:
        if self._last:
            split = (self._last + data[: len(HEAD_END) - 1]).find(HEAD_END)
            if split >= 0:
                return split + len(HEAD_END) - len(self._last)
        found = data.find(HEAD_END, start)
        if found >= 0:
            return found + len(HEAD_END)
        self._last = (self._last + data[max(start, len(data) - 3) :])[-3:]
        return None


class ChunksTooLong(Exception):
    """The framing of a chunked body is larger than allowed."""


class ChunkedEnd:
    """Finds the end of a body in chunks (RFC 9112 §7.1), and bounds what is not content.

    Chunk sizes, chunk extensions and trailers may exceed the content between them by `max_bytes`.
    """

    __slots__ = ("_excess_bytes", "_is_in_trailers", "_line", "_max_bytes", "_skipped_bytes")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._excess_bytes = 0
        self._skipped_bytes = 0
        """So many bytes of the current chunk, and of the end of its line, are still to come."""
        self._line = b""
        self._is_in_trailers = False

    def find(self, data: bytes) -> int | None:
        """How many bytes of `data` belong to the body; None if it does not end in them.

        Raises `ChunksTooLong`.
        """
        position = 0
        while position < len(data):
            if self._skipped_bytes:
                step = min(self._skipped_bytes, len(data) - position)
                self._skipped_bytes -= step
                self._excess_bytes = max(0, self._excess_bytes - step)
                position += step
                continue
            end = data.find(b"\n", position)
            stop = len(data) if end < 0 else end + 1
            self._excess_bytes += stop - position
            if self._excess_bytes > self._max_bytes:
                raise ChunksTooLong
            self._line += data[position:stop]
            position = stop
            if end >= 0 and self._ends_with_line():
                return position
        return None

    def _ends_with_line(self) -> bool:
        line, self._line = self._line.removesuffix(b"\n").removesuffix(b"\r"), b""
        if self._is_in_trailers:
            return not line
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            return False  # the parser refuses it
        if size > 0:
            self._skipped_bytes = size + len(b"\r\n")
            self._excess_bytes += 2 * len(b"\r\n")  # its line break is skipped like content
        self._is_in_trailers = size == 0
        return False
