"""Fetches the images that upstream only gave links to, and goes nowhere else (CONTRACT §7).

What a link may be and where it may lead is `guard`; whether the bytes are an image is for the
caller to check. Every connection, of a name or an address, of the first link or a redirect, opens
its socket in one place, and that place sees the very address that will be connected to: nothing is
looked up between the judgement and the connection, so a name cannot change its mind in between.
For the same reason there is no proxy here: behind one, somebody else would choose the address.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver
from pydantic import BaseModel, ConfigDict, Field, field_validator
from yarl import URL

from gateway import __version__
from gateway.net.guard import (
    AddressPolicy,
    AllowList,
    Link,
    LinkBlocked,
    follow,
    parse_allow_list,
    parse_link,
)
from gateway.net.tls import create_tls

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_HEADERS: Final = {
    "Accept-Encoding": "identity",  # images do not shrink, and what unpacks may explode
    "User-Agent": f"image-gateway/{__version__}",
}

log = structlog.get_logger(__name__)


class RehostSettings(BaseModel):
    """Where images may be fetched from, and how much of them we take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream_url: str
    """Upstream's base URL: its host and port are allowed."""
    allow: tuple[str, ...] = ()
    """Hosts, `host:port`, addresses and networks that are allowed though private or plain http."""
    max_bytes: int = Field(gt=0)
    """Of one image."""
    timeout_seconds: float = Field(default=60, gt=0)
    """For one image, with all its redirects."""
    max_redirects: int = Field(default=5, ge=0)
    ca_file: Path | None = None
    """Authorities to be trusted beside the system's, in PEM."""

    @field_validator("upstream_url")
    @classmethod
    def _names_a_host(cls, value: str) -> str:
        parse_allow_list([_place_of(value)])
        return value

    @field_validator("allow")
    @classmethod
    def _is_understood(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_allow_list(value)
        return value

    @property
    def guard(self) -> AllowList:
        """What is allowed beside public addresses over https."""
        return parse_allow_list([_place_of(self.upstream_url), *self.allow])


def _place_of(base_url: str) -> str:
    """A base URL's `host:port`, as links write it."""
    url = URL(base_url)
    return f"{(url.host_subcomponent or '').rstrip('.')}:{url.port}"


def _tell_nobody(_outcome: str) -> None:
    """An observer for those who do not count."""


@asynccontextmanager
async def open_link_fetcher(
    settings: RehostSettings,
    *,
    observer: Callable[[str], None] = _tell_nobody,
    resolver: AbstractResolver | None = None,
) -> AsyncIterator[LinkFetcher]:
    """The one fetcher of a process, with its pools; closes every connection at the end.

    `observer` is told how each fetch ended: `fetched`, or the reason of its `LinkRefused`.
    `resolver` looks names up; None: as the system does. Raises `OSError` for a bad `ca_file`.
    """
    tls = await asyncio.to_thread(create_tls, settings.ca_file)
    async with AsyncExitStack() as stack:
        sessions = {}
        for address_policy in AddressPolicy:
            session = _open_session(settings.guard, address_policy, tls=tls, resolver=resolver)
            sessions[address_policy] = await stack.enter_async_context(session)
        yield LinkFetcher(sessions, settings, observer=observer)


class LinkFetcher:
    """Fetches images by their links."""

    def __init__(
        self,
        sessions: Mapping[AddressPolicy, aiohttp.ClientSession],
        settings: RehostSettings,
        *,
        observer: Callable[[str], None],
    ) -> None:
        self._sessions = sessions
        self._settings = settings
        self._guard = settings.guard
        self._observer = observer

    async def fetch(self, url: str) -> bytes:
        """What lies behind a link; whether it is an image is not checked. Raises `LinkRefused`."""
        try:
            body = await self._fetch_in_time(parse_link(url))
        except LinkBlocked as refused:
            log.warning("image_link_refused", reason=refused.reason, host=refused.host)
            self._observer(refused.reason)
            raise
        self._observer("fetched")
        return body

    async def _fetch_in_time(self, link: Link) -> bytes:
        try:
            async with asyncio.timeout(self._settings.timeout_seconds):
                return await self._follow(link)
        except TimeoutError:
            raise LinkBlocked("timeout", host=link.host.name) from None

    async def _follow(self, link: Link) -> bytes:
        """Goes from redirect to redirect; each is judged like the first link."""
        for _ in range(self._settings.max_redirects + 1):
            try:
                found = await self._get(link)
                if isinstance(found, bytes):
                    return found
                link = follow(link, found)
            except LinkBlocked as refused:
                refused.host = link.host.name
                raise
        raise LinkBlocked("redirects", host=link.host.name)

    async def _get(self, link: Link) -> bytes | str:
        """The body, or where a redirect says it lies."""
        session = self._sessions[self._guard.policy_for(link)]
        url = URL(link.url, encoded=True)  # else a signature would be spelled anew
        try:
            async with session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                return await self._receive(response)
        except (aiohttp.ClientError, OSError) as error:
            _refuse(error)

    async def _receive(self, response: aiohttp.ClientResponse) -> bytes:
        _check_head(response)
        limit = self._settings.max_bytes
        if (response.content_length or 0) > limit:
            raise LinkBlocked("too_large")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise LinkBlocked("too_large")
        return bytes(body)


def _check_head(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        raise LinkBlocked("status")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise LinkBlocked("encoding")
    kind = response.content_type.lower()
    if kind.startswith("text/") or kind.endswith(("/json", "+json", "/xml", "+xml")):
        raise LinkBlocked("type")


def _refuse(error: Exception) -> NoReturn:
    """Turns the network's errors into ours."""
    if isinstance(error, TimeoutError):
        raise LinkBlocked("timeout") from None
    if isinstance(error, aiohttp.ClientPayloadError):
        raise LinkBlocked("cut") from None
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, _Forbidden):
        raise LinkBlocked("address") from None
    raise LinkBlocked("unreachable") from None


# ── the one place where sockets are opened ──────────────────────────────────────────────────


class _Forbidden(OSError):
    """A connection that is not made; an `OSError`, so that aiohttp tries the next address."""


def _open_session(
    guard: AllowList,
    address_policy: AddressPolicy,
    *,
    tls: ssl.SSLContext | bool,
    resolver: AbstractResolver | None,
) -> aiohttp.ClientSession:
    """A session that connects to nothing but what `reach` allows, and brings nothing along.

    One for each reach: none finds a connection in its pool that it could not have made itself.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,
            resolver=resolver,
            use_dns_cache=False,
            socket_factory=_guarded_socket(guard, address_policy),
            ssl=tls,
        ),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        timeout=aiohttp.ClientTimeout(total=None),  # the deadline is ours
        trust_env=False,
    )


def _guarded_socket(guard: AllowList, address_policy: AddressPolicy) -> aiohttp.SocketFactoryType:
    """What aiohttp calls with each address just before it connects to it.

    Also for an address that stood in the link, which no resolver ever sees.
    """

    def open_socket(place: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = place
        if not guard.allows_numeric(str(address[0]), address_policy):
            raise _Forbidden("not an address that images are fetched from")
        return socket.socket(family, kind, protocol)

    return open_socket
