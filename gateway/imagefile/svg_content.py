"""What in an SVG a browser could run or load, if it opened the file by itself.

A report for operators, not a filter: the gateway hands out every SVG in such a way that nothing in
it runs or loads (`docs/security.md`). It looks for what could be active, so it may name a kind that
a given browser ignores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

ACTIVE: Final = ("script", "references", "foreign-content")
"""`script`: script elements, event handlers, `javascript:` URLs. `references`: links, and images,
styles and fonts of other addresses. `foreign-content`: HTML and other documents within the SVG."""

SCRIPT, REFERENCES, FOREIGN = ACTIVE

_MAX_STYLE: Final = 128 << 10
"""Characters of a style sheet that are searched at once."""
_OVERLAP: Final = 64
"""Characters that are searched again with the next part of a style sheet."""
_MAX_VALUE: Final = 64 << 10
"""Characters of a value that are searched. Only a `data:` URL can be longer."""

_MAX_ESCAPES: Final = 10_000
"""Of all styles and values. One with more hides something: no program writes so many."""

_FOREIGN_ELEMENTS: Final = frozenset(
    {*("foreignobject", "iframe", "embed", "object", "html", "body", "audio", "video"), "canvas"}
)
_URL_ATTRIBUTES: Final = frozenset({"href", "src", "srcset", "action", "formaction", "base"})
_SUSPECT: Final = re.compile(r"[:@\\]|url|src|image", re.IGNORECASE)
"""In a value that needs a closer look. Most have none of it, and there are very many."""
_BLANKS: Final = re.compile(r"[\x00-\x20]+")
_RASTER: Final = re.compile(r"data:(?:image/(?:png|jpe?g|gif|webp|avif)|(?:application/)?font)")
_CSS_ESCAPE: Final = re.compile(r"\\(?:([0-9a-fA-F]{1,6})\s?|(.))", re.DOTALL)
_CSS_REFERENCE: Final = re.compile(
    r"@import|-moz-binding|(?:url|src)\(['\"]?(?!['\"]?(?:#|data:))|image(?:-set)?\("
)


class Content:
    """Collects the kinds of active content while an SVG is parsed."""

    def __init__(self) -> None:
        self._found: set[str] = set()
        self._styles = 0
        """Open style elements."""
        self._style: list[str] = []
        self._style_length = 0
        self._escapes = 0

    @property
    def active(self) -> tuple[str, ...]:
        """Those of `ACTIVE` that the SVG has."""
        return tuple(kind for kind in ACTIVE if kind in self._found)

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        """Looks at an element."""
        local = _local(name)
        if local == "script":
            self._found.add(SCRIPT)
        elif local in _FOREIGN_ELEMENTS:
            self._found.add(FOREIGN)
        elif local == "style":
            self._styles += 1
        for attribute, value in attributes.items():
            self._attribute(_local(attribute), value)

    def end(self, name: str) -> None:
        """Looks at the style sheet of an element that ends."""
        if _local(name) == "style":
            self._styles -= 1
            self._search_style()

    def text(self, text: str) -> None:
        """Collects the text of style sheets."""
        if self._styles:
            self._style.append(text)
            self._style_length += len(text)
            if self._style_length > _MAX_STYLE:
                self._search_style()

    def instruction(self, target: str, data: str) -> None:
        """Looks at a processing instruction: a style sheet is a reference."""
        if target.lower() == "xml-stylesheet":
            self._found.add(REFERENCES)

    def _attribute(self, name: str, value: str) -> None:
        if name.startswith("on"):
            self._found.add(SCRIPT)
        elif name in _URL_ATTRIBUTES:
            self._url(value)
        elif _SUSPECT.search(value):
            value = value[:_MAX_VALUE]
            if "script:" in _squeezed(value):  # an animation can set a link
                self._found.add(SCRIPT)
            self._css(value)

    def _url(self, value: str) -> None:
        url = _squeezed(value[:_MAX_VALUE])
        if url.startswith("#") or not url or _RASTER.match(url):
            return
        if url.startswith(("javascript:", "vbscript:")):
            self._found.add(SCRIPT)
        else:
            self._found.add(FOREIGN if url.startswith("data:") else REFERENCES)

    def _search_style(self) -> None:
        style = "".join(self._style)
        self._css(style)
        self._style = [style[-_OVERLAP:]]
        self._style_length = len(self._style[0])

    def _css(self, text: str) -> None:
        if "\\" in text:
            self._escapes += text.count("\\")
            if self._escapes > _MAX_ESCAPES:
                self._found.add(REFERENCES)
                return
            text = _CSS_ESCAPE.sub(_unescaped, text)
        if _CSS_REFERENCE.search(_squeezed(text)):
            self._found.add(REFERENCES)


@lru_cache(maxsize=1024)
def _local(name: str) -> str:
    """The name without its prefix. The prefix may be any, so it is not looked at."""
    return name.rpartition(":")[2].lower()


def _squeezed(text: str) -> str:
    return _BLANKS.sub("", text).lower()


def _unescaped(escape: re.Match[str]) -> str:
    if escape[1] is None:
        return escape[2] or ""
    code = int(escape[1], 16)
    return chr(code) if 0 < code < 0x110000 else "\ufffd"
