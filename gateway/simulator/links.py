"""Links to images, like those of the storage behind the real API.

A link has a signature in its query that the client must send back byte for byte. It expires, and
`server` refuses a request that carries an Authorization header.
"""

from __future__ import annotations

import base64
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from gateway.imagefile.check import MEDIA_TYPES, detect_format

LINK_SECONDS: Final = 3600
_MAX_FILES: Final = 256


@dataclass(frozen=True, slots=True)
class LinkedFile:
    """An image behind a link."""

    data: bytes
    media_type: str
    query: str
    """Exactly as in the link, with its escapes."""
    expires_at: float
    """Unix seconds."""


class Links:
    """The newest images that were answered as links."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, LinkedFile] = OrderedDict()

    def add(self, data: bytes, *, created: float, ttl_seconds: float) -> str:
        """Keeps an image and returns the path and query of its link."""
        kind = detect_format(data) or "png"
        name = f"img-{_word(24)}.{kind}"
        expires_at = created + ttl_seconds
        query = _signed_query(MEDIA_TYPES[kind], start=created - LINK_SECONDS, end=expires_at)
        self._files[name] = LinkedFile(data, MEDIA_TYPES[kind], query, expires_at)
        if len(self._files) > _MAX_FILES:
            self._files.popitem(last=False)
        return f"/_sim/files/{name}?{query}"

    def open(self, name: str, query: str, *, now: float) -> LinkedFile | None:
        """The image; None for a link that is unknown, changed or expired."""
        file = self._files.get(name)
        if file is None or file.query != query or now >= file.expires_at:
            return None
        return file


def _word(length: int) -> str:
    alphabet = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _signed_query(media_type: str, *, start: float, end: float) -> str:
    # The fixed first bytes put a plus and a slash into the base64, and so escapes into the link.
    signature = base64.b64encode(b"\xfb\xff\xbf" + secrets.token_bytes(29)).decode()
    return (
        f"st={quote(_iso_time(start), safe='')}&se={quote(_iso_time(end), safe='')}&sp=r"
        f"&sv=2024-08-04&sr=b&rscd=inline&rsct={media_type}"
        f"&skv=2024-08-04&sig={quote(signature, safe='')}"
    )


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def denied_page() -> str:
    """The body of the storage's 403."""
    return (
        '<?xml version="1.0" encoding="utf-8"?><Error><Code>AuthenticationFailed</Code>'
        "<Message>Server failed to authenticate the request. Make sure the value of "
        "Authorization header is formed correctly including the signature.</Message></Error>"
    )
