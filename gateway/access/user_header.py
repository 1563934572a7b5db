"""The header that names the end user of a key's requests, as Open WebUI's does.

It is trusted: every holder of the key can send any value. It reaches the ledger and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from gateway.errors import MAX_ECHO

MAX_NAME: Final = 64

_TOKEN: Final = re.compile(rf"[!#$%&'*+.^_`|~0-9A-Za-z-]{{1,{MAX_NAME}}}")
"""A field name of RFC 9110 §5.1."""

_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "trailers"),
        *("transfer-encoding", "upgrade", "content-length", "host", "expect"),
    }
)
"""Headers of one connection (RFC 9110 §7.6.1), and those of the message's form."""

_SECRET_WORDS: Final = frozenset(
    {
        *("authorization", "authenticate", "authentication", "cookie", "credential"),
        *("credentials", "token", "secret", "password", "passwd", "jwt", "assertion"),
        *("apikey", "key", "signature"),
    }
)
"""Parts of the names of headers that carry credentials. The ledger must never have one."""


def parse_user_header(name: str) -> str:
    """A header's name that may be trusted for `user`. Raises `ValueError` with a sentence."""
    shown = name[:MAX_ECHO]
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(
            f"Invalid 'user_header': expected a header's name of at most {MAX_NAME} characters "
            f"such as X-OpenWebUI-User-Email, but got '{shown}'."
        )
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise ValueError(f"Invalid 'user_header': '{shown}' is a header of the connection.")
    if not _SECRET_WORDS.isdisjoint(re.split(r"[-_.]", lower)):
        raise ValueError(
            f"Invalid 'user_header': '{shown}' carries a credential, which does not belong in the "
            "ledger."
        )
    if lower.startswith("x-gateway-"):
        raise ValueError(
            f"Invalid 'user_header': '{shown}' begins with X-Gateway-, as the gateway's own "
            "headers do. Use a name such as X-User-Email."
        )
    return name


def read_user_header(name: str, headers: Iterable[tuple[str, str]]) -> str | None:
    """The header's value; None if there is none, or if it is empty."""
    lower = name.lower()
    values = [value for given, value in headers if given.lower() == lower]
    if not values:
        return None
    # Of several the last one: the client's proxy appends its own behind what it was sent. Bytes
    # that are not UTF-8 arrive as lone surrogates, which no JSON can have.
    text = values[-1].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.strip() or None
