"""The origins of `server.cors_origins`, as browsers send them."""

import pytest

from gateway.configuration.origins import parse_origins
from tests.rows import each_row

KEPT = {
    "https://app.example.com": "https://app.example.com",
    "HTTPS://App.Example.COM": "https://app.example.com",
    "https://app.example.com:443": "https://app.example.com",
    "http://app.example.com:80": "http://app.example.com",
    "http://app.example.com:443": "http://app.example.com:443",
    "https://app.example.com/": "https://app.example.com",
    "http://localhost:3000": "http://localhost:3000",
    "http://localhost:03000": "http://localhost:3000",
    "http://intranet": "http://intranet",
    "http://127.0.0.1:5173": "http://127.0.0.1:5173",
    "http://[::1]:5173": "http://[::1]:5173",
    "http://[0:0:0:0:0:0:0:1]": "http://[::1]",
    "http://[2001:DB8::0:1]:80": "http://[2001:db8::1]",
    "https://bücher.example": "https://xn--bcher-kva.example",
    "https://BÜCHER.example:8443": "https://xn--bcher-kva.example:8443",
    "https://faß.example": "https://xn--fa-hia.example",
    "https://例え.テスト": "https://xn--r8jz45g.xn--zckzah",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "https://a_b.example": "https://a_b.example",
    "chrome-extension://abcdefghijklmnop": "chrome-extension://abcdefghijklmnop",
    "moz-extension://0b7c-11": "moz-extension://0b7c-11",
    "capacitor://localhost": "capacitor://localhost",
    "app://obsidian.md": "app://obsidian.md",
}
REFUSED = [
    *("*", "null", "NULL", "https://*.example.com", "https://*", "app.example.com"),
    *("localhost:3000", "//app.example.com", "https://", "https:", "https:///", "://a.example"),
    *(
        "https://a.example/path",
        "https://a.example//",
        "https://a.example?x",
        "https://a.example#x",
    ),
    *(
        "https://user@a.example",
        "https://u:p@a.example",
        "https://a.example:",
        "https://a.example:x",
    ),
    *("https://a.example:0", "https://a.example:65536", "https://a.example:-1"),
    *("ftp://a.example", "ws://a.example", "file:///x", "data:text/html", "javascript:alert(1)"),
    *("https://a b.example", "https://a..example", "https://.a.example", "https://a%2e.example"),
    *("http://127.1", "http://1.2.3.4.5", "http://256.0.0.1", "http://[::1", "http://[::1]x"),
    *("http://[fe80::1%25eth0]", "http://[zz::1]", "https://a.example\\", "https://a.exa\nmple"),
    *("https://a.example; https://b.example", "https://a.example https://b.example"),
    *("chrome-extension://abc:80", "https://" + "a" * 64 + ".example", "https://a.example\r\nX: y"),
]


@each_row("given", KEPT)
def test_an_origin_is_kept_as_browsers_send_it(given: str):
    assert parse_origins(given) == (KEPT[given],)
    assert parse_origins([given]) == (KEPT[given],)
    assert parse_origins(KEPT[given]) == (KEPT[given],)


@each_row("given", REFUSED)
def test_anything_else_is_refused_and_the_form_is_named(given: str):
    with pytest.raises(ValueError, match=r"scheme://host:port, such as https://app\.example\.com"):
        parse_origins(f"https://good.example,{given}")


@pytest.mark.parametrize("given", [3, True, {"a": "https://a.example"}, ["https://a.example", 4]])
def test_origins_are_text_or_a_list_of_texts(given: object):
    with pytest.raises(ValueError, match="scheme://host"):
        parse_origins(given)


def test_several_origins_stand_in_a_list_or_between_commas():
    expected = ("https://a.example", "http://localhost:3000")

    assert parse_origins(" https://a.example , http://localhost:3000,, https://A.example:443") == (
        expected
    )
    assert parse_origins(["https://a.example", "http://localhost:3000/"]) == expected
    assert parse_origins("") == parse_origins([]) == ()
