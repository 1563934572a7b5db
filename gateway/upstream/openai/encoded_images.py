"""Reads the bytes of an image from base64: strictly, or else as lenient decoders do.

Services write base64 in many ways: as a `data:` URL, in lines, in the alphabet of URLs, without
padding. Upstream has charged for the image by then, so every form that has one meaning is read.
`purchasing` checks the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, TypeAlias

import orjson
import pybase64

JsonText: TypeAlias = memoryview
"""The inside of a JSON string, whose escapes were not read."""

_PIECE_BYTES: Final = 512 * 1024
"""Read at once. A call on more would hold the interpreter's lock for too long."""

_KEPT_SHARE: Final = 8 / 7
"""How much larger than the text is what stays in memory with it."""

_MAX_ESCAPE: Final = 6
"""Bytes of the longest escape, `\\u002b`."""

_PREFIX: Final = re.compile(
    rb"(?:data:(?P<parameters>[^,]{0,1024})|[^,]{0,256};\s*base64),", re.IGNORECASE
)
_ENCODED: Final = re.compile(rb"(?:%[0-9A-Fa-f]{2}){1,4096}")
"""Bounded, because each repetition takes memory."""
_IS_BASE64: Final = re.compile(rb";\s*base64\s*\Z", re.IGNORECASE)

_WHITE_SPACE: Final = b" \t\r\n\v\f"
_TO_STANDARD: Final = bytes.maketrans(b"-_\0", b"+/=")
"""From the alphabet of URLs. A NUL is the end of a C string, and ends the base64 like padding."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


def decode_image(text: str | JsonText) -> bytes | None:
    """The bytes that base64 encodes, or that a `data:` URL has; None for anything else."""
    data = _decode_strictly(text)
    if data is not None:
        return data
    try:
        return _decode_leniently(_pieces(text)) or None
    except ValueError:
        return None


def decode_and_keep(text: str | JsonText) -> tuple[bytes | None, memoryview | None]:
    """As `decode_image`, with the text if an answer may have it as it came.

    That saves encoding the bytes again, half a millisecond for 2 MB.
    """
    data = _decode_strictly(text)
    if data is None:
        return decode_image(text), None
    return data, text if isinstance(text, memoryview) and _is_canonical(text, data) else None


def _is_canonical(text: memoryview, data: bytes) -> bool:
    """Whether valid base64 is what encoding its bytes gives, and not a small part of what it keeps.

    In this length only the last digit can differ: by bits that belong to no byte.
    """
    rest = len(data) % 3 or 3
    return (
        len(text) == (len(data) + 2) // 3 * 4
        and text[-4:] == pybase64.b64encode(data[-rest:])
        and len(text) * _KEPT_SHARE >= memoryview(text.obj).nbytes
    )


def _decode_strictly(text: str | JsonText) -> bytes | None:
    try:
        return pybase64.b64decode(text, validate=True) if text else None
    except ValueError:
        return None


def is_data_url(text: str) -> bool:
    """Whether a text is a `data:` URL, which contains what other URLs only name."""
    return text[:64].lstrip()[:5].lower() == "data:"


def _pieces(text: str | JsonText) -> Iterator[bytes]:
    """The text in pieces that divide no escape. Raises `ValueError` for an invalid one."""
    is_json = not isinstance(text, str)
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    start = 0
    while start < len(data):
        piece = bytes(data[start : start + _PIECE_BYTES])
        if start + len(piece) < len(data):
            tail = re.search(rb"[\\%]", piece[-_MAX_ESCAPE:])
            if tail is not None:
                piece = piece[: len(piece) - _MAX_ESCAPE + tail.start()]
        start += len(piece)
        yield _unescape(piece) if is_json and b"\\" in piece else piece


def _unescape(piece: bytes) -> bytes:
    quoted = b'"' + piece + b'"'
    try:
        text = orjson.loads(quoted)
    except orjson.JSONDecodeError:
        text = json.loads(quoted, strict=False)  # line breaks may be in it as they are
    return str(text).encode("utf-8", "replace")


def _unquoted(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Decodes the percent-encoding of a URL in pieces, also of an escape that two pieces share."""
    rest = b""
    for piece in pieces:
        whole = rest + piece
        cut = whole.rfind(b"%", -2)
        rest = whole[cut:] if cut >= 0 else b""
        yield _unquote(whole[: len(whole) - len(rest)])
    yield rest


def _unquote(piece: bytes) -> bytes:
    """A piece without its percent-encoding, in a run as a whole: there may be only such bytes.

    `urllib` would make an object of each, which are many times as large as the piece.
    """
    return _ENCODED.sub(lambda run: bytes.fromhex(run[0].replace(b"%", b"").decode()), piece)


def _decode_leniently(pieces: Iterator[bytes]) -> bytes:
    """Raises `ValueError` for what is no base64."""
    first = next(pieces, b"").removeprefix(_BYTE_ORDER_MARK).lstrip(_WHITE_SPACE)
    prefix = _PREFIX.match(first)
    is_url = prefix is not None
    if prefix is not None:
        first = first[prefix.end() :]
        parameters = prefix["parameters"]
        if parameters is not None and not _IS_BASE64.search(parameters):
            return b"".join(_unquoted(chain([first], pieces)))
    decoded: list[bytes] = []
    rest, has_ended = b"", False
    while True:
        piece = _unquote(first) if is_url and b"%" in first else first
        digits, padding, behind = piece.translate(_TO_STANDARD, _WHITE_SPACE).partition(b"=")
        if (has_ended and digits) or behind.strip(b"="):
            raise ValueError("base64 goes on behind its padding")
        has_ended = has_ended or bool(padding)
        digits = rest + digits
        whole = len(digits) // 4 * 4
        rest = digits[whole:]
        decoded.append(pybase64.b64decode(digits[:whole], validate=True))
        following = next(pieces, None)
        if following is None:
            break
        first = following
    # Missing padding is added; a single digit is no byte, which is refused.
    decoded.append(pybase64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
    return b"".join(decoded)
