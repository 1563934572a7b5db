"""The link fetcher, against an allowed server and one that it must never reach.

Both servers and the links to them are real; `inner_server` has them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from yarl import URL

from gateway.imagefile.check import check_image
from gateway.net.guard import (
    AddressPolicy,
    AllowList,
    LinkBlocked,
    embedded_ipv4,
    follow,
    is_public,
    parse_allow_list,
    parse_link,
)
from gateway.upstream.fetch import FetchSettings, LinkFetcher, open_link_fetcher
from tests.gateways import run_upstream
from tests.inner_server import (
    IMAGE,
    INSIDE,
    REDIRECTED,
    TLS,
    Names,
    names_that_lead_inside,
    run_inner,
    run_outer,
)
from tests.rows import each_row
from tests.waiting import DEADLINE_SECONDS, eventually, pass_time, run_out_of_time


@contextlib.asynccontextmanager
async def fetching(
    upstream: str = "https://api.upstream.example/v1", /, *, names: Names | None = None, **given
) -> AsyncIterator[tuple[LinkFetcher, list[str]]]:
    """A fetcher, and the outcomes that its observer receives."""
    outcomes: list[str] = []
    settings = FetchSettings(upstream_url=upstream, **{"max_bytes": 10**6, **given})
    async with open_link_fetcher(
        settings, observer=outcomes.append, resolver=names or Names()
    ) as links:
        yield links, outcomes


async def blocked_reason(links: LinkFetcher, link: str) -> str:
    with pytest.raises(LinkBlocked) as caught:
        await links.fetch(link)
    return caught.value.reason


# ── links to inner addresses ────────────────────────────────────────────────────────────────


@each_row(("link", "reason"), INSIDE, ids=[repr(row[0])[:60] for row in INSIDE])
async def test_a_link_to_an_inner_address_is_blocked_without_a_connection(link, reason):
    async with run_inner() as inner, fetching(names=names_that_lead_inside()) as (links, outcomes):
        assert await blocked_reason(links, link.replace("{port}", str(inner.port))) == reason
        assert inner.connections == 0
        assert outcomes == [reason]


@each_row(("link", "reason"), REDIRECTED, ids=[repr(row[0])[:60] for row in REDIRECTED])
async def test_a_redirect_to_an_inner_address_is_blocked_without_a_connection(link, reason):
    async with (
        run_inner() as inner,
        run_outer() as outer,
        fetching(outer.url, names=names_that_lead_inside()) as (links, outcomes),
    ):
        outer.location = link.replace("{port}", str(inner.port))
        assert await blocked_reason(links, f"{outer.url}/redirect") == reason
        assert inner.connections == 0
        assert outcomes == [reason]


@pytest.mark.parametrize("location", ["//127.0.0.1:{port}/", "//inside.example/", "//[::1]/"])
async def test_a_redirect_without_a_scheme_takes_that_of_its_link(location):
    async with (
        run_inner() as inner,
        run_outer() as outer,
        fetching(outer.url, names=names_that_lead_inside()) as (links, _),
    ):
        outer.location = location.replace("{port}", str(inner.port))
        assert await blocked_reason(links, f"{outer.url}/redirect") == "scheme"
        assert inner.connections == 0


async def test_the_inner_server_counts_connections():
    async with run_inner() as inner, fetching(allow=("127.0.0.0/8",)) as (links, _):
        assert await blocked_reason(links, f"https://127.0.0.1:{inner.port}/") == "unreachable"
        assert inner.connections == 1


async def test_a_name_is_checked_at_each_connection():
    """The first look-up returns an allowed address, the second a blocked one."""
    names = Names({"fickle.example": [["127.0.0.2"], ["127.0.0.1"]]})
    async with (
        run_outer("127.0.0.2", name="fickle.example") as outer,
        fetching(names=names, allow=("127.0.0.2",)) as (links, outcomes),
    ):
        assert await blocked_reason(links, f"{outer.url}/hop?left=1") == "address"
        assert names.asked == ["fickle.example"] * 2
        assert outer.paths == ["/hop?left=1"]
        assert outcomes == ["address"]


async def test_only_the_allowed_addresses_of_a_name_are_connected_to():
    names = Names({"both.example": [["127.0.0.1", "127.0.0.2"]]})
    async with (
        run_inner() as inner,
        run_outer("127.0.0.2", name="both.example", port=inner.port) as outer,
        fetching(names=names, allow=("127.0.0.2",)) as (links, _),
    ):
        assert await links.fetch(f"{outer.url}/image") == IMAGE
        assert inner.connections == 0


# ── allowed links ───────────────────────────────────────────────────────────────────────────


async def test_a_link_of_upstream_is_fetched_byte_for_byte():
    """The simulated storage compares the signature in the query as text."""
    async with run_upstream() as upstream, fetching(upstream.base_url) as (links, outcomes):
        body = {"model": "dall-e-2", "prompt": "an otter", "size": "256x256"}
        async with upstream.session.post(
            f"{upstream.base_url}/images/generations", json=body
        ) as response:
            link = (await response.json())["data"][0]["url"]
        assert "%2B" in link
        assert "%2F" in link
        check_image(await links.fetch(link), max_bytes=10**6, max_pixels=10**6)
        assert await blocked_reason(links, link.replace("%2B", "+")) == "status"
        assert outcomes == ["fetched", "status"]


@pytest.mark.parametrize(
    "allow",
    ["127.0.0.1", "127.0.0.0/8", "{host_and_port}", "friend.example", "FRIEND.example:{port}"],
)
async def test_allow_listed_hosts_may_be_private_and_plain_http(allow):
    names = Names({"friend.example": [["127.0.0.1"]]})
    is_named = "friend" in allow.lower()
    async with run_outer(name="friend.example" if is_named else None) as outer:
        host_and_port = URL(outer.url)
        entry = allow.format(host_and_port=host_and_port.authority, port=host_and_port.port)
        async with fetching(names=names, allow=(entry,)) as (links, outcomes):
            assert await links.fetch(f"{outer.url}/image") == IMAGE
            assert outcomes == ["fetched"]


async def test_a_name_in_an_allowed_network_may_be_plain_http():
    names = Names({"friend.example": [["127.0.0.1"]]})
    async with (
        run_outer(name="friend.example") as outer,
        fetching(names=names, allow=("127.0.0.0/8",)) as (links, _),
    ):
        assert await links.fetch(f"{outer.url}/image") == IMAGE


async def test_https_is_checked_against_the_authorities_of_the_ca_file():
    names = Names({"localhost": [["127.0.0.1"]]})
    async with run_outer(name="localhost", tls=True) as outer:
        link = f"{outer.url}/image"
        trusting = {"names": names, "allow": ("localhost",)}
        async with fetching(**trusting, ca_file=TLS / "authority.pem") as (links, _):
            assert await links.fetch(link) == IMAGE
        async with fetching(**trusting) as (links, _):
            assert await blocked_reason(links, link) == "unreachable"


async def test_https_is_not_redirected_to_http_even_for_an_allowed_host():
    names = Names({"localhost": [["127.0.0.1"]]})
    async with (
        run_outer(name="localhost", tls=True) as secure,
        run_outer() as plain,
        fetching(plain.url, names=names, allow=("localhost",), ca_file=TLS / "authority.pem") as (
            links,
            _,
        ),
    ):
        secure.location = f"{plain.url}/image"
        assert await blocked_reason(links, f"{secure.url}/redirect") == "scheme"
        secure.location = "/image"
        assert await links.fetch(f"{secure.url}/redirect") == IMAGE
        assert plain.paths == []


async def test_five_redirects_are_followed_and_a_sixth_is_not():
    async with run_outer() as outer, fetching(outer.url) as (links, outcomes):
        assert await links.fetch(f"{outer.url}/hop?left=5") == IMAGE
        assert await blocked_reason(links, f"{outer.url}/hop?left=6") == "redirects"
        assert outcomes == ["fetched", "redirects"]


async def test_a_redirects_query_is_kept_byte_for_byte():
    async with run_outer() as outer, fetching(outer.url) as (links, _):
        outer.location = "/image?sig=a%2Bb%2F%3d&x=;&y=%7E#part"
        assert await links.fetch(f"{outer.url}/redirect?%2f") == IMAGE
        assert outer.paths == ["/redirect?%2f", "/image?sig=a%2Bb%2F%3d&x=;&y=%7E"]


async def test_a_fetch_sends_no_key_and_no_cookie_and_uses_no_proxy(monkeypatch, tmp_path):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with run_outer() as outer, fetching(outer.url) as (links, _):
        outer.location = "/image"
        assert await links.fetch(f"{outer.url}/redirect") == IMAGE
        for headers in outer.headers:
            assert {name.lower() for name in headers} == {
                "host",
                "accept",
                "accept-encoding",
                "user-agent",
            }
            assert headers["Accept-Encoding"] == "identity"


# ── responses without an image ────────────────────────────────────────────────────────────


@each_row(
    ("path", "reason"),
    [
        ("missing", "status"),
        ("part", "status"),
        ("nowhere", "status"),
        ("typed?type=text/html", "type"),
        ("typed?type=TEXT/plain;%20charset=utf-8", "type"),
        ("typed?type=application/json", "type"),
        ("typed?type=application/problem%2Bjson", "type"),
        ("typed?type=application/xml", "type"),
        ("typed?type=image/other%2Bxml", "type"),
        ("packed", "encoding"),
        ("gigabyte?declared", "too_large"),
        ("gigabyte", "too_large"),
        ("cut", "cut"),
        ("drip", "timeout"),
        ("silent", "timeout"),
    ],
)
async def test_a_response_without_an_image_is_blocked(path, reason):
    async with (
        run_outer() as outer,
        fetching(outer.url, timeout_seconds=DEADLINE_SECONDS) as (links, outcomes),
    ):
        blocking = blocked_reason(links, f"{outer.url}/{path}")
        if reason == "timeout":
            blocking = run_out_of_time(blocking, once=lambda: outer.paths)
        assert await blocking == reason
        assert outcomes == [reason]
        assert outer.sent_bytes < 2**24


async def test_a_response_of_exactly_the_limit_is_accepted_and_one_byte_more_is_not():
    async with run_outer() as outer:
        async with fetching(outer.url, max_bytes=len(IMAGE)) as (links, _):
            assert await links.fetch(f"{outer.url}/image") == IMAGE
        async with fetching(outer.url, max_bytes=len(IMAGE) - 1) as (links, _):
            assert await blocked_reason(links, f"{outer.url}/image") == "too_large"


@pytest.mark.parametrize(
    "kind", ["image/png", "image/svg%2Bxml", "application/octet-stream", "binary/octet-stream"]
)
async def test_types_that_may_be_an_image_are_accepted(kind):
    async with run_outer() as outer, fetching(outer.url) as (links, _):
        assert await links.fetch(f"{outer.url}/typed?type={kind}") == IMAGE


async def test_a_server_that_does_not_listen_is_unreachable():
    async with run_outer() as outer:
        url = outer.url
    async with fetching(url) as (links, _):
        assert await blocked_reason(links, f"{url}/image") == "unreachable"


async def test_the_deadline_covers_all_redirects_together():
    async with (
        run_outer() as outer,
        fetching(outer.url, timeout_seconds=DEADLINE_SECONDS) as (links, _),
    ):
        blocking = asyncio.create_task(blocked_reason(links, f"{outer.url}/slow-hop?left=5"))
        for hops in (1, 2, 3):
            await eventually(lambda: len(outer.paths) == hops)  # noqa: B023 - at once
            pass_time(0.4 * DEADLINE_SECONDS)
        assert await blocking == "timeout"
        assert len(outer.paths) == 3


async def test_the_error_of_a_blocked_link_has_its_reason_and_its_host():
    async with fetching() as (links, _):
        with pytest.raises(LinkBlocked) as caught:
            await links.fetch("https://10.0.0.1/private?sig=secret")
        assert str(caught.value) == "address"
        assert caught.value.host == "10.0.0.1"


# ── the pure parts ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "8.8.8.8",
        "20.60.1.2",
        "2606:4700::1111",
        "2a00:1450::1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "64:ff9b:1::8.8.8.8",
        "2002:808:808::1",
    ],
)
def test_a_public_address_is_public(text):
    assert is_public(ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_address_that_embeds_an_ipv4_address_is_as_public_as_it(inner: IPv4Address):
    for prefix in ("::ffff:", "64:ff9b::", "64:ff9b:1::", "::", "::ffff:0:"):
        outer = ip_address(f"{prefix}{inner}")
        assert embedded_ipv4(outer) == (inner,)
        assert is_public(outer) == is_public(inner)


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_python_calls_private_or_multicast_is_not_public(address):
    if address.is_private or address.is_multicast or address.is_link_local:
        assert not is_public(address) or embedded_ipv4(address)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_that_python_does_not_call_global_is_not_public(address):
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert not is_public(address)


@given(st.text(max_size=40) | st.from_regex(r"https?://[0-9a-fx.:@\[\]%]{1,20}/?", fullmatch=True))
def test_yarl_parses_each_link_that_is_not_blocked_in_the_same_way(text):
    try:
        link = parse_link(text)
    except LinkBlocked:
        return
    url = URL(link.url, encoded=True)
    assert (url.scheme, url.raw_host, url.port) == (link.scheme, link.host.name, link.host.port)
    assert (url.user, url.password, url.raw_path_qs) == (None, None, link.target)
    assert parse_link(link.url) == link


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://A.Example/x?y#z", "https://a.example/x?y"),
        ("HTTPS://a.example", "https://a.example/"),
        ("https://a.example?y=%2B", "https://a.example/?y=%2B"),
        ("https://a.example:443/", "https://a.example/"),
        ("http://a.example:443/", "http://a.example:443/"),
        ("https://[2606:4700:0:0::1]:8443/a//b/../c", "https://[2606:4700::1]:8443/a//b/../c"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://local_ai:8080/", "https://local_ai:8080/"),
    ],
)
def test_a_link_is_rebuilt_with_its_target_byte_for_byte(text, url):
    assert parse_link(text).url == url


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://b.example/x?%2f", "https://b.example/x?%2f"),
        ("//b.example/x", "https://b.example/x"),
        ("/x?y=%2B", "https://a.example/x?y=%2B"),
        ("x", "https://a.example/one/x"),
        ("?z", "https://a.example/one/two?z"),
    ],
)
def test_a_redirect_may_be_relative(location, url):
    assert follow(parse_link("https://a.example/one/two?q"), location).url == url


GUARD = parse_allow_list(
    ["files.example", "[fd00::1]:9000", "10.1.0.0/16", "fd00:1::/32", "127.0.0.9"]
)


@each_row(
    ("link", "policy"),
    [
        ("http://files.example/", AddressPolicy.ANY),
        ("https://files.example:8443/", AddressPolicy.ANY),
        ("http://[fd00::1]:9000/", AddressPolicy.ANY),
        ("https://8.8.8.8/", AddressPolicy.PUBLIC),
        ("https://10.1.2.3/", AddressPolicy.PUBLIC),
        ("https://sub.files.example/", AddressPolicy.PUBLIC),
        ("http://10.1.2.3/", AddressPolicy.ALLOW_LISTED),
        ("http://127.0.0.9:1234/", AddressPolicy.ALLOW_LISTED),
        ("http://[fd00:1::5]/", AddressPolicy.ALLOW_LISTED),
        ("http://[::ffff:10.1.2.3]/", AddressPolicy.ALLOW_LISTED),
        ("http://other.example/", AddressPolicy.ALLOW_LISTED),
        ("http://8.8.8.8/", None),
        ("https://10.2.0.1/", None),
        ("https://[fd00::1]/", None),
        ("https://[2001:0:a01:1:0:0:80ff:fffe]/", None),
    ],
)
def test_the_allow_list_decides_the_address_policy_of_a_link(link, policy):
    if policy is None:
        with pytest.raises(LinkBlocked):
            GUARD.policy_for(parse_link(link))
    else:
        assert GUARD.policy_for(parse_link(link)) is policy


def test_a_plain_http_name_connects_only_to_allowed_networks():
    assert GUARD.allows_numeric("10.1.2.3", AddressPolicy.ALLOW_LISTED)
    assert not GUARD.allows_numeric("8.8.8.8", AddressPolicy.ALLOW_LISTED)
    assert not GUARD.allows_numeric("files.example", AddressPolicy.PUBLIC)


@each_row(
    "entry",
    [
        "",
        " ",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "https://files.example",
        "files.example/x",
        "*.files.example",
        "files.example:0",
        "files.example:http",
        "user@files.example",
        "127.1",
        "0x7f.1",
        "[::1",
        "fi les.example",
        "bücher.example",
    ],
)
def test_an_invalid_allow_list_entry_is_named(entry):
    with pytest.raises(ValidationError, match="is not a host") as caught:
        FetchSettings(upstream_url="https://a.example", allow=("b.example", entry), max_bytes=1)
    assert f"'{entry}'" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host_and_port"),
    [
        ("https://api.example/v1", ("api.example", 443)),
        ("http://API.example:8080/v1/", ("api.example", 8080)),
        ("http://[::1]:9000", ("::1", 9000)),
        ("https://api.example./v1", ("api.example", 443)),
        ("https://bücher.example", ("xn--bcher-kva.example", 443)),
    ],
)
def test_upstreams_own_host_and_port_are_allowed(url, host_and_port):
    assert FetchSettings(upstream_url=url, max_bytes=1).allow_list == AllowList(
        frozenset({host_and_port}), ()
    )


def test_an_upstream_without_a_host_is_refused():
    with pytest.raises(ValidationError):
        FetchSettings(upstream_url="/v1", max_bytes=1)
