"""CORS: which pages of other origins may read answers, and the answers to their preflights.

Only API paths and links to images are covered, never operators' paths, and never with credentials
of the browser: `docs/reference/headers.md#pages-of-other-origins`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, MutableMapping
from typing import Final

from aiohttp import hdrs, web

API_FOLDERS: Final = frozenset({"v1", "openai", "deployments", "images", "models", "usage"})
"""First parts of the paths of the API, with and without `/v1`, and of links to images."""

ADMIN_FOLDER: Final = ("v1", "organization")
"""Reports that the admin token opens."""

EXPOSED: Final = (
    *("x-request-id", "openai-processing-ms", "openai-version", hdrs.SERVER, hdrs.DATE),
    *("Cache-Status", hdrs.AGE, "x-gateway-image-ids"),
    *("x-gateway-cost-usd", "x-gateway-reserved-usd", "x-gateway-saved-usd"),
    *("x-gateway-model", "x-gateway-model-retires", "x-gateway-upstream", "x-gateway-notice"),
    *("x-gateway-queue", "x-gateway-hint", "x-gateway-error-source"),
    *("idempotent-replayed", "Preference-Applied"),
    *(f"x-ratelimit-limit-{unit}" for unit in ("requests", "images", "tokens")),
    *(f"x-ratelimit-remaining-{unit}" for unit in ("requests", "images", "tokens")),
    *(f"x-ratelimit-reset-{unit}" for unit in ("requests", "images", "tokens")),
    *(hdrs.RETRY_AFTER, "retry-after-ms", "x-should-retry"),
    *(hdrs.WWW_AUTHENTICATE, hdrs.ALLOW, hdrs.ACCEPT_ENCODING),
    *(hdrs.ETAG, hdrs.ACCEPT_RANGES, hdrs.CONTENT_RANGE, "Content-Disposition"),
)
"""Headers of answers that scripts may read. Those of one answer that are missing here are added
to it, so that a new header is never hidden."""

_UNEXPOSED: Final = frozenset(
    {
        # Scripts can read these in any case (CORS-safelisted response headers).
        *("cache-control", "content-length", "content-type"),
        # These are about the connection, or for the browser itself.
        *("connection", "transfer-encoding", "vary", "x-accel-buffering"),
        *("access-control-allow-origin", "access-control-allow-methods", "access-control-max-age"),
        *("access-control-allow-headers", "access-control-allow-private-network"),
        "x-content-type-options",
        *("content-security-policy", "cross-origin-resource-policy", "referrer-policy"),
    }
)
_KNOWN: Final = _UNEXPOSED | {name.lower() for name in EXPOSED}
_EXPOSED_LIST: Final = ", ".join(EXPOSED)

METHODS: Final = "GET, HEAD, POST, OPTIONS"
MAX_AGE_SECONDS: Final = 86_400
"""How long a browser may remember a preflight; most remember it for two hours at most."""

MAX_REQUEST_HEADERS: Final = 4096
"""Characters of `Access-Control-Request-Headers` that are repeated."""

DEFAULT_REQUEST_HEADERS: Final = "authorization, content-type, api-key, idempotency-key"
"""What a preflight allows that asks for no headers, or for something that is no list of them."""

_NAMES: Final = re.compile(r"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*|$))+")
_FIRST_LINE: Final = re.compile(rb"[!-~]+ ([!-~]+) HTTP/1\.[01]\r?\n")
_ORIGIN_LINE: Final = re.compile(rb"(?i:\norigin):[ \t]*([!-~]+)[ \t]*\r?\n")


class Cors:
    """The allowed origins of one address of the gateway. Without any, CORS is off."""

    def __init__(self, origins: Collection[str] = ()) -> None:
        self._origins = frozenset(origins)

    @property
    def is_on(self) -> bool:
        """Whether any origin is allowed."""
        return bool(self._origins)

    def add_headers(
        self, target: str, origin: str | None, headers: MutableMapping[str, str]
    ) -> None:
        """Adds to the headers of an answer what the page's browser needs to show it."""
        if not self._origins or not is_covered(target):
            return
        # Also without an origin: an answer that a browser keeps may be used for any page.
        vary = headers.get(hdrs.VARY)
        headers[hdrs.VARY] = f"{vary}, Origin" if vary else "Origin"
        if origin not in self._origins or origin is None:
            return
        others = [name for name in headers if name.lower() not in _KNOWN]
        headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join([_EXPOSED_LIST, *others])

    def add_to_unread(self, head: bytes, headers: MutableMapping[str, str]) -> None:
        """As `add_headers`, for the answer to a head that is not parsed, and may be malformed."""
        if not self._origins:
            return
        lines = head.partition(b"\r\n\r\n")[0] + b"\r\n"
        first, origin = _FIRST_LINE.match(lines), _ORIGIN_LINE.search(lines)
        if first is not None:
            shown = origin[1].decode() if origin is not None else None
            self.add_headers(first[1].decode(), shown, headers)

    def preflight_headers(self, request: web.BaseRequest) -> Mapping[str, str] | None:
        """The headers that answer a preflight of an allowed origin; None if it is none."""
        asked = request.headers
        if (
            request.method != hdrs.METH_OPTIONS
            or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in asked
            or asked.get(hdrs.ORIGIN) not in self._origins
            or not is_covered(request.path)
        ):
            return None
        names = ", ".join(asked.getall(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, ()))
        is_list = len(names) <= MAX_REQUEST_HEADERS and _NAMES.fullmatch(names.strip(" \t"))
        headers: dict[str, str] = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: names if is_list else DEFAULT_REQUEST_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE_SECONDS),
        }
        # The operator named this origin, so it may also reach a gateway in a private network.
        if asked.get("Access-Control-Request-Private-Network") == "true":
            headers["Access-Control-Allow-Private-Network"] = "true"
        return headers


CORS: Final = web.AppKey("cors", Cors)


def is_covered(target: str) -> bool:
    """Whether this path, or this target of a request, belongs to the API or is a link."""
    if not target.startswith("/"):  # the absolute form, RFC 9112 §3.2.2
        target = "/" + target.partition("://")[2].partition("/")[2]
    # The first two parts are enough, and links are long.
    parts = [part for part in target.partition("?")[0][:256].split("/") if part][:2]
    return bool(parts) and parts[0] in API_FOLDERS and tuple(parts) != ADMIN_FOLDER
