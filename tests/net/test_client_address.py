"""Client addresses behind trusted proxies."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from multidict import CIMultiDict

from gateway.net.client_address import TrustedProxies, network_of
from tests.rows import each_row

PROXIES = TrustedProxies(
    [ip_network("10.0.0.0/8"), ip_network("192.0.2.7/32"), ip_network("fd00::/8")]
)
PEER = "10.0.0.1"


def headers(*lines: str, name: str = "X-Forwarded-For") -> CIMultiDict[str]:
    return CIMultiDict((name, line) for line in lines)


@each_row(
    ("lines", "client"),
    [
        ([], PEER),
        ([""], PEER),
        ([" , ,"], PEER),
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9,"], "203.0.113.9"),
        (["\t203.0.113.9 "], "203.0.113.9"),
        # What is left of the first untrusted address may be forged.
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (["198.51.100.1", "203.0.113.9", "10.0.0.2,192.0.2.7"], "203.0.113.9"),
        (["10.9.9.9, 203.0.113.9"], "203.0.113.9"),
        # All are trusted.
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["192.0.2.8, 192.0.2.7"], "192.0.2.8"),
        # Ports and brackets, as some load balancers write them.
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["203.0.113.9, 10.0.0.2:80"], "203.0.113.9"),
        # IPv6 in its canonical form; an IPv4 address in IPv6 form is that address.
        (["2001:DB8:0:0::1"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
        (["203.0.113.9, fd00::2"], "203.0.113.9"),
        (["[::ffff:203.0.113.9]:80"], "203.0.113.9"),
        # Reading stops at what is no address.
        (["unknown"], PEER),
        (["203.0.113.9, unknown"], PEER),
        (["203.0.113.9, unknown, 10.0.0.2"], "10.0.0.2"),
        (["203.0.113.9, _hidden"], PEER),
        (["203.0.113.9, proxy.internal"], PEER),
        (['203.0.113.9, "203.0.113.8"'], PEER),
        (["for=203.0.113.9"], PEER),
        (["203.0.113.9 203.0.113.8"], PEER),
        (["203.0.113.256"], PEER),
        (["203.0.113.09"], PEER),
        (["203.0.113"], PEER),
        (["3405803785"], PEER),
        (["0xcb007109"], PEER),
        (["203.0.113.9/24"], PEER),
        (["203.0.113.9:"], PEER),
        (["203.0.113.9:0"], PEER),
        (["203.0.113.9:99999"], PEER),
        (["203.0.113.9:80:80"], PEER),
        (["[203.0.113.9]:80"], PEER),
        (["[2001:db8::1"], PEER),
        (["[2001:db8::1]80"], PEER),
        (["2001:db8::1]:80"], PEER),
        (["fe80::1%eth0"], PEER),
        (["fe80::1%\x1b[31mforged"], PEER),
        (["２０３.0.113.9"], PEER),
        (["203.0.113.9\x00"], PEER),
        (["\udcff"], PEER),
    ],
)
def test_the_client_is_the_rightmost_untrusted_address(lines: list[str], client: str):
    assert PROXIES.client_address(PEER, headers(*lines)) == client


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("192.0.2.8", "192.0.2.8"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("2001:DB8::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),
    ],
)
def test_the_headers_of_an_untrusted_peer_are_ignored(peer: str, shown: str):
    assert PROXIES.client_address(peer, headers("198.51.100.1")) == shown
    assert PROXIES.client_scheme(peer, headers("https", name="X-Forwarded-Proto")) is None


@pytest.mark.parametrize("peer", ["::ffff:10.0.0.1", "fd00::1", "10.255.255.255"])
def test_a_trusted_peer_is_recognised_in_every_form(peer: str):
    assert PROXIES.client_address(peer, headers("203.0.113.9")) == "203.0.113.9"


def test_without_trusted_proxies_the_client_is_the_peer():
    assert TrustedProxies().client_address(PEER, headers("203.0.113.9")) == PEER
    assert TrustedProxies().client_scheme(PEER, headers("https", name="X-Forwarded-Proto")) is None


def test_at_most_32_elements_are_read():
    chain = ", ".join(["203.0.113.9", *(f"10.0.0.{n}" for n in range(1, 33))])
    assert PROXIES.client_address(PEER, headers(chain)) == "10.0.0.1"
    assert PROXIES.client_address(PEER, headers("203.0.113.9" + "," * 32)) == PEER


@each_row(
    ("lines", "scheme"),
    [
        (["https"], "https"),
        (["http"], "http"),
        (["HTTPS"], "https"),
        (["http, https"], "https"),
        (["https", "http"], "http"),
        ([" https ,"], "https"),
        ([""], None),
        ([], None),
        (["javascript"], None),
        (["https://evil.example"], None),
        (["https;"], None),
        (["ws"], None),
        (["https, ftp"], None),
    ],
)
def test_the_scheme_is_the_rightmost_value_of_a_trusted_proxy(lines: list[str], scheme: str | None):
    assert PROXIES.client_scheme(PEER, headers(*lines, name="X-Forwarded-Proto")) == scheme


def test_an_ipv6_client_is_its_network_of_64_bits():
    assert network_of("2001:db8:1:2:3::1") == network_of("2001:db8:1:2:ffff::")
    assert network_of("2001:db8:1:2::1") != network_of("2001:db8:1:3::1")
    assert network_of("203.0.113.9") == "203.0.113.9"
    assert network_of("") == ""
