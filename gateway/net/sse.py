"""Server-sent events: a splitter for received streams, and an encoder for sent ones.

Pure: no `async`, no I/O. `upstream/openai/events` interprets the events, and sending them is
`api/http/streaming`. The format is that of the HTML standard, section 9.2. The encoder writes only
frames that all known clients decode: `docs/reference/images-api.md#what-decoders-accept`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

COMMENT: Final = b": keep-alive\n\n"
"""Keeps an idle connection alive. All known clients ignore comments."""


def comment(text: str) -> bytes:
    """A comment, which does the same and shows a line of ASCII."""
    return b": %b\n\n" % text.encode("ascii", "replace").replace(b"\n", b" ")


_BOM: Final = b"\xef\xbb\xbf"
_FIELD_START_BYTES: Final = len(_BOM + b"event: ")
"""Enough bytes of a line to tell its field."""

MAX_IGNORED_BYTES: Final = 1024 * 1024
"""Of comments, unknown fields and blank lines of one stream."""

_EVENT_NAME: Final = re.compile(r"[a-z_]+(\.[a-z_]+)+")
"""The names of OpenAI's events. `error` has its own encoder, `encode_error`."""

_RESERVED_FIELDS: Final = frozenset({"type", "b64_json", "error"})


class FrameTooLarge(ValueError):
    """A frame, or what a stream has beside its data, exceeds the bound of its splitter."""


@dataclass(frozen=True, slots=True)
class Event:
    """One frame that has data."""

    name: str | None
    """The value of `event:`; None if it is missing or empty."""
    data: bytes
    """The values of its `data:` lines, joined by line feeds."""


# ── receiving ───────────────────────────────────────────────────────────────────────────────


class Splitter:
    """Splits the chunks of a stream into events, independently of the chunks' boundaries.

    Accepts LF, CRLF and CR as line ends, and a byte order mark. Ignores comments, `id:`, `retry:`
    and frames without data. Each byte is split once and copied at most twice, even if a frame of
    many megabytes arrives in chunks of one byte. A stream has at most `MAX_IGNORED_BYTES` outside
    of its data. How many lines it may have is for the caller to decide.
    """

    def __init__(self, *, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._frame_bytes = 0
        self.lines = 0
        """The line ends so far."""
        self._ignored_bytes = 0
        self._pieces: list[bytes] = []  # of the current line; empty between two lines
        self._name = ""
        self._data: list[bytes] = []
        self._is_first_line = True
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk.

        Raises `FrameTooLarge` for a frame, including comments, of more than `max_frame_bytes`, and
        for more ignored bytes than a stream may have. After that the splitter cannot be used again.
        """
        events = []
        for piece, end in _lines(chunk):
            is_rest_of_crlf = self._ended_in_cr and not piece and end == b"\n"
            self._ended_in_cr = end == b"\r"
            event = None if is_rest_of_crlf else self._add_piece(piece, end)
            if event is not None:
                events.append(event)
        return events

    def close(self) -> list[Event]:
        """The last event of a stream that ended without the final line ends.

        The standard and most clients discard it. Here it may be an image that was paid for. Whether
        it is complete is for its parser to decide.
        """
        event = self._end_line() if self._pieces else None
        event = event or self._end_frame()
        return [] if event is None else [event]

    def _add_piece(self, piece: bytes, end: bytes) -> Event | None:
        """Adds a part of a line, which ends the line unless `end` is empty."""
        self._frame_bytes += len(piece) + len(end)
        if self._frame_bytes > self._max_frame_bytes:
            raise FrameTooLarge(f"an event of more than {self._max_frame_bytes} bytes")
        if self._pieces and len(self._pieces[0]) < _FIELD_START_BYTES:
            self._pieces = [self._pieces[0] + piece]  # enough to tell the field
        else:
            self._pieces.append(piece)
        if not self._is_data_line():
            self._ignored_bytes += len(piece) + len(end)
            if self._ignored_bytes > MAX_IGNORED_BYTES:
                raise FrameTooLarge(f"more than {MAX_IGNORED_BYTES} bytes without data")
        if not end:
            return None
        self.lines += 1
        return self._end_line()

    def _is_data_line(self) -> bool:
        start = self._pieces[0][:_FIELD_START_BYTES]
        if self._is_first_line:
            start = start.removeprefix(_BOM)
        return start.startswith(b"data") and start[4:5] in (b":", b"")

    def _end_line(self) -> Event | None:
        (first, *rest), self._pieces = self._pieces, []
        if self._is_first_line:
            first = first.removeprefix(_BOM)
            self._is_first_line = False
        if not first and not any(rest):
            return self._end_frame()
        field, colon, _ = first[:_FIELD_START_BYTES].partition(b":")
        start = len(field) + len(colon)
        # One space after the colon is no part of the value.
        start += first.startswith(b" ", start)
        if field == b"data":
            self._data.append(b"".join([memoryview(first)[start:], *rest]))
        elif field == b"event":
            self._name = b"".join([first[start:], *rest]).decode("utf-8", "replace")
        return None

    def _end_frame(self) -> Event | None:
        name, data = self._name, self._data
        self._name, self._data, self._frame_bytes = "", [], 0
        return Event(name or None, b"\n".join(data)) if data else None


def has_lines(chunk: bytes, count: int) -> bool:
    """Whether a chunk has at least `count` line feeds, or as many carriage returns."""
    # `bytes.count` would take ten times as long for an image without any.
    return _has(chunk, b"\n", count) or _has(chunk, b"\r", count)


def _has(chunk: bytes, end: bytes, count: int) -> bool:
    found = -1
    for _ in range(count):
        found = chunk.find(end, found + 1)
        if found < 0:
            return False
    return True


def _lines(chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The lines, or parts of them, with their line ends; the last may have an empty one."""
    for line, line_feed in _split(chunk, b"\n"):
        for part, carriage_return in _split(line, b"\r"):
            if part or carriage_return or line_feed:
                yield part, carriage_return or line_feed


def _split(text: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The parts of `text` with their ends; the last part, which may be empty, has none."""
    # For long lines `find` is thirty times as fast as `split` and `splitlines`, and text without
    # an end is not copied.
    start = 0
    while (found := text.find(end, start)) >= 0:
        yield text[start:found], end
        start = found + 1
    yield text[start:], b""


# ── sending ─────────────────────────────────────────────────────────────────────────────────


def encode_event(
    name: str, fields: Mapping[str, Any], *, base64: bytes | memoryview
) -> list[bytes | memoryview]:
    """A frame with a JSON object: `type`, the image as `b64_json`, then `fields`.

    Returned in three pieces, so that the base64, which must be a single line, is never copied.
    `type`, `b64_json` and `error` in `fields` are ignored.
    Raises `ValueError` for a name that is not like `image_generation.completed`.
    """
    if not _EVENT_NAME.fullmatch(name):
        raise ValueError(f"not the name of an event: {name!r}")
    start = f'event: {name}\ndata: {{"type":"{name}","b64_json":"'.encode()
    # Without `error`, because SDKs raise any event that has one.
    rest = orjson.dumps({key: fields[key] for key in fields if key not in _RESERVED_FIELDS})[1:]
    comma = b"," if rest != b"}" else b""
    return [start, base64, b'"' + comma + rest + b"\n\n"]


def encode_error(error: Mapping[str, Any]) -> bytes:
    """The frame that ends a failed stream; `error` has `message`, `type`, `param` and `code`.

    Raises `ValueError` without a message.
    """
    # An SDK ignores an empty error.
    if not error.get("message"):
        raise ValueError("an error needs a message")
    # Nested under `error`, because an SDK takes fields at the top level for an ordinary event.
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": dict(error)}) + b"\n\n"
