"""Where the images of a 2xx are, if not in `data`: the body itself, or a list of another name.

If the row does not say so, such an answer is a failure that was charged, and the operator sees it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from gateway.imagefile.check import detect_format
from gateway.imagefile.svg import HEAD_BYTES
from gateway.images import UpstreamAnswer, UpstreamImage
from gateway.upstream.openai.answers import LONG_BASE64, Base64, extract_base64, long_text
from gateway.upstream.openai.foreign_json import load_object

_LINK: Final = re.compile(r"\s*https?://", re.IGNORECASE)

_LONG_TEXTS: Final = re.compile(rb"%b|[\[,]\s*%b" % (LONG_BASE64.pattern, long_text(b"")))
"""The start of base64 also as an element of a list."""


def read_image_file(
    body: bytes | bytearray, *, upstream_request_id: str | None
) -> UpstreamAnswer | None:
    """The answer whose body is one image; None if it does not begin like an image.

    By its first bytes, because services send `application/octet-stream` too. The image is checked
    like any other.
    """
    if detect_format(bytes(body[:HEAD_BYTES])) is None:
        return None
    return UpstreamAnswer(
        images=(UpstreamImage(data=bytes(body)),),
        usage=None,
        echoed={},
        upstream_request_id=upstream_request_id,
    )


def read_listed(body: bytes | bytearray, member: str) -> tuple[dict[str, Any], Base64]:
    """The document with the images of `member` as its `data`, and the base64 extracted from it.

    The elements are objects as OpenAI's, links, `data:` URLs or base64; a single one needs no list.
    A document that has no such member is unchanged: it may be an error.
    """
    shortened, extracted = extract_base64(body, starts=_LONG_TEXTS)
    document = load_object(shortened)
    listed = member_at(document, member)
    if listed is None:
        return document, extracted
    elements = listed if isinstance(listed, list) else [listed]
    return {**document, "data": [_element(element) for element in elements]}, extracted


def member_at(document: Any, path: str) -> Any:
    """The member at a path with dots; None if there is none."""
    for name in path.split("."):
        document = document.get(name) if isinstance(document, Mapping) else None
    return document


def _element(element: Any) -> Any:
    """An element as OpenAI has it."""
    if not isinstance(element, str):
        return element
    return {"url" if _LINK.match(element) else "b64_json": element}
