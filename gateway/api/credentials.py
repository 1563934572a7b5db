"""Where a request carries its secret: `docs/reference/headers.md#requests-of-clients`.

`Authorization: Bearer`, else `api-key`. API paths also read Basic, whose password is the key. A
browser remembers a Basic sign-in and adds it to requests of any page, so a page of another origin
could spend money without knowing the key. Such requests are refused.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Final

from aiohttp import hdrs, web

from gateway.api.origin import is_own_origin
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError

BASIC: Final = "basic"

_OTHER_HEADERS: Final = (
    *("x-api-key", "x-goog-api-key", "x-auth-token", "x-access-token", "openai-api-key"),
    *("ocp-apim-subscription-key", "proxy-authorization"),
)
"""Headers that other services read keys from. This gateway does not."""

_QUERY_NAMES: Final = ("api-key", "api_key", "apikey", "key", "access_token", "token")

_USE_BEARER: Final = "send the key as Authorization: Bearer YOUR_KEY."


def read_credential(headers: Mapping[str, str]) -> str:
    """The secret of `Authorization: Bearer …`, else of `api-key`; empty if there is none."""
    scheme, secret = _authorization(headers)
    if scheme == "bearer" and secret:
        return secret
    return headers.get("api-key", "").strip()


def read_basic(request: web.Request) -> str:
    """The password of `Authorization: Basic …`; empty if there is none. The user is ignored.

    Raises 403 for a request of a page of another origin, whether the password is right or not.
    """
    scheme, encoded = _authorization(request.headers)
    if scheme != BASIC:
        return ""
    if _is_of_another_origin(request):
        raise GatewayError(
            "Basic authentication is not accepted from a page of another origin, because a browser "
            "adds a remembered password to requests of any page. Send your key in the "
            "Authorization header using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            type=INVALID_REQUEST,
            code=ErrorCode.CROSS_ORIGIN_BASIC,
        )
    try:
        pair = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return ""
    # Bytes that are not UTF-8 are no key. They become what aiohttp makes of them in a header.
    return pair.partition(b":")[2].decode("utf-8", "surrogateescape").strip()


def explain_missing_key(request: web.Request) -> str:
    """What to change in a request whose key is not where the gateway reads it, or empty.

    Quotes nothing of the request: any of it may be the key.
    """
    scheme, secret = _authorization(request.headers)
    if scheme == "bearer":
        return " The Authorization header of your request has Bearer, but no key behind it."
    if scheme == BASIC:
        return " The Basic credentials of your request have no password: encode 'any:YOUR_KEY'."
    if scheme:
        problem = "another scheme than Bearer" if secret else "no scheme"
        return f" The Authorization header of your request has {problem}: write 'Bearer YOUR_KEY'."
    for name in _OTHER_HEADERS:
        if name in request.headers:
            return f" The header {name} of your request is not read: {_USE_BEARER}"
    if any(name in request.query for name in _QUERY_NAMES):
        return (
            " A key in the query is not read, and may have been logged on its way: have it "
            f"replaced. {_USE_BEARER[0].upper()}{_USE_BEARER[1:]}"
        )
    return ""


def _authorization(headers: Mapping[str, str]) -> tuple[str, str]:
    """The scheme in lower case, and what follows."""
    scheme, _, secret = headers.get(hdrs.AUTHORIZATION, "").strip().partition(" ")
    return scheme.lower(), secret.strip()


def _is_of_another_origin(request: web.Request) -> bool:
    sites = request.headers.getall("Sec-Fetch-Site", ())
    if sites:
        return any(site not in ("none", "same-origin") for site in sites)
    # Over plain HTTP browsers send that header only to their own machine, and old ones never do.
    # But they name the page's origin with every POST.
    origin = request.headers.get(hdrs.ORIGIN)
    return origin is not None and not is_own_origin(request, origin)
