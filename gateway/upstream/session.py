"""The connection pool to upstream."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator
from yarl import URL

from gateway import __version__

_IDLE_CONNECTION_SECONDS: Final = 15.0
"""How long an idle connection is kept: shorter than servers and load balancers usually do.

A purchase sent on a connection that the other side is just closing looks like one that was cut
off: it is not sent again, and it is charged. A new connection costs milliseconds.
"""

_PROBE_AFTER_SECONDS: Final = 60
"""An image takes minutes of silence, in which a NAT forgets a connection (WIRE §8 row 5)."""

_MEBIBYTE: Final = 1024 * 1024

_READ_BYTES: Final = 128 * 1024
"""Of an answer, until it is taken up: twice as much waits at most, in each connection."""

_TUNNEL_STEPS: Final = 3
"""Through a proxy a connection is made in three steps: to it, by it, and TLS through it."""

_SHORTEST_SECRET: Final = 8
"""Characters. A shorter value of an extra header would be found in any text by chance."""


class ClientSettings(BaseModel):
    """Where the paid service is and how much of it we take."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    base_url: str
    """As an SDK takes it: `https://host/v1`, with or without a trailing slash."""
    api_key: SecretStr
    timeout_seconds: float = Field(default=600, gt=0)
    """From the first attempt to the last byte, retries included."""
    connect_timeout_seconds: float = Field(default=5, gt=0)
    """For one TCP connection and its TLS handshake."""
    max_image_bytes: int = Field(default=64 * _MEBIBYTE, gt=0)
    auth_header: str = "Authorization"
    """Carries the key: `Authorization` as `Bearer …`, any other name the key alone."""
    headers: Mapping[str, SecretStr] = Field(default_factory=dict)
    """Sent with every request, beside the client's own."""
    proxy: SecretStr | None = None
    """`http://host:port`, with or without user and password."""
    ca_file: Path | None = None
    """Authorities to be trusted beside the system's, in PEM."""
    breaker_failures: int = Field(default=5, ge=0)
    """Purchases in a row that open the circuit breaker; 0: it never opens."""
    breaker_open_seconds: float = Field(default=10, gt=0)

    @field_validator("base_url")
    @classmethod
    def _is_plain_http_address(cls, value: str) -> str:
        url = URL(value)
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("must start with http:// or https:// and name a host")
        if url.user is not None or url.password is not None:
            raise ValueError("must not contain a user or a password")
        url.host.encode("idna")  # what the resolver will do; raises a ValueError
        return value

    @field_validator("api_key")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr) -> SecretStr:
        secret = value.get_secret_value().strip()  # a key read from a file ends in a newline
        if not secret or not all("!" <= character <= "~" for character in secret):
            raise ValueError("must be printable ASCII without spaces, and not empty")
        return SecretStr(secret)

    @property
    def sent_headers(self) -> dict[str, str]:
        """Every header that a request is sent with, but for those of HTTP itself."""
        key = self.api_key.get_secret_value()
        is_bearer = self.auth_header.lower() == "authorization"
        return {
            self.auth_header: f"Bearer {key}" if is_bearer else key,
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # base64 of a PNG hardly shrinks (WIRE §8 row 2)
            "User-Agent": f"image-gateway/{__version__}",
            **{name: value.get_secret_value() for name, value in self.headers.items()},
        }

    @property
    def unspoken(self) -> list[bytes]:
        """What no error that is relayed may say, although upstream does."""
        values = [value.get_secret_value() for value in self.headers.values()]
        secrets = [value for value in values if len(value) >= _SHORTEST_SECRET]
        return [secret.encode() for secret in (self.api_key.get_secret_value(), *secrets)]

    @property
    def generations_url(self) -> URL:
        """Where images are asked for; a query of the base address (`api-version`) stays."""
        return self._url_of("/images/generations")

    @property
    def models_url(self) -> URL:
        """Where the models are listed: asking there costs nothing."""
        return self._url_of("/models")

    def _url_of(self, path: str) -> URL:
        base = URL(self.base_url)
        path = base.raw_path.rstrip("/") + path
        return base.with_path(path, encoded=True, keep_query=True)


@dataclass(slots=True)
class _Line:
    """Whether a request of this purchase may be under way right now."""

    is_sent: bool = False


class _Body(aiohttp.BytesPayload):
    """A request's body; marks the line at the last moment at which certainly nothing was sent.

    A connection is there by then, and without its body a request asks for nothing. The types of
    aiohttp's exceptions do not tell the two sides apart as reliably.
    """

    def __init__(self, body: bytes, line: _Line) -> None:
        super().__init__(body)
        self._line = line

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._line.is_sent = True
        await super().write_with_length(writer, content_length)


# ── the pool ────────────────────────────────────────────────────────────────────────────────


def _open_session(settings: ClientSettings, tls: ssl.SSLContext | bool) -> aiohttp.ClientSession:
    """A session that sends our headers and nothing else, and keeps nothing between calls."""
    proxy = settings.proxy.get_secret_value() if settings.proxy else None
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=0,  # how much may be bought at once is a limit of keys, not of sockets
            keepalive_timeout=_IDLE_CONNECTION_SECONDS,
            socket_factory=_open_socket,
            ssl=tls,
        ),
        headers=settings.sent_headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=_READ_BYTES,
        proxy=proxy,
        timeout=aiohttp.ClientTimeout(
            total=None,
            # A proxy that never says whether it got through has no other end than the deadline.
            connect=_TUNNEL_STEPS * settings.connect_timeout_seconds if proxy else None,
            sock_connect=settings.connect_timeout_seconds,
        ),
        trust_env=False,
    )


def _open_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    opened = socket.socket(family, kind, protocol)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):  # not everywhere; elsewhere the system's time holds
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_SECONDS)
    return opened
