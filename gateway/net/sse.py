"""Server-sent events: a splitter for what arrives, an encoder for what the gateway sends.

Pure: no `async`, no sockets. What the events mean is `upstream/wire`; when they are sent, and with
which headers, is `api/`. The format is the WHATWG's (HTML, section 9.2); what clients make of it
was measured (WIRE §4.2), and the encoder can write only what all of them take.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

COMMENT: Final = b": keep-alive\n\n"
"""Keeps a line alive: the one thing beside whole events that no client stumbles over."""

_BOM: Final = b"\xef\xbb\xbf"
_LONGEST_START: Final = len(_BOM + b"event: ")
"""Bytes at the start of a line that say which field it is."""

_EVENT_NAME: Final = re.compile(r"[a-z_]+(\.[a-z_]+)+")
"""The names of OpenAI's events; `error` is none of them and has an encoder of its own."""

_TAKEN_FIELDS: Final = frozenset({"type", "b64_json", "error"})


class FrameTooLarge(ValueError):
    """A frame exceeds the bound that its splitter was given."""


@dataclass(frozen=True, slots=True)
class Event:
    """One frame that has data."""

    name: str | None
    """What its `event:` says; None when it says nothing."""
    data: bytes
    """The values of its `data:` lines, joined by line feeds."""


# ── in ──────────────────────────────────────────────────────────────────────────────────────


class Splitter:
    """Cuts the chunks of a stream into events, wherever the chunks begin and end.

    Takes LF, CRLF and CR, and a byte order mark; passes over comments, `id:`, `retry:` and frames
    without data. Every byte is looked at once and copied twice at most, also when a frame of many
    megabytes comes in pieces of one byte.
    """

    def __init__(self, *, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._frame_bytes = 0
        self._pieces: list[bytes] = []  # the line under way; empty between two lines
        self._name = ""
        self._data: list[bytes] = []
        self._is_first_line = True
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that end in this chunk.

        Raises `FrameTooLarge` for a frame, comments included, of more than `max_frame_bytes`; the
        splitter is of no use after that.
        """
        events = []
        for piece, end in _lines(chunk):
            is_rest_of_crlf = self._ended_in_cr and not piece and end == b"\n"
            self._ended_in_cr = end == b"\r"
            event = None if is_rest_of_crlf else self._take(piece, end)
            if event is not None:
                events.append(event)
        return events

    def close(self) -> list[Event]:
        """The event that the stream ended in, when only its last line ends are missing.

        By the standard it is lost, and clients do lose it (WIRE §4.2). Here it may be an image
        that was paid for; whether it is whole is for the reader of its data to see.
        """
        event = self._end_line() if self._pieces else None
        event = event or self._end_frame()
        return [] if event is None else [event]

    def _take(self, piece: bytes, end: bytes) -> Event | None:
        """A line, the rest of one, or, without an end, a part of one."""
        self._frame_bytes += len(piece) + len(end)
        if self._frame_bytes > self._max_frame_bytes:
            raise FrameTooLarge(f"an event of more than {self._max_frame_bytes} bytes")
        if self._pieces and len(self._pieces[0]) < _LONGEST_START:
            self._pieces = [self._pieces[0] + piece]  # so that the first one names the field
        else:
            self._pieces.append(piece)
        return self._end_line() if end else None

    def _end_line(self) -> Event | None:
        (first, *rest), self._pieces = self._pieces, []
        if self._is_first_line:
            first = first.removeprefix(_BOM)
            self._is_first_line = False
        if not first and not any(rest):
            return self._end_frame()
        field, colon, _ = first[:_LONGEST_START].partition(b":")
        start = len(field) + len(colon)
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


def _lines(chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every line, or part of one, and what ends it: LF, CR, or nothing where the chunk ends."""
    for line, line_feed in _cut(chunk, b"\n"):
        for part, carriage_return in _cut(line, b"\r"):
            if part or carriage_return or line_feed:
                yield part, carriage_return or line_feed


def _cut(text: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every part and its end; the last one, which may be empty, has none.

    In long lines `find` is thirty times as fast as `split` and `splitlines`; text that has no end
    in it is not copied.
    """
    start = 0
    while (place := text.find(end, start)) >= 0:
        yield text[start:place], end
        start = place + 1
    yield text[start:], b""


# ── out ─────────────────────────────────────────────────────────────────────────────────────


def encode_event(name: str, fields: Mapping[str, Any], *, base64: bytes) -> list[bytes]:
    """A frame whose data is a JSON object: `type`, the image as `b64_json`, then `fields`.

    Comes in pieces, so that the base64 is never copied: it is the second of three, and has to be
    one unbroken line. The JSON around it is made here, because a name without data, data that is
    not JSON and a line end inside it all break clients. A field that says type or image a second
    time is left out, and so is `error`: an SDK raises it, whatever else the event says. Raises
    `ValueError` for a name that is not like `image_generation.completed`.
    """
    if not _EVENT_NAME.fullmatch(name):
        raise ValueError(f"not the name of an event: {name!r}")
    start = f'event: {name}\ndata: {{"type":"{name}","b64_json":"'.encode()
    rest = orjson.dumps({key: fields[key] for key in fields if key not in _TAKEN_FIELDS})[1:]
    comma = b"," if rest != b"}" else b""
    return [start, base64, b'"' + comma + rest + b"\n\n"]


def encode_error(error: Mapping[str, Any]) -> bytes:
    """The frame that ends a stream which has failed; `error` holds message, type, param, code.

    It is always nested under `error`: one SDK takes a flat one for an ordinary event, and an empty
    one too. Raises `ValueError` without a message.
    """
    if not error.get("message"):
        raise ValueError("an error needs a message")
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": dict(error)}) + b"\n\n"
