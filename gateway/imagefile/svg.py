"""Checks an SVG: UTF-8, well-formed XML within bounds, `svg` as its root. It is never drawn.

A program may have written it (upstream's text models do), so it may contain anything. What only
makes it dangerous to open, such as script, is reported and kept: see `ACTIVE`. What makes it
dangerous to read, a DTD with its entities or a file out of bounds, is rejected.

The length of a tag is checked before expat reads it, because expat's time for one tag grows with
its attributes and no handler runs before the tag ends. The handlers count elements, attributes and
levels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Final
from xml.parsers import expat

from gateway.imagefile.facts import BadImage, ImageFacts
from gateway.imagefile.svg_content import ACTIVE, Content

MAX_BYTES: Final = 8 << 20
MAX_ELEMENTS: Final = 100_000
MAX_DEPTH: Final = 100
MAX_TAG_BYTES: Final = 64 << 10
"""Of one tag, without the content of its `data:` URLs: an embedded photograph is one attribute."""
MAX_ATTRIBUTES: Final = 500_000
"""Of all tags."""
MAX_SIZE: Final = 1_000_000
"""Pixels of an edge. A larger one is taken as none."""

_MAX_PARTS: Final = 4 * MAX_ELEMENTS
"""Tags, comments and processing instructions."""
_PIECE_BYTES: Final = 64 << 10
"""What expat gets at a time: meanwhile no other thread runs."""
HEAD_BYTES: Final = 16 << 10
"""Where the root's tag must begin for a file to be recognized. Of other formats less is enough."""

NAMESPACE: Final = "http://www.w3.org/2000/svg"

_BOM: Final = b"\xef\xbb\xbf"
_ROOT: Final = re.compile(rb"<(?:[\w.-]++:)?svg[\s/>]")
_DATA_URL: Final = re.compile(rb"""(?i)=\s*+(?:"\s*+data:([^"]*+)"|'\s*+data:([^']*+)')""")
_QUOTED: Final = rb"""(?:"[^"]*+"|'[^']*+')"""
_PART: Final = re.compile(
    rb"<(?:!--(?s:.*?)-->|!\[CDATA\[(?s:.*?)\]\]>|\?(?s:.*?)\?>|(?P<dtd>!DOCTYPE)"
    rb"|[^\"'<>!?]++(?>(?:" + _QUOTED + rb"[^\"'<>]*+)*)>)"
)
_LENGTH: Final = re.compile(
    r"\s*\+?([0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(px|pt|pc|mm|cm|in)?\s*"
)
_PIXELS: Final = {"px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
_SEPARATORS: Final = re.compile(r"[\s,]+")

__all__ = ["ACTIVE", "check_svg", "is_svg"]


def is_svg(data: bytes) -> bool:
    """Whether the first bytes look like an SVG. It may be damaged, or another kind of XML."""
    head = data[:HEAD_BYTES].removeprefix(_BOM).lstrip()
    return head.startswith(b"<") and _ROOT.search(head) is not None


def check_svg(data: bytes) -> ImageFacts:
    """The size of a complete SVG, if it has one, and what in it is active.

    Takes up to 2 seconds of processor time for a file that uses all bounds, a tenth of one without
    a break: `svg_process` has a process for large ones. Raises `BadImage`.
    """
    if len(data) > MAX_BYTES:
        raise BadImage(f"SVG larger than {MAX_BYTES} bytes")
    try:
        data.decode()
    except UnicodeDecodeError:
        raise BadImage("SVG that is not UTF-8") from None
    reader = _Reader()
    try:
        for piece in _measured_pieces(data):
            reader.read(piece)
        reader.end()
    except expat.ExpatError as error:
        raise BadImage(f"SVG that is not XML: {expat.ErrorString(error.code)}") from None
    width, height = _size(reader.root)
    return ImageFacts("svg", width, height, active=reader.content.active)


def _measured_pieces(data: bytes) -> Iterator[memoryview]:
    """The file in pieces of whole tags. Raises `BadImage` for a tag that is too long, and a DTD.

    Expat would read a tag, or a comment, that is not complete again with each piece.
    """
    start, offset, parts_left = 0, data.find(b"<"), _MAX_PARTS
    while offset >= 0:
        # In XML this byte only begins a part, so a part that does not match ends the check.
        part = _PART.match(data, offset)
        if part is None:
            raise BadImage("SVG is cut short, or not XML")
        if part["dtd"]:
            raise BadImage("SVG with a DTD")
        parts_left -= 1
        if parts_left < 0:
            raise BadImage("SVG of too many small parts")
        end = part.end()
        _check_length(data, offset, end)
        if end - start >= _PIECE_BYTES:
            yield memoryview(data)[start:end]
            start = end
        offset = data.find(b"<", end)
    yield memoryview(data)[start:]


def _check_length(data: bytes, offset: int, end: int) -> None:
    if end - offset <= MAX_TAG_BYTES or data[offset + 1] in b"!?":
        return
    embedded = sum(len(url[1] or url[2] or b"") for url in _DATA_URL.finditer(data, offset, end))
    if end - offset - embedded > MAX_TAG_BYTES:
        raise BadImage(f"SVG with a tag of more than {MAX_TAG_BYTES} bytes")


class _Reader:
    """Parses an SVG, counts what is bounded, and collects what is active."""

    def __init__(self) -> None:
        self.root: Mapping[str, str] = {}
        self.content = Content()
        self._depth = 0
        self._elements = 0
        self._attributes = 0
        # Without namespaces: expat would copy a long namespace into the name of each element.
        self._parser = parser = expat.ParserCreate("utf-8")
        parser.buffer_text = True
        parser.XmlDeclHandler = self._declaration
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self.content.text
        parser.ProcessingInstructionHandler = self.content.instruction

    def read(self, piece: memoryview) -> None:
        """Parses a piece. Raises `BadImage` or `expat.ExpatError`."""
        self._parser.Parse(piece, False)

    def end(self) -> None:
        """Parses the end. Raises `expat.ExpatError`."""
        self._parser.Parse(b"", True)

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii"):
            raise BadImage("SVG that is not UTF-8")

    def _doctype(self, *_: object) -> None:
        raise BadImage("SVG with a DTD")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._elements += 1
        self._attributes += len(attributes)
        if self._depth > MAX_DEPTH:
            raise BadImage(f"SVG of more than {MAX_DEPTH} levels")
        if self._elements > MAX_ELEMENTS:
            raise BadImage(f"SVG of more than {MAX_ELEMENTS} elements")
        if self._attributes > MAX_ATTRIBUTES:
            raise BadImage(f"SVG of more than {MAX_ATTRIBUTES} attributes")
        if self._elements == 1:
            self._check_root(name, attributes)
        self.content.start(name, attributes)

    def _end(self, name: str) -> None:
        self._depth -= 1
        self.content.end(name)

    def _check_root(self, name: str, attributes: Mapping[str, str]) -> None:
        prefix, colon, local = name.rpartition(":")
        if local != "svg" or attributes.get(f"xmlns{colon}{prefix}") != NAMESPACE:
            raise BadImage("XML whose root is not svg of the SVG namespace")
        self.root = attributes


# ── size ────────────────────────────────────────────────────────────────────────────────────


def _size(root: Mapping[str, str]) -> tuple[int, int]:
    """Width and height in pixels, by the attributes or else the view box; (0, 0) for none."""
    width, height = _pixels(root.get("width", "")), _pixels(root.get("height", ""))
    box = _SEPARATORS.split(root.get("viewBox", "")[:200].strip())
    across, down = map(_pixels, box[2:]) if len(box) == 4 else (0.0, 0.0)
    if across and down:
        if width and not height:
            height = width * down / across
        elif height and not width:
            width = height * across / down
        elif not width:
            width, height = across, down
    if not 0 < width <= MAX_SIZE or not 0 < height <= MAX_SIZE:
        return 0, 0
    return math.ceil(width), math.ceil(height)


def _pixels(length: str) -> float:
    """A length in pixels; 0 for one that depends on the page, such as `100%`, and for no length."""
    found = _LENGTH.fullmatch(length[:64])
    return float(found[1]) * _PIXELS[found[2] or "px"] if found else 0.0
