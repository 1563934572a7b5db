"""Signed links: nothing but the link itself opens an image, in exactly its own spelling."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from gateway.access.signing import SigningKeys
from tests.gateways import run_upstream
from tests.http.image_links import KID, SECRET, Album, open_album
from tests.raw_http import talk
from tests.rows import each_row

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def album(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Album]:
    folder: Path = tmp_path_factory.mktemp("links")
    async with run_upstream() as upstream, open_album(folder, upstream) as opened:
        yield opened


PARTS = ("kid", "exp", "sig")
"""Of the folder between `/images` and the image's name, divided by dots."""


def part(link: str, name: str) -> str:
    return link.split("/")[2].split(".")[PARTS.index(name)]


def swap(name: str, change: Callable[[str], str]) -> Callable[[str], str]:
    """Changes one part of the signed folder."""

    def forge(link: str) -> str:
        _, images, folder, *rest = link.split("/")
        parts = folder.split(".")
        parts[PARTS.index(name)] = change(parts[PARTS.index(name)])
        return "/".join(("", images, ".".join(parts), *rest))

    return forge


def _flip(text: str, at: int) -> str:
    """Replaces one character of base64 by another."""
    return text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]


def _mac(value: str) -> bytes:
    return base64.urlsafe_b64decode(value + "=")


def _forgeries() -> Iterator[tuple[str, Callable[[str], str]]]:
    for at in range(0, 43, 6):
        yield f"character {at} of the signature", swap("sig", lambda sig, at=at: _flip(sig, at))  # type: ignore[misc]
    yield (
        "the last bits of the signature",
        swap("sig", lambda sig: sig[:-1] + chr(ord(sig[-1]) + 1)),
    )
    yield "the signature padded", swap("sig", lambda sig: sig + "=")
    yield "the signature in standard base64", swap("sig", lambda sig: sig.replace("-", "+") + "%3D")
    yield "the signature in hex", swap("sig", lambda sig: _mac(sig).hex())
    yield "half of the signature", swap("sig", lambda sig: sig[:21])
    yield "one character of the signature", swap("sig", lambda sig: sig[:1])
    yield "no signature", swap("sig", lambda _: "")
    yield "the signature in upper case", swap("sig", str.upper)
    yield "a NUL behind the signature", swap("sig", lambda sig: sig + "%00")
    yield "a later expiry", swap("exp", lambda exp: str(int(exp) + 1))
    yield "an earlier expiry", swap("exp", lambda exp: str(int(exp) - 1))
    yield "an endless expiry", swap("exp", lambda _: "9" * 19)
    yield "a negative expiry", swap("exp", lambda exp: "-" + exp)
    yield "an expiry with a zero before", swap("exp", lambda exp: "0" + exp)
    yield "an expiry with a plus", swap("exp", lambda exp: "+" + exp)
    yield "an expiry with a fraction", swap("exp", lambda exp: exp + ".0")
    yield "an expiry with an exponent", swap("exp", lambda _: "1e12")
    yield "no expiry", swap("exp", lambda _: "")
    yield "another key id", swap("kid", lambda kid: kid + "x")
    yield "no key id", swap("kid", lambda _: "")
    yield "a key id as a path", swap("kid", lambda kid: "../" + kid)
    yield "the signature dropped", _folder(lambda parts: ".".join(parts[:2]))
    yield "the key id dropped", _folder(lambda parts: ".".join(parts[1:]))
    yield "the expiry dropped", _folder(lambda parts: ".".join(parts[::2]))
    yield "the folder dropped", lambda link: "/images/" + link.rpartition("/")[2]
    yield "the folder repeated", _folder(lambda parts: "/".join([".".join(parts)] * 2))
    yield "a later expiry behind", _folder(lambda parts: ".".join([*parts, "9999999999"]))
    yield "a later expiry before", _folder(lambda parts: ".".join(["9999999999", *parts]))
    yield "the parts in another order", _folder(lambda parts: ".".join(parts[::-1]))
    yield "the parts in a query", _as_query
    yield "a dot behind", _folder(lambda parts: ".".join([*parts, ""]))
    yield "a dot before", _folder(lambda parts: ".".join(["", *parts]))
    yield "doubled dots", _folder("..".join)
    yield "escaped dots", _folder("%2E".join)
    yield "slashes for dots", _folder("/".join)
    yield "an escaped slash", lambda link: link.replace("/img-", "%2Fimg-")
    yield "the folder in lower case", _folder(lambda parts: ".".join(parts).lower())
    yield "an escaped query", lambda link: link + "%3Fx=1"
    yield "a fragment behind", lambda link: link + "#x"
    yield "a fragment before a query", lambda link: link + "#?x"
    yield "another format", lambda link: link.replace(".png", ".jpeg")
    yield "no format", lambda link: link.replace(".png", "")
    yield "the format in upper case", lambda link: link.replace(".png", ".PNG")
    yield "another id", lambda link: _flip(link, link.index("img-") + len("img-"))
    yield "a longer id", lambda link: link.replace(".png", "A.png")
    yield "an escaped letter of the path", lambda link: link.replace("/images", "/%69mages")
    yield "an escaped dot", lambda link: link.replace(".png", "%2Epng")
    yield "a doubled slash", lambda link: link.replace("/images/", "/images//")
    yield "a dot segment", lambda link: link.replace("/images/", "/images/./")
    yield "two dot segments", lambda link: link.replace("/images/", "/images/../images/")
    yield "a slash behind the path", lambda link: link.replace(".png", ".png/")
    yield "a path parameter", lambda link: link.replace(".png", ".png;x")
    yield "a NUL in the path", lambda link: link.replace(".png", "%00.png")
    yield "a traversal in the id", lambda link: link.replace("img-", "img-../")
    yield "an escaped traversal", lambda link: link.replace("img-", "img-%2e%2e%2f")
    yield "a prefix before the path", lambda link: "/v1" + link
    yield "the path in upper case", lambda link: link.replace("/images", "/IMAGES")


def _folder(change: Callable[[list[str]], str]) -> Callable[[str], str]:
    """Replaces the signed folder by what `change` makes of its parts."""

    def forge(link: str) -> str:
        _, images, folder, name = link.split("/")
        return "/".join(("", images, change(folder.split(".")), name))

    return forge


def _as_query(link: str) -> str:
    kid, exp, sig = (part(link, name) for name in PARTS)
    return f"/images/{link.rpartition('/')[2]}?exp={exp}&kid={kid}&sig={sig}"


FORGERIES = dict(_forgeries())


@each_row("name", FORGERIES)
async def test_a_forged_link_opens_nothing(album: Album, name: str) -> None:
    forged = FORGERIES[name](album.path)
    assert forged != album.path

    request = f"GET {forged} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    reply = (await talk(album.gateway.client, request)).reply

    # A fragment never belongs to a request (RFC 9112 §3.2), and other paths are unknown.
    assert reply.status in (400, 403, 404)
    assert album.data not in reply.body
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert album.signature.encode() not in reply.body


SIGNED_BY_OTHERS = {
    "another secret of the same id": SigningKeys([(KID, b"a secret that somebody guessed")]),
    "an empty secret": SigningKeys([(KID, b"")]),
    "the secret with a line end": SigningKeys([(KID, SECRET.encode() + b"\n")]),
    "the right secret under another id": SigningKeys([("other", SECRET.encode())]),
}


@pytest.mark.parametrize("name", SIGNED_BY_OTHERS)
async def test_a_link_that_is_signed_by_another_key_opens_nothing(album: Album, name: str) -> None:
    forged = SIGNED_BY_OTHERS[name].sign(album.unsigned_path, expires_at=album.expires_at)
    reply = await album.show(forged)

    assert (reply.status, reply.error["code"]) == (403, "link_invalid")


async def test_an_expired_link_opens_nothing(album: Album) -> None:
    reply = await album.show(album.sign(ttl_seconds=-1))

    assert (reply.status, reply.error["code"]) == (403, "link_expired")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_a_link_can_only_be_read(album: Album, method: str) -> None:
    assert (await album.show(method=method)).status == 405
    assert (await album.show()).body == album.data
