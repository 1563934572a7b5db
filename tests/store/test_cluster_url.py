"""URLs of a Redis Cluster: what they say, and what is said of one that cannot be used."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import parse_url

from gateway.store.redis.topology.cluster_url import parse_cluster_url
from gateway.store.redis.topology.opening import check_redis_url


def test_a_url_names_nodes_and_the_url_of_each() -> None:
    parsed = parse_cluster_url("redis+cluster://u:p%2F@a:1,[::1],b,a:1/0?ssl=yes&ssl_keyfile=k")
    assert [(node.host, node.port) for node in parsed.hosts] == [
        ("a", 1),
        ("::1", 6379),
        ("b", 6379),
    ]
    assert parsed.location == "redis+cluster://a:1,[::1],b,a:1/0"
    assert [parsed.node_url(node) for node in parsed.hosts[:2]] == [
        "rediss://u:p%2F@a:1/0?ssl_keyfile=k",
        "rediss://u:p%2F@[::1]:6379/0?ssl_keyfile=k",
    ]
    assert "p%2F" not in repr(parsed)


@pytest.mark.parametrize("rest", ["a", "a/", "a/0", "a?db=0", "a?db=", "a/?ssl=false", "a/00"])
def test_the_only_database_may_be_named(rest: str) -> None:
    check_redis_url(f"redis+cluster://{rest}")


@pytest.mark.parametrize(
    ("rest", "named"),
    [
        ("", "hosts of some nodes"),
        ("/0", "hosts of some nodes"),
        ("a,,b/0", "hosts of some nodes"),
        ("a:0/0", "hosts of some nodes"),
        ("a:65536/0", "hosts of some nodes"),
        ("::1/0", "hosts of some nodes"),
        ("a/1", "no database but 0"),
        ("a?db=1", "no database but 0"),
        ("a/images", "%2F"),
        ("a?db=hunter2", "%2F"),
        ("a/0/0", "%2F"),
        (":hunter2/x@a/0", "%2F"),
        (":hunter2?x@a/0", "%2F"),
        (":hunter2#x@a/0", "%2F"),
        ("a, b/0", "%2F"),
        ("a/0?ssl=maybe", "ssl=true or ssl=false"),
        ("a/0?ssl_keyfile=k&ssl_ca_certs=c", "ssl=true beside ssl_ca_certs"),
        ("a/0?hunter2=1", "only options that redis-py knows"),
    ],
)
def test_a_url_that_cannot_be_used_is_explained(rest: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        check_redis_url(f"redis+cluster://{rest}")
    assert "hunter2" not in str(caught.value)


@given(
    st.lists(st.from_regex(r"[a-z0-9][a-z0-9.-]{0,9}", fullmatch=True), min_size=1, unique=True),
    st.integers(1, 65535),
    st.booleans(),
)
def test_the_url_of_a_node_leads_to_it(hosts: list[str], port: int, is_tls: bool) -> None:
    text = ",".join(f"{host}:{port}" for host in hosts)
    parsed = parse_cluster_url(f"redis+cluster://u:p@{text}/0?ssl={str(is_tls).lower()}")
    for host, node in zip(hosts, parsed.hosts, strict=True):
        options = parse_url(parsed.node_url(node))
        assert (options["host"], options["port"], options["db"]) == (host, port, 0)
        assert (options["username"], options["password"]) == ("u", "p")
        assert ("connection_class" in options) is is_tls
