"""The settings of upstream, and the connection pool to it.

Purchases, retries and deadlines are `client`.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import aiohttp
import pybase64
from aiohttp import hdrs
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import StreamWriter
from multidict import CIMultiDict
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from yarl import URL

from gateway import __version__
from gateway.upstream.auth import Auth, in_header
from gateway.upstream.connection import Connection, Connector

_IDLE_CONNECTION_SECONDS: Final = 15.0
"""How long an idle connection stays open: shorter than at most servers and load balancers.

If upstream closes a connection just as a purchase is sent on it, the purchase looks cut off: it is
charged and not retried. A new connection costs only milliseconds.
"""

_KEEPALIVE_AFTER_SECONDS: Final = 60
"""Until the first TCP keep-alive. A NAT may drop a connection that is silent for minutes.

See `docs/reference/images-api.md#sizes-and-times`.
"""

MEBIBYTE: Final = 1024 * 1024

_READ_BUFFER_BYTES: Final = 128 * 1024
"""Per connection. aiohttp buffers at most twice as much before it stops reading."""

_PROXY_CONNECT_STEPS: Final = 3
"""Connecting to the proxy, its own connection to upstream, and TLS through it."""

_MIN_SECRET_LENGTH: Final = 8
"""Characters. A shorter header value would match ordinary text by chance."""


_BODY_HEADERS: Final = CIMultiDict({hdrs.CONTENT_TYPE: "application/json"})

_PARAMETER: Final = re.compile(r'=\s*"?([^";,\s]+)')


class ClientSettings(BaseModel):
    """The address of upstream, the connection to it, and the bounds of its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = ""
    """Of the account, for the log."""
    base_url: str
    """`https://host/v1` as in SDKs, with or without a trailing slash."""
    api_key: SecretStr
    timeout_seconds: float = Field(default=600, gt=0)
    """From the first attempt to the last byte, retries included."""
    connect_timeout_seconds: float = Field(default=5, gt=0)
    """For one TCP connection and its TLS handshake."""
    max_image_bytes: int = Field(default=64 * MEBIBYTE, gt=0)
    auth_header: str | None = None
    """`Authorization` carries `Bearer <key>`; a header of another name carries the key alone. None:
    the dialect says how the key is sent."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Further headers of every request to upstream."""
    secrets_of_others: tuple[SecretStr, ...] = ()
    """Secrets of other accounts, which this one might quote."""
    proxy: SecretStr | None = None
    """`http://host:port`, with or without user and password."""
    ca_file: Path | None = None
    """Certificate authorities in PEM that are trusted in addition to the system's."""
    breaker_failures: int = Field(default=5, ge=0)
    """Failed purchases in succession that open the circuit breaker; 0: it never opens."""
    breaker_open_seconds: float = Field(default=10, gt=0)

    @field_validator("base_url")
    @classmethod
    def _is_plain_http_address(cls, value: str) -> str:
        url = URL(value)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must start with http:// or https:// and name a host")
        if url.user is not None or url.password is not None:
            raise ValueError("must not contain a user or a password")
        url.host.encode("idna")  # as the resolver does; raises a ValueError
        return value

    @field_validator("api_key")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value().strip()  # a key read from a file ends in a newline
        if not secret or not all("!" <= character <= "~" for character in secret):
            raise ValueError("must be printable ASCII without spaces, and not empty")
        return SecretStr(secret)

    def sent_headers(self, auth: Auth) -> dict[str, str]:
        """The headers of every request to upstream, except those of HTTP itself.

        `auth` is how the dialect sends the key.
        """
        if self.auth_header is not None:
            auth = in_header(self.auth_header)
        return {
            auth.header: auth.value(self.api_key.get_secret_value()),
            "Content-Type": "application/json",
            "Accept": "application/json",
            # Base64 of a PNG hardly shrinks, see
            # `docs/reference/images-api.md#what-must-not-be-forwarded`.
            "Accept-Encoding": "identity",
            "User-Agent": f"image-gateway/{__version__}",
            **{name: value.get_secret_value() for name, value in self.headers.items()},
        }

    @property
    def secrets(self) -> list[str]:
        """Values that only upstream or the proxy may see: `relaying` redacts them.

        Some services quote the key that they reject, and some proxies all headers.
        """
        values = [value.get_secret_value() for value in self.headers.values()]
        # Without its scheme too, which a service quotes separately.
        values += [value.partition(" ")[2] for value in values]
        # Those of cookies and of `Token token=…`.
        values += [parameter for value in values for parameter in _PARAMETER.findall(value)]
        values += [user_and_password for value in values for user_and_password in _basic(value)]
        proxy = URL(self.proxy.get_secret_value()) if self.proxy is not None else URL()
        if proxy.password is not None:
            values += [proxy.password, f"{proxy.user}:{proxy.password}"]
        long = [value for value in values if len(value) >= _MIN_SECRET_LENGTH]
        others = [secret.get_secret_value() for secret in self.secrets_of_others]
        return [self.api_key.get_secret_value(), *long, *others]


def _basic(value: str) -> list[str]:
    """User and password, and the password, of the credentials of `Authorization: Basic`."""
    try:
        text = pybase64.b64decode(value, validate=True).decode()
    except ValueError:
        return []
    return [text, text.partition(":")[2]] if ":" in text else []


@dataclass(slots=True)
class SendState:
    """Whether upstream may be working on an attempt of this purchase right now."""

    is_sent: bool = False
    error: ErrorResponse | None = None
    """The error that upstream is answering with. Its status decides the charge, however much of its
    body comes."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A response that is not 2xx, with the chunks of its body so far."""

    status: int
    headers: Mapping[str, str]
    received_at: float
    """Unix seconds."""
    chunks: list[bytes] = field(default_factory=list)


class TrackedBody(aiohttp.Payload):
    """A request body that sets `SendState.is_sent` just before its first byte is written.

    Until then upstream cannot have charged for the purchase, because a request without its body
    orders nothing. The types of aiohttp's exceptions do not separate the two cases as reliably.
    """

    _autoclose = True  # nothing is open

    def __init__(self, body: bytes, state: SendState) -> None:
        # Without aiohttp's: it makes headers for each body, and the session has them.
        self._value, self._size, self._state = body, len(body), state

    @property
    def headers(self) -> CIMultiDict[str]:
        return _BODY_HEADERS

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return str(self._value, encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        connection = cast(Connection, cast(StreamWriter, writer).protocol)
        connection.expect_answer()
        self._state.is_sent = True
        # Without waiting until it is sent: upstream may answer before it has read the body.
        await cast(StreamWriter, writer).write(self._value, drain=False)


class Request(aiohttp.ClientRequest):
    """A request whose head and body are written at once.

    Before Python 3.12, aiohttp writes each body in a task of its own: 20 µs, and the request leaves
    one turn of the event loop later.
    """

    def update_headers(self, headers: Any) -> None:
        # As aiohttp, which adds the session's one by one and knows what `Host` is.
        if not isinstance(headers, CIMultiDict) or hdrs.HOST in headers:
            super().update_headers(headers)
            return
        self.headers = CIMultiDict({hdrs.HOST: self.url.host_port_subcomponent or ""})
        self.headers.extend(headers)

    def update_body_from_data(self, body: Any, _stacklevel: int = 3) -> None:
        if not isinstance(body, TrackedBody):
            super().update_body_from_data(body, _stacklevel)
            return
        self._body = body
        self.headers.setdefault(hdrs.CONTENT_LENGTH, str(body.size))

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        body, protocol = self._body, conn.protocol
        waits = protocol is None or protocol.writing_paused or self._continue is not None
        if protocol is None or waits or not isinstance(body, TrackedBody):
            return await super().send(conn)
        is_for_proxy = self.proxy and not self.is_ssl()
        target = str(self.url) if is_for_proxy else self.url.raw_path_qs
        writer = StreamWriter(protocol, self.loop)
        await writer.write_headers(f"{self.method} {target} HTTP/1.1", self.headers)
        await body.write(writer)
        writer.set_eof()
        protocol.start_timeout()
        return self.response_class(
            self.method,
            self.original_url,
            writer=None,
            continue100=None,
            timer=self._timer,
            request_info=self.request_info,
            traces=[],
            loop=self.loop,
            session=self._session,
            stream_writer=writer,
        )


def open_session(
    settings: ClientSettings, tls: ssl.SSLContext | bool, *, auth: Auth
) -> aiohttp.ClientSession:
    """A session that sends only the headers of `settings` and stores no cookies."""
    proxy = settings.proxy.get_secret_value() if settings.proxy else None
    return aiohttp.ClientSession(
        connector=Connector(
            limit=0,  # concurrency is a limit of keys, not of sockets
            keepalive_timeout=_IDLE_CONNECTION_SECONDS,
            socket_factory=_open_socket,
            ssl=tls,
        ),
        headers=settings.sent_headers(auth),
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BUFFER_BYTES,
        proxy=proxy,
        timeout=aiohttp.ClientTimeout(
            total=None,
            # Otherwise only the deadline would end the wait for a proxy that does not respond.
            connect=_PROXY_CONNECT_STEPS * settings.connect_timeout_seconds if proxy else None,
            sock_connect=settings.connect_timeout_seconds,
        ),
        trust_env=False,
        request_class=Request,
    )


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # missing on some systems, which use their own default
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEPALIVE_AFTER_SECONDS)
    return opened
