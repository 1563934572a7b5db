"""Which links may be fetched, and which addresses they may connect to.

Pure: no `async`, no I/O. Upstream chooses the links, so fetching them blindly would let it reach
the gateway's own network (SSRF). Links are therefore parsed strictly: ambiguous ones are blocked,
and the fetched URL is rebuilt from the parts that were checked. Names are checked by the addresses
that they resolve to when `net.guarded_sockets` connects. The rules are
`docs/reference/cache.md#fetching-images-behind-links`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, Literal
from urllib.parse import urljoin

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

Reason = Literal[
    "malformed",
    "scheme",
    "credentials",
    "address",
    "redirects",
    "status",
    "encoding",
    "type",
    "too_large",
    "cut",
    "timeout",
    "unreachable",
]


class LinkBlocked(Exception):
    """A link that may not be fetched, or did not yield an image."""

    def __init__(self, reason: Reason, *, host: str | None = None) -> None:
        super().__init__(reason)
        self.reason: Final = reason
        self.host = host
        """The host of the link; None if the link could not be parsed."""


# ── addresses ───────────────────────────────────────────────────────────────────────────────

_NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure: the host of the virtual machine, although it looks public
            "169.254.0.0/16",  # link-local, in many clouds the metadata service with credentials
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # relays of 6to4
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            "2001::/23",  # protocol assignments
            "2001:db8::/32",  # documentation
            "3fff::/20",  # documentation
        ),
    )
)
"""IANA's special-purpose registries, and one address that they lack.

Checked in addition to `is_global`, whose list differs between Python versions.
"""

_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
"""The only part of IPv6 in which public addresses are allocated."""

_LAST_4_BYTES_ARE_IPV4: Final = (
    IPv6Network("::/96"),  # IPv4-compatible; `::` and `::1` become part of 0.0.0.0/8
    IPv6Network("::ffff:0:0/96"),  # IPv4-mapped
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
    IPv6Network("64:ff9b:1::/96"),  # NAT64, RFC 8215; the rest of its /48 has no fixed position
)


def embedded_ipv4(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 address embeds, by mapping or tunnelling."""
    if isinstance(address, IPv4Address):
        return ()
    if any(address in network for network in _LAST_4_BYTES_ARE_IPV4):
        return (IPv4Address(address.packed[12:]),)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    return address.teredo or ()


def is_public(address: Address) -> bool:
    """Whether an address, or each one that it embeds, is on the public internet."""
    return all(map(_is_public_itself, embedded_ipv4(address) or (address,)))


def _is_public_itself(address: Address) -> bool:
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not any(address in network for network in _NOT_PUBLIC)


# ── links ───────────────────────────────────────────────────────────────────────────────────

_MAX_LINK_LENGTH: Final = 8192
"""Characters. Signed links have a few hundred."""

_PORTS: Final = {"http": 80, "https": 443}

_PLAIN: Final = re.compile(r"[!-\[\]-~]+")
"""Printable ASCII without spaces, and without the backslash, which some parsers read as a slash."""

_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_NAME: Final = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
"""Some parsers read a host that ends in a number as IPv4, such as `127.1` or `0x7f000001`."""


@dataclass(frozen=True, slots=True)
class Host:
    """A parsed host and port."""

    name: str
    """In lower case; an address in canonical form, without brackets."""
    port: int
    address: Address | None
    """None for a name that DNS resolves."""


@dataclass(frozen=True, slots=True)
class Link:
    """A parsed link."""

    scheme: str
    """`http` or `https`."""
    host: Host
    target: str
    """Path and query, byte for byte."""

    @property
    def url(self) -> str:
        """The link, rebuilt from its parts, without the fragment."""
        name = f"[{self.host.name}]" if ":" in self.host.name else self.host.name
        port = "" if self.host.port == _PORTS[self.scheme] else f":{self.host.port}"
        return f"{self.scheme}://{name}{port}{self.target}"


def parse_link(text: str) -> Link:
    """Parses an absolute http or https link. Raises `LinkBlocked`."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _PORTS:
        raise LinkBlocked("scheme")
    if len(text) > _MAX_LINK_LENGTH or not _PLAIN.fullmatch(text):
        raise LinkBlocked("malformed")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        raise LinkBlocked("credentials")
    target = rest.removeprefix(authority).partition("#")[0]
    host = parse_host(authority, default_port=_PORTS[scheme])
    return Link(scheme, host, target if target.startswith("/") else f"/{target}")


def parse_host(text: str, *, default_port: int) -> Host:
    """Parses `host` or `host:port`. Raises `LinkBlocked`."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        raise LinkBlocked("malformed")
    port = int(match[2] or default_port)
    if not 0 < port < 2**16:
        raise LinkBlocked("malformed")
    name = match[1].lower()
    address = _parse_address(name)
    return Host(name if address is None else str(address), port, address)


def _parse_address(host: str) -> Address | None:
    """The address, or None for a name. Raises `LinkBlocked` for ambiguous and invalid hosts."""
    try:
        return IPv6Address(host[1:-1]) if host.startswith("[") else IPv4Address(host)
    except ValueError:
        if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            raise LinkBlocked("address") from None
        if not _NAME.fullmatch(host):
            raise LinkBlocked("malformed") from None
        return None


def follow(link: Link, location: str) -> Link:
    """The target of a redirect from `link`. Raises `LinkBlocked`, also from https to http."""
    try:
        text = urljoin(link.url, location)
    except ValueError:
        raise LinkBlocked("malformed") from None
    # A redirect leads to any host, so it is checked like the first link.
    target = parse_link(text)
    if (link.scheme, target.scheme) == ("https", "http"):
        raise LinkBlocked("scheme")
    return target


# ── the allow-list ──────────────────────────────────────────────────────────────────────────


class AddressPolicy(Enum):
    """The addresses that a link may connect to."""

    ANY = "any"
    """Any, because the allow-list has the host itself."""
    PUBLIC = "public"
    """Public addresses and allowed networks: the link is https."""
    ALLOW_LISTED = "allow-listed"
    """Only allowed networks: the link is plain http."""


@dataclass(frozen=True, slots=True)
class AllowList:
    """Hosts and networks that are allowed even if they are private or the link is plain http."""

    hosts: frozenset[tuple[str, int | None]]
    """Name and port; None allows any port."""
    networks: tuple[Network, ...]

    def policy_for(self, link: Link) -> AddressPolicy:
        """The addresses that a link may connect to. Raises `LinkBlocked` if there are none."""
        host = link.host
        if {(host.name, host.port), (host.name, None)} & self.hosts:
            return AddressPolicy.ANY
        address_policy = (
            AddressPolicy.PUBLIC if link.scheme == "https" else AddressPolicy.ALLOW_LISTED
        )
        if address_policy is AddressPolicy.ALLOW_LISTED and not self.networks:
            raise LinkBlocked("scheme")
        if host.address is not None and not self.allows(host.address, address_policy):
            raise LinkBlocked("address")
        return address_policy

    def allows(self, address: Address, address_policy: AddressPolicy) -> bool:
        """Whether a connection to this address may be made."""
        if address_policy is AddressPolicy.ANY or self._contains(address):
            return True
        # An address that embeds others connects to them, so all of them must be allowed.
        embedded = embedded_ipv4(address)
        if embedded and all(map(self._contains, embedded)):
            return True
        return address_policy is AddressPolicy.PUBLIC and is_public(address)

    def allows_numeric(self, text: str, address_policy: AddressPolicy) -> bool:
        """The same for an address as text, from a resolver. Other text is not allowed."""
        try:
            return self.allows(ip_address(text), address_policy)
        except ValueError:
            return False

    def _contains(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def parse_allow_list(entries: Iterable[str]) -> AllowList:
    """Parses hosts, `host:port`, addresses and networks. Raises `ValueError`."""
    hosts: set[tuple[str, int | None]] = set()
    networks: list[Network] = []
    for entry in entries:
        allowed = _parse_entry(entry)
        if isinstance(allowed, tuple):
            hosts.add(allowed)
        else:
            networks.append(allowed)
    return AllowList(frozenset(hosts), tuple(networks))


def _parse_entry(entry: str) -> tuple[str, int | None] | Network:
    try:
        return ip_network(entry)  # a single address is a network too
    except ValueError:
        pass
    try:
        host = parse_host(entry, default_port=_PORTS["https"])
    except LinkBlocked:
        raise ValueError(f"'{entry}' is not a host, host:port, address or network") from None
    # Behind a bracket only: an IPv6 address has colons of its own.
    has_port = bool(re.search(r":[0-9]+$", entry.rpartition("]")[2]))
    if host.address is not None and not has_port:
        return ip_network(host.address)
    return host.name, host.port if has_port else None
