"""The address of the client behind trusted proxies, and the scheme that the client used.

Pure. A proxy appends the address that it received a request from to `X-Forwarded-For`. So the
addresses on the right were written by our own proxies, and everything to the left of the first
untrusted one may be forged. Described in `docs/reference/headers.md#addresses-of-clients`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Final, Protocol

from gateway.net.guard import Address, Network

FORWARDED_FOR: Final = "X-Forwarded-For"
FORWARDED_PROTO: Final = "X-Forwarded-Proto"

MAX_PROXIES: Final = 32
"""Entries of one request that are read, from the right."""

_KEPT_ADDRESSES: Final = 1024
_MAX_ENTRY_CHARACTERS: Final = 64
_SITE_BITS: Final = 64
"""One client has a whole IPv6 network of this prefix, and can use any address of it."""

_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\](?::([0-9]{1,5}))?")
_WITH_PORT: Final = re.compile(r"([0-9.]+):([0-9]{1,5})")


class Headers(Protocol):
    """The headers of a request, which may have several lines of one name."""

    def getall(self, name: str, default: Sequence[str]) -> Sequence[str]: ...


class TrustedProxies:
    """Networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        self._networks = tuple(networks)
        # Clients and proxies come again, and parsing an address takes microseconds.
        self._parse_peer_once = lru_cache(_KEPT_ADDRESSES)(self._parse_peer)
        self._read_entry = lru_cache(_KEPT_ADDRESSES)(self._parse_entry)

    def read_peer(self, peer: str) -> tuple[str, bool]:
        """The address of a connection's other end in canonical form, and whether it is trusted."""
        return self._parse_peer_once(peer)

    def client_address(self, peer: str, headers: Headers) -> str:
        """The rightmost untrusted address of a request that `peer` sent, in canonical form.

        An entry that is no address ends the search: the client is then the last proxy that could
        be read.
        """
        client, is_trusted = self.read_peer(peer)
        if not is_trusted:
            return client
        for entry in _entries_from_the_right(headers.getall(FORWARDED_FOR, ())):
            # Of longer ones, not even the text is kept.
            found = self._read_entry(entry) if len(entry) <= _MAX_ENTRY_CHARACTERS else None
            if found is None:
                break
            client, is_trusted = found
            if not is_trusted:
                break
        return client

    def client_scheme(self, peer: str, headers: Headers) -> str | None:
        """`http` or `https`, as the last trusted proxy wrote it; None if there is none."""
        if not self._networks or not self.read_peer(peer)[1]:
            return None
        entries = _entries_from_the_right(headers.getall(FORWARDED_PROTO, ()))
        scheme = entries[0].lower() if entries else ""
        return scheme if scheme in ("http", "https") else None

    def _parse_peer(self, peer: str) -> tuple[str, bool]:
        address = _parse(peer.partition("%")[0])  # without the interface of a link-local address
        return (peer, False) if address is None else (str(address), self._trusts(address))

    def _parse_entry(self, entry: str) -> tuple[str, bool] | None:
        """The address in an element of the header, also with a port or in brackets, as a peer's."""
        decorated = _BRACKETED.fullmatch(entry) or _WITH_PORT.fullmatch(entry)
        if decorated is not None and decorated[2] and not 0 < int(decorated[2]) < 2**16:
            return None
        address = _parse(decorated[1] if decorated else entry)
        return None if address is None else (str(address), self._trusts(address))

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


@lru_cache(_KEPT_ADDRESSES)
def network_of(address: str) -> str:
    """What one client can send requests from: an IPv4 address, or an IPv6 network of 64 bits."""
    parsed = _parse(address)
    if isinstance(parsed, IPv6Address):
        return str(IPv6Network((parsed, _SITE_BITS), strict=False))
    return address


def _entries_from_the_right(lines: Sequence[str]) -> list[str]:
    """The last elements of a list in one or more header lines, last first, without empty ones."""
    entries = ",".join(lines).rsplit(",", MAX_PROXIES)[-MAX_PROXIES:]
    return [entry.strip() for entry in reversed(entries) if entry.strip()]


def _parse(text: str) -> Address | None:
    """An address, without the IPv6 form of an IPv4 one; None for any other text."""
    if "%" in text:  # an interface could be any text
        return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
