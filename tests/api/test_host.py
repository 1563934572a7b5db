"""Which hosts are valid: RFC 9112 §3.2 and RFC 3986 §3.2.2."""

from __future__ import annotations

from gateway.api.http.host import is_valid_authority
from tests.rows import each_row

VALID = [
    *(
        "a",
        "localhost",
        "images.example.com",
        "EXAMPLE.com",
        "example.com.",
        "under_score.internal",
    ),
    *("127.0.0.1", "127.0.0.1:8080", "gateway:1", "gateway:65535", "gateway:00080"),
    *("[::1]", "[::1]:8080", "[2001:db8::7]:443", "[::ffff:192.0.2.1]", "xn--bcher-kva.example"),
    *("a%20b", "it's", "a" * 255, "~a!$&()*+,;=-"),
]
INVALID = [
    *("", " ", ":", ":80", "a:", "a:0", "a:65536", "a:123456", "a:-1", "a:+1", "a:8o", "a: 80"),
    *("a b", "a\tb", "a/b", "/", "a\\b", "a?b", "a#b", "user@a", "user:secret@a", "@a", "a@"),
    *("http://a", "//a", "a,b:1,c:2", "a:1:2", "::1", "[::1", "::1]", "[::1]x", "[::1]:", "[]"),
    *("[1.2.3.4]", "[g::1]", "[:::1]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "[v1.x]", "[a]"),
    *('a"b', "a<b", "a>b", "a{b}", "a|b", "a^b", "a`b", "a%", "a%2", "a%zz", "a" * 256),
    *("bücher.example", "a\udcff", "\udcff", "ａ", "a：80", "a:٨٠", "a\x00", "a\x7f", "a\n"),
    *("a\r\nX: y", "a:80\n", "[::1]:٨"),
]


@each_row("authority", VALID)
def test_a_valid_host_is_accepted(authority: str) -> None:
    assert is_valid_authority(authority)


@each_row("authority", INVALID, ids=ascii)
def test_an_invalid_host_is_refused(authority: str) -> None:
    assert not is_valid_authority(authority)
