"""Fetches the images that upstream delivers as links, only from allowed addresses.

Which links and addresses are allowed is `net.guard`, see
`docs/reference/cache.md#fetching-images-behind-links`. Whether the bytes are an image is checked by
the caller. Sockets are opened in one place, which sees the very address that is connected to, for
names, addresses and redirects alike. No proxy is used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

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
    Reason,
    follow,
    parse_allow_list,
    parse_link,
)
from gateway.net.guarded_sockets import AddressBlocked, socket_factory
from gateway.net.tls import create_tls
from gateway.redaction import Redactor
from gateway.trace_context import NO_TRACE_CONTEXT, TraceContext
from gateway.tracing import NO_TRACER, HttpSpan, Tracer
from gateway.upstream.connection import Connector

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_HEADERS: Final = {
    "Accept-Encoding": "identity",  # images hardly shrink, and may be decompression bombs
    "User-Agent": f"image-gateway/{__version__}",
}

log = structlog.get_logger(__name__)


class FetchSettings(BaseModel):
    """The allowed addresses, and the bounds of one fetch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream_url: str
    """Upstream's base URL. Its host and port are always allowed."""
    more_upstream_urls: tuple[str, ...] = ()
    """The same of further accounts."""
    allow: tuple[str, ...] = ()
    """Hosts, `host:port`, addresses and networks, also private ones and over plain http."""
    max_bytes: int = Field(gt=0)
    """Of one image."""
    timeout_seconds: float = Field(default=60, gt=0)
    """For one image, including redirects."""
    max_redirects: int = Field(default=5, ge=0)
    ca_file: Path | None = None
    """Certificate authorities in PEM that are trusted in addition to the system's."""
    more_ca_files: tuple[Path, ...] = ()
    """The same of further accounts."""

    secrets: tuple[str, ...] = Field(default=(), repr=False)
    """Redacted in the log, where a link's host is shown."""

    @field_validator("upstream_url")
    @classmethod
    def _names_a_host(cls, value: str) -> str:
        parse_allow_list([_host_and_port(value)])
        return value

    @field_validator("allow")
    @classmethod
    def _is_valid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        parse_allow_list(value)
        return value

    @property
    def allow_list(self) -> AllowList:
        """The hosts and networks that are allowed beside public addresses over https."""
        urls = (self.upstream_url, *self.more_upstream_urls)
        return parse_allow_list([*map(_host_and_port, urls), *self.allow])


def _host_and_port(base_url: str) -> str:
    """The `host:port` of a base URL, as in links."""
    url = URL(base_url)
    return f"{(url.host_subcomponent or '').rstrip('.')}:{url.port}"


@asynccontextmanager
async def open_link_fetcher(
    settings: FetchSettings,
    *,
    observer: Callable[[str], None] = lambda outcome: None,
    tracer: Tracer = NO_TRACER,
    resolver: AbstractResolver | None = None,
) -> AsyncIterator[LinkFetcher]:
    """The fetcher of a process, with its connection pools, which are closed on exit.

    `observer` is called with the outcome of each fetch: `fetched`, or the reason of `LinkBlocked`.
    `resolver` is by default the system's. Raises `OSError` for a bad `ca_file`.
    """
    tls = await asyncio.to_thread(
        create_tls, settings.ca_file, *settings.more_ca_files
    )  # reads files
    async with AsyncExitStack() as stack:
        sessions = {}
        # A session for each policy, because a pooled connection is reused without a check.
        for address_policy in AddressPolicy:
            session = _open_session(settings.allow_list, address_policy, tls=tls, resolver=resolver)
            sessions[address_policy] = await stack.enter_async_context(session)
        yield LinkFetcher(sessions, settings, observer=observer, tracer=tracer)


class LinkFetcher:
    """Fetches images by their links."""

    def __init__(
        self,
        sessions: Mapping[AddressPolicy, aiohttp.ClientSession],
        settings: FetchSettings,
        *,
        observer: Callable[[str], None],
        tracer: Tracer,
    ) -> None:
        self._sessions = sessions
        self._settings = settings
        self._allow_list = settings.allow_list
        self._redactor = Redactor(settings.secrets)
        self._observer = observer
        self._tracer = tracer

    async def fetch(self, url: str, *, trace: TraceContext = NO_TRACE_CONTEXT) -> bytes:
        """The bytes behind a link, which need not be an image. Raises `LinkBlocked`."""
        try:
            link = parse_link(url)
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    body = await self._follow(link, trace)
            except TimeoutError:
                raise LinkBlocked("timeout", host=link.host.name) from None
        except LinkBlocked as blocked:
            host = self._redactor.text(blocked.host or "") or None
            log.warning("image_link_blocked", reason=blocked.reason, host=host)
            self._observer(blocked.reason)
            raise LinkBlocked(blocked.reason, host=host) from None
        self._observer("fetched")
        return body

    async def _follow(self, link: Link, trace: TraceContext) -> bytes:
        """Follows redirects; each target is checked like the first link."""
        for resends in range(self._settings.max_redirects + 1):
            try:
                # Without the path: it may contain a signature too.
                origin = str(URL(link.url, encoded=True).origin())
                with self._tracer.http_request(
                    trace, "GET", f"{origin}/***", resends=resends
                ) as span:
                    found = await self._get(link, span)
                if isinstance(found, bytes):
                    return found
                link = follow(link, found)
            except LinkBlocked as blocked:
                blocked.host = link.host.name
                raise
        raise LinkBlocked("redirects", host=link.host.name)

    async def _get(self, link: Link, span: HttpSpan) -> bytes | str:
        """The body, or the `Location` of a redirect."""
        session = self._sessions[self._allow_list.policy_for(link)]
        url = URL(link.url, encoded=True)  # keeps the encoding, which a signature may cover
        try:
            async with session.get(url, allow_redirects=False) as response:
                span.answered(response.status)
                if response.status in _REDIRECTS and "Location" in response.headers:
                    return response.headers["Location"]
                return await self._receive(response)
        except (aiohttp.ClientError, OSError) as error:
            raise LinkBlocked(_reason_of(error)) from None

    async def _receive(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise LinkBlocked("status")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise LinkBlocked("encoding")
        if _is_no_image(response.content_type.lower()):
            raise LinkBlocked("type")
        limit = self._settings.max_bytes
        # Before the body is read; the check below is for bodies without a length.
        if (response.content_length or 0) > limit:
            raise LinkBlocked("too_large")
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                raise LinkBlocked("too_large")
        return bytes(body)


def _is_no_image(media_type: str) -> bool:
    """Whether a page or an error was answered. Some storages call every file `octet-stream`."""
    if media_type == "image/svg+xml":
        return False
    is_data = media_type.endswith(("/json", "+json", "/xml", "+xml"))
    return is_data or media_type.startswith("text/")


def _reason_of(error: Exception) -> Reason:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "cut"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(
        error.os_error, AddressBlocked
    ):
        return "address"
    return "unreachable"


# ── connections ─────────────────────────────────────────────────────────────────────────────


def _open_session(
    allow_list: AllowList,
    address_policy: AddressPolicy,
    *,
    tls: ssl.SSLContext | bool,
    resolver: AbstractResolver | None,
) -> aiohttp.ClientSession:
    """A session that connects only to addresses of the policy, and sends no credentials."""
    return aiohttp.ClientSession(
        connector=Connector(
            limit=0,
            resolver=resolver,
            use_dns_cache=False,
            socket_factory=socket_factory(allow_list, address_policy),
            ssl=tls,
        ),
        # A small compressed body could expand without end. `_receive` refuses compressed ones.
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        timeout=aiohttp.ClientTimeout(total=None),  # `fetch` has its own
        # No proxy of the environment: it would choose the address.
        trust_env=False,
    )
