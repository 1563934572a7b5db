"""The origin at which a client reaches the gateway, as far as it is known behind proxies."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from gateway.api.exchange import EXCHANGE
from gateway.api.http.host import requested_host
from gateway.api.services import SERVICES

_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def public_url(request: web.Request) -> str:
    """The scheme and host of URLs in an answer, without a slash at the end."""
    settings, proxy_scheme = request.app[SERVICES].settings, request[EXCHANGE].client_scheme
    # Behind a proxy that says how the client came, the address that this gateway listens on is not
    # the one at which clients reach it.
    if proxy_scheme is not None and not settings.is_public_url_set:
        return f"{proxy_scheme}://{requested_host(request)}"
    # A gateway on a wildcard address does not know the address at which clients reach it.
    return settings.public_url or f"{request.scheme}://{requested_host(request)}"


def is_https(request: web.Request) -> bool:
    """Whether the client uses TLS, up to a proxy at least."""
    if (scheme := request[EXCHANGE].client_scheme) is not None:
        return scheme == "https"
    return request.secure


def is_own_origin(request: web.Request, origin: str) -> bool:
    """Whether this is the origin at which the client reaches the gateway."""
    settings = request.app[SERVICES].settings
    scheme, authority = _split(origin)
    if settings.is_public_url_set and settings.public_url is not None:
        # A proxy may have cut the port from the host, and with it what tells two servers apart.
        public_scheme, _, public = settings.public_url.lower().partition("://")
        return (scheme, authority) == _split(f"{public_scheme}://{public.partition('/')[0]}")
    return is_same_host(request, origin)


def is_same_host(request: web.Request, origin: str) -> bool:
    """Whether this origin has the host, with its port, that the request names."""
    scheme, authority = _split(origin)
    requested = requested_host(request).lower().removesuffix(_DEFAULT_PORTS.get(scheme, ""))
    # Behind a proxy with TLS, the scheme is not known unless it says so.
    known = request[EXCHANGE].client_scheme or ("https" if request.secure else None)
    return authority == requested and scheme in _DEFAULT_PORTS and known in (None, scheme)


def _split(origin: str) -> tuple[str, str]:
    """Scheme and host, without the port that the scheme has by default."""
    scheme, _, authority = origin.partition("://")
    return scheme, authority.removesuffix(_DEFAULT_PORTS.get(scheme, ""))
