"""Warnings about what travels in plain text: which settings cause one, and which do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gateway.configuration.settings import Settings
from gateway.process.plaintext import is_public_host, judge_plaintext
from tests.gateways import TLS_SETTINGS, run_processes, run_upstream
from tests.rows import each_row

PUBLIC = [
    *("api.example.com", "API.Example.COM", "api.example.com.", "localhost.example.com"),
    *("8.8.8.8", "172.32.0.1", "192.169.0.1", "100.128.0.1", "11.0.0.1", "203.0.113.7"),
    *(
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "134744072",
        "8.526344",
        "0x8.8.8.8",
    ),
    *("local.example.org", "internal.example.net"),
]
PRIVATE = [
    *("localhost", "LOCALHOST", "app.localhost", "redis", "image_gateway", "gateway-2"),
    *("printer.local", "host.docker.internal", "redis.team.svc", "redis.team.svc.cluster.local"),
    *("redis.team.svc.our.domain", "nas.home.arpa", "box.lan"),
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.1.1", "100.64.0.1", "100.127.255.255", "0.0.0.0"),
    *("::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1", "::"),
]


@each_row("host", PUBLIC)
def test_a_host_of_the_internet_is_public(host: str) -> None:
    assert is_public_host(host)


@each_row("host", PRIVATE)
def test_a_host_of_a_private_network_is_not_public(host: str) -> None:
    assert not is_public_host(host)


def warned(**sections: Any) -> dict[str, str]:
    """Warnings by setting."""
    findings = judge_plaintext(Settings.model_validate(sections))
    assert {finding.level for finding in findings} in ({"ok"}, {"warning"})
    return {f.name: f.message for f in findings if f.level == "warning"}


def test_the_defaults_have_no_warning() -> None:
    (finding,) = judge_plaintext(Settings())
    assert (finding.name, finding.level) == ("plain text", "ok")


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:8080", "[::]:80", "10.0.0.1:80", "8.8.8.8:80", "host:80"]
)
def test_a_plain_listener_that_others_reach_is_named(listen: str) -> None:
    message = warned(server={"listen": listen})["server.listen"]
    assert message == (
        f"Keys, admin token and images travel in plain text on {listen}: set server.tls, or put a "
        "TLS proxy in front and name its address in GATEWAY_TRUSTED_PROXIES."
    )


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "[::1]:1", "localhost:1", "127.5.5.5:1"])
def test_a_plain_listener_on_loopback_is_fine(listen: str) -> None:
    other = listen.replace(":1", ":2") if listen != "[::1]:1" else "[::1]:2"
    assert warned(server={"listen": listen, "admin_listen": other}) == {}


def test_each_of_two_listeners_is_judged_by_what_it_carries() -> None:
    both = warned(server={"listen": "0.0.0.0:80", "admin_listen": "10.0.0.1:90"})
    assert both.keys() == {"server.listen", "server.admin_listen"}
    assert both["server.listen"].startswith("Keys and images travel")
    assert "admin token travels in plain text on 10.0.0.1:90" in both["server.admin_listen"]
    local = warned(server={"listen": "0.0.0.0:80", "admin_listen": "127.0.0.1:90"})
    assert local.keys() == {"server.listen"}


def test_tls_needs_no_warning() -> None:
    server = {"listen": "0.0.0.0:80", "admin_listen": "0.0.0.0:90", "tls": TLS_SETTINGS}
    assert warned(server=server) == {}


@each_row(
    ("section", "setting", "url", "words"),
    [
        ("upstream", "base_url", "http://api.example.com/v1", "Upstream's key"),
        ("upstream", "base_url", "http://8.8.8.8:9000/v1", "8.8.8.8"),
        ("upstream", "proxy", "http://ann:secret@proxy.example.com:3128", "password of the proxy"),
        ("store", "redis_url", "redis://:secret@redis.example.com:6379/0", "rediss://"),
        ("store", "redis_url", "redis://redis.example.com", "Key hashes"),
        ("store", "blobs_url", "redis://redis.example.com", "GATEWAY_BLOBS_URL"),
        ("store", "redis_url", "redis+cluster://:secret@n,n.example.com/0", "add the option ssl"),
        ("store", "redis_url", "redis+sentinel://s,[2001:db8::1]/images", "at 2001:db8::1: add"),
        ("server", "public_url", "http://images.example.com", "signatures"),
        ("rehost", "allow", "images.example.com, 10.0.0.0/8", "from images.example.com, where"),
        ("rehost", "allow", "0.0.0.0/0", "0.0.0.0/0"),
        ("rehost", "allow", "::/0", "::/0"),
        ("rehost", "allow", "10.0.0.0/7", "10.0.0.0/7"),
        ("rehost", "allow", "8.8.8.8:8080", "8.8.8.8:8080"),
        ("tracing", "endpoint", "http://collector.example.com:4318", "collector's headers"),
    ],
)
def test_a_plain_connection_to_the_internet_is_named_without_its_secret(
    section: str, setting: str, url: str, words: str
) -> None:
    found = warned(**{section: {setting: url}})
    assert found.keys() == {f"{section}.{setting}"}
    assert words in found[f"{section}.{setting}"]
    assert "secret" not in str(found)


@each_row(
    ("section", "setting", "url"),
    [
        ("upstream", "base_url", "https://api.example.com/v1"),
        ("upstream", "base_url", "http://localhost:9000/v1"),
        ("upstream", "base_url", "http://ollama:9000/v1"),
        ("upstream", "base_url", "http://[fd00::1]:9000/v1"),
        ("upstream", "proxy", "http://proxy.example.com:3128"),
        ("upstream", "proxy", "http://ann:secret@proxy:3128"),
        ("store", "redis_url", "rediss://:secret@redis.example.com"),
        ("store", "redis_url", "redis://:secret@redis:6379/0"),
        ("store", "redis_url", "redis+cluster://:secret@n.example.com/0?ssl=true"),
        ("store", "redis_url", "redis+sentinel://:secret@s1,[fd00::1],10.0.0.1/images"),
        ("store", "blobs_url", "file:///srv/blobs.example.com"),
        ("server", "public_url", "https://images.example.com"),
        ("server", "public_url", "http://gateway:8080"),
        ("tracing", "endpoint", "http://collector:4318"),
        ("tracing", "endpoint", "https://collector.example.com"),
        ("rehost", "allow", "images.internal, 10.0.0.0/8, fd00::/8, [::1]:80, 192.168.1.1:80"),
    ],
)
def test_an_encrypted_or_private_connection_is_fine(section: str, setting: str, url: str) -> None:
    assert warned(**{section: {setting: url}}) == {}


def test_links_to_http_are_named_if_the_server_speaks_tls() -> None:
    found = warned(server={"public_url": "http://gateway:8080", "tls": TLS_SETTINGS})
    assert "speaks TLS" in found["server.public_url"]


async def test_serve_logs_each_warning_once_for_all_workers(tmp_path: Path) -> None:
    options = {
        "server": {"listen": "0.0.0.0:0", "admin_listen": "127.0.0.1:0"},
        "rehost": {"allow": "images.example.com"},
    }
    async with (
        run_upstream() as upstream,
        run_processes(tmp_path, upstream.base_url, workers=2, options=options) as (processes, _),
    ):
        logged = processes.log("plain")
    found = sorted((line["check"], line["level"]) for line in logged)
    assert found == [("rehost.allow", "warning"), ("server.listen", "warning")]
