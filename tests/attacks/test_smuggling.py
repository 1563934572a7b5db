"""Request smuggling: shapes of HTTP that two readers could understand differently.

Each row is sent on a connection of its own, followed by a complete second request. If the framing
is ambiguous or malformed (RFC 9112), the gateway refuses it with one response and closes the
connection, so the second request is never answered. If the framing is valid, the gateway reads
exactly the body that the RFC says. In neither case is the prompt inside the body bought.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from tests.gateways import USUAL, Client, make_settings, run_gateway, run_upstream
from tests.http.conftest import Shared
from tests.raw_http import talk

in_module = pytest.mark.asyncio(loop_scope="module")

NEXT = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""The second request: it is answered only if the first one was read in full."""


def body(prompt: str) -> bytes:
    return json.dumps({**USUAL, "prompt": prompt}).encode()


def smuggled(client: Client, prompt: str) -> bytes:
    """A whole request, which is bought if the gateway reads it as one."""
    inner = body(f"smuggled, {prompt}")
    return (
        b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\n"
        + f"Authorization: Bearer {client.secret}\r\n".encode()
        + b"Content-Type: application/json\r\n"
        + f"Content-Length: {len(inner)}\r\n\r\n".encode()
        + inner
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shared]:
    """A gateway that waits half a second for the rest of a head or body."""
    folder = tmp_path_factory.mktemp("smuggling")
    async with run_upstream() as upstream:
        settings = make_settings(folder, upstream.base_url, server={"read_timeout": "0.5s"})
        async with run_gateway(settings) as opened:
            yield Shared(opened, upstream, await opened.client.with_key("alice"))


def post(
    *lines: bytes,
    content: bytes = b"",
    start: bytes = b"POST /v1/images/generations HTTP/1.1",
) -> bytes:
    """An image request; `{key}` in it becomes the key, and `{…}` the parts of `fill`."""
    own = (b"Host: x", b"Authorization: Bearer {key}", b"Content-Type: application/json")
    return b"\r\n".join((start, *own, *lines, b"", b"")) + content


def fill(request: bytes, client: Client, prompt: str) -> bytes:
    """Replaces the parts of a row that depend on the test."""
    honest = body(prompt)
    parts = {
        b"{key}": client.secret.encode(),
        b"{body}": honest,
        b"{length}": str(len(honest)).encode(),
        b"{hex}": f"{len(honest):x}".encode(),
        b"{smuggled}": smuggled(client, prompt),
    }
    for name, value in parts.items():
        request = request.replace(name, value)
    return request


CHUNKED = b"Transfer-Encoding: chunked"
LENGTH = b"Content-Length: {length}"
ONE_CHUNK = b"{hex}\r\n{body}\r\n0\r\n\r\n"
EMPTY_CHUNKS = b"0\r\n\r\n{smuggled}"


def _two_framings() -> Mapping[str, bytes]:
    """Content-Length and Transfer-Encoding at once: RFC 9112 §6.1."""
    return {
        "length, then chunked": post(LENGTH, CHUNKED, content=EMPTY_CHUNKS),
        "chunked, then length": post(CHUNKED, LENGTH, content=EMPTY_CHUNKS),
        "length 0, then chunked": post(b"Content-Length: 0", CHUNKED, content=ONE_CHUNK),
        "chunked, then length 0": post(CHUNKED, b"Content-Length: 0", content=ONE_CHUNK),
        "both in other case": post(
            b"content-length: 5", b"transfer-encoding: CHUNKED", content=EMPTY_CHUNKS
        ),
        "length, then two codings": post(
            LENGTH, b"Transfer-Encoding: gzip, chunked", content=EMPTY_CHUNKS
        ),
        "length, then identity": post(LENGTH, b"Transfer-Encoding: identity", content=EMPTY_CHUNKS),
        "both, without any body": post(LENGTH, CHUNKED, content=b"0\r\n\r\n"),
    }


def _codings() -> Mapping[str, bytes]:
    """Transfer-Encoding that is not exactly `chunked`: RFC 9112 §6.1, §7."""
    values = {
        "identity": b"identity",
        "gzip": b"gzip",
        "unknown": b"xchunked",
        "chunked first": b"chunked, gzip",
        "chunked, then identity": b"chunked, identity",
        "gzip, then chunked": b"gzip, chunked",
        "identity, then chunked": b"identity, chunked",
        "chunked twice": b"chunked, chunked",
        "quoted": b'"chunked"',
        "single quotes": b"'chunked'",
        "a parameter": b"chunked;q=1",
        "a trailing semicolon": b"chunked;",
        "an inner space": b"chun ked",
        "a trailing letter": b"chunkedx",
        "a vertical tab before": b"\x0bchunked",
        "a vertical tab after": b"chunked\x0b",
        "a form feed": b"\x0cchunked",
        "a NUL": b"chunked\x00",
        "a backspace": b"chunked\x08",
        "a non-breaking space": b"\xa0chunked",
        "a byte above ASCII": b"chunked\xff",
        "a Kelvin sign": "chun\u212aed".encode(),
        "empty": b"",
        "a comma": b",",
        "two lines of it": b"chunked\r\nTransfer-Encoding: chunked",
        "two different lines": b"chunked\r\nTransfer-Encoding: identity",
        "chunked last in two lines": b"gzip\r\nTransfer-Encoding: chunked",
        "folded": b"\r\n chunked",
        "folded with a tab": b"\r\n\tchunked",
        "continued": b"chunked\r\n , identity",
    }
    rows = {
        f"coding: {name}": post(b"Transfer-Encoding: " + value, content=EMPTY_CHUNKS)
        for name, value in values.items()
    }
    rows["coding in HTTP/1.0"] = post(
        CHUNKED, start=b"POST /v1/images/generations HTTP/1.0", content=EMPTY_CHUNKS
    )
    return rows


def _lengths() -> Mapping[str, bytes]:
    """Content-Length that is not exactly one number: RFC 9110 §8.6, RFC 9112 §6.3."""
    values = {
        "twice, different": b"{length}\r\nContent-Length: 0",
        "twice, equal": b"{length}\r\nContent-Length: {length}",
        "a list of two": b"{length}, 0",
        "a list of equals": b"{length}, {length}",
        "a plus": b"+{length}",
        "a minus": b"-1",
        "minus zero": b"-0",
        "hexadecimal": b"0x10",
        "an exponent": b"1e2",
        "a decimal": b"5.0",
        "an underscore": b"1_0",
        "an inner space": b"1 0",
        "a semicolon": b"5;",
        "a letter after": b"5x",
        "a NUL": b"5\x00",
        "a vertical tab": b"\x0b5",
        "a form feed": b"5\x0c",
        "a byte above ASCII": b"5\xb2",
        "Arabic digits": "\u0665".encode(),
        "full-width digits": "\uff15".encode(),
        "empty": b"",
        "a comma": b",",
        "quoted": b'"5"',
        "beyond 64 bits": b"18446744073709551617",
        "a thousand digits": b"9" * 1000,
        "folded": b"\r\n 5",
    }
    return {
        f"length: {name}": post(b"Content-Length: " + value, content=b"{body}{smuggled}")
        for name, value in values.items()
    }


def _chunks() -> Mapping[str, bytes]:
    """Chunks that are not `size CRLF data CRLF`: RFC 9112 §7.1."""
    contents = {
        "a leading space": b" {hex}\r\n{body}\r\n0\r\n\r\n",
        "0x": b"0x{hex}\r\n{body}\r\n0\r\n\r\n",
        "a plus": b"+{hex}\r\n{body}\r\n0\r\n\r\n",
        "a minus": b"-{hex}\r\n{body}\r\n0\r\n\r\n",
        "an underscore": b"0_{hex}\r\n{body}\r\n0\r\n\r\n",
        "a letter": b"{hex}g\r\n{body}\r\n0\r\n\r\n",
        "empty size": b"\r\n{body}\r\n0\r\n\r\n",
        "beyond 64 bits": b"1000000000000000{hex}\r\n{body}\r\n0\r\n\r\n",
        "a size of 300 digits": b"0" * 300 + b"fffffffffffffffff\r\n{body}\r\n0\r\n\r\n",
        "a NUL in the size": b"{hex}\x00\r\n{body}\r\n0\r\n\r\n",
        "a bare LF after the size": b"{hex}\n{body}\r\n0\r\n\r\n",
        "a bare CR after the size": b"{hex}\r{body}\r\n0\r\n\r\n",
        "a bare LF after the data": b"{hex}\r\n{body}\n0\r\n\r\n",
        "no line end after the data": b"{hex}\r\n{body}0\r\n\r\n",
        "two bytes too many": b"{hex}\r\n{body}XX\r\n0\r\n\r\n",
        "a bare LF after the last size": b"{hex}\r\n{body}\r\n0\n\r\n{smuggled}",
        "a bare LF in an extension": b"{hex};a\nb\r\n{body}\r\n0\r\n\r\n",
        "a bare CR in an extension": b"{hex};a\rb\r\n{body}\r\n0\r\n\r\n",
        "a NUL in an extension": b"{hex};a\x00b\r\n{body}\r\n0\r\n\r\n",
        "no size at all": b"{body}\r\n0\r\n\r\n",
        "a size of minus zero": b"-0\r\n\r\n{smuggled}",
        "full-width digits": "\uff10\r\n\r\n".encode() + b"{smuggled}",
        "a trailer without a colon": b"{hex}\r\n{body}\r\n0\r\nnothing\r\n\r\n",
        "a trailer with a space in its name": b"{hex}\r\n{body}\r\n0\r\na b: c\r\n\r\n",
        "a trailer with a bare LF": b"{hex}\r\n{body}\r\n0\r\na: b\nc: d\r\n\r\n",
        "a length in a trailer": b"{hex}\r\n{body}\r\n0\r\nContent-Length: 9999\r\n\r\n",
        "a coding in a trailer": b"{hex}\r\n{body}\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "a trailer with a NUL": b"{hex}\r\n{body}\r\n0\r\na: b\x00\r\n\r\n",
    }
    return {f"chunks: {name}": post(CHUNKED, content=content) for name, content in contents.items()}


def _names() -> Mapping[str, bytes]:
    """Header lines that only some readers take for a framing header: RFC 9112 §5."""
    lines = {
        "a space before the colon": b"Transfer-Encoding : chunked",
        "a tab before the colon": b"Transfer-Encoding\t: chunked",
        "a space before the colon of a length": b"Content-Length : 5",
        "a space inside": b"Transfer Encoding: chunked",
        "a NUL inside": b"Transfer-Encoding\x00: chunked",
        "a NUL before": b"\x00Transfer-Encoding: chunked",
        "a vertical tab after": b"Transfer-Encoding\x0b: chunked",
        "a byte above ASCII": b"Transfer-Encoding\xff: chunked",
        "a DEL": b"Content-Length\x7f: 5",
        "no name": b": chunked",
        "no colon": b"Transfer-Encoding chunked",
        "a bare LF before it": b"X: y\nTransfer-Encoding: chunked",
        "a bare CR before it": b"X: y\rTransfer-Encoding: chunked",
        "a CR CR LF before it": b"X: y\r\r\nTransfer-Encoding: chunked",
        "a NUL in another value": b"X: y\x00Transfer-Encoding: chunked",
        "folded behind another": b"X: y\r\n Transfer-Encoding: chunked",
        "quotes": b'"Transfer-Encoding": chunked',
        "a bracket": b"(Transfer-Encoding): chunked",
    }
    return {
        f"name: {name}": post(line, LENGTH, content=b"{body}{smuggled}")
        for name, line in lines.items()
    }


def _starts() -> Mapping[str, bytes]:
    """Request lines that only some readers accept: RFC 9112 §3."""
    lines = {
        "a tab": b"POST\t/v1/images/generations\tHTTP/1.1",
        "a leading space": b" POST /v1/images/generations HTTP/1.1",
        "no version": b"POST /v1/images/generations",
        "HTTP/0.9": b"POST /v1/images/generations HTTP/0.9",
        "HTTP/2.0": b"POST /v1/images/generations HTTP/2.0",
        "HTTP/1.10": b"POST /v1/images/generations HTTP/1.10",
        "HTTP/1": b"POST /v1/images/generations HTTP/1",
        "http/1.1": b"POST /v1/images/generations http/1.1",
        "HTTP/ 1.1": b"POST /v1/images/generations HTTP/ 1.1",
        "HTTP/1.1 and more": b"POST /v1/images/generations HTTP/1.1 x",
        "two versions": b"POST /v1/images/generations HTTP/1.1 HTTP/1.0",
        "a NUL in the path": b"POST /v1/images/generations\x00 HTTP/1.1",
        "a bare CR in the path": b"POST /v1/images/generations\r HTTP/1.1",
        "a byte above ASCII in the path": b"POST /v1/images/generations\xff HTTP/1.1",
        "a method with a colon": b"PO:ST /v1/images/generations HTTP/1.1",
        "a method above ASCII": b"PO\xc3\x9fT /v1/images/generations HTTP/1.1",
        "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    }
    return {
        f"start: {name}": post(LENGTH, start=line, content=b"{body}{smuggled}")
        for name, line in lines.items()
    }


REFUSED = {
    **_two_framings(),
    **_codings(),
    **_lengths(),
    **_chunks(),
    **_names(),
    **_starts(),
}
"""Ambiguous or malformed: one response, the connection is closed, nothing is bought."""

READ = {
    "a length": post(LENGTH, content=b"{body}"),
    "a length with leading zeros": post(b"Content-Length: 000{length}", content=b"{body}"),
    "a length with spaces around": post(b"Content-Length:  {length}  ", content=b"{body}"),
    "a length with tabs around": post(b"Content-Length:\t{length}\t", content=b"{body}"),
    "a length in other case": post(b"cOnTeNt-LeNgTh: {length}", content=b"{body}"),
    "one chunk": post(CHUNKED, content=ONE_CHUNK),
    "chunked in other case": post(b"transfer-ENCODING: ChUnKeD", content=ONE_CHUNK),
    "chunked with a tab before": post(b"Transfer-Encoding:\tchunked", content=ONE_CHUNK),
    "chunked with spaces after": post(b"Transfer-Encoding: chunked  ", content=ONE_CHUNK),
    "a chunk size in upper case with zeros": post(
        CHUNKED, content=b"000{hex}\r\n{body}\r\n000\r\n\r\n"
    ),
    "a chunk extension": post(CHUNKED, content=b"{hex};a=b\r\n{body}\r\n0;c\r\n\r\n"),
    "a quoted chunk extension": post(CHUNKED, content=b'{hex};a="b"\r\n{body}\r\n0\r\n\r\n'),
    "a trailer": post(CHUNKED, content=b"{hex}\r\n{body}\r\n0\r\nX-Sum: 1\r\n\r\n"),
    "a key in a trailer": post(
        CHUNKED, content=b"{hex}\r\n{body}\r\n0\r\nAuthorization: Bearer x\r\n\r\n"
    ),
    "TE is no framing": post(b"TE: chunked", LENGTH, content=b"{body}"),
    "an underscore is another name": post(b"Transfer_Encoding: chunked", LENGTH, content=b"{body}"),
    "a length named by Connection": post(b"Connection: Content-Length", LENGTH, content=b"{body}"),
    "a coding named by Connection": post(
        b"Connection: Transfer-Encoding", LENGTH, content=b"{body}"
    ),
    "an override of the method": post(b"X-HTTP-Method-Override: GET", LENGTH, content=b"{body}"),
    "an override of the path": post(
        b"X-Original-URL: /admin/keys", b"X-Rewrite-URL: /admin/keys", LENGTH, content=b"{body}"
    ),
    "two spaces in the request line": post(
        LENGTH, start=b"POST  /v1/images/generations HTTP/1.1", content=b"{body}"
    ),
    "a blank line before": b"\r\n" + post(LENGTH, content=b"{body}"),
}
"""Valid: the body is exactly what the framing says, and the next request is answered."""


@in_module
@pytest.mark.parametrize("name", REFUSED)
async def test_an_ambiguous_request_is_refused_and_the_connection_closed(
    shared: Shared, name: str
) -> None:
    prompt = f"refused: {name}"

    raw = await talk(shared.alice, fill(REFUSED[name], shared.alice, prompt) + NEXT)

    assert raw.was_closed
    (status,) = [reply.status for reply in raw.replies]
    assert 400 <= status < 600
    assert set(raw.reply.error) == {"message", "type", "param", "code"}
    assert await shared.sent(prompt) == []
    assert await shared.sent(f"smuggled, {prompt}") == []


@in_module
@pytest.mark.parametrize("name", READ)
async def test_a_valid_framing_gives_exactly_its_body(shared: Shared, name: str) -> None:
    prompt = f"read: {name}"

    raw = await talk(shared.alice, fill(READ[name], shared.alice, prompt) + NEXT)

    assert [reply.status for reply in raw.replies] == [200, 200]
    assert [sent["prompt"] for sent in await shared.sent(prompt)] == [prompt]
    assert await shared.sent(f"smuggled, {prompt}") == []


def test_the_table_has_every_shape_that_held() -> None:
    """130 shapes were tried when the gateway was attacked. The table may only grow."""
    assert len(REFUSED) + len(READ) >= 130
    assert not re.search(rb"\{\w+\}", fill(b"".join(READ.values()), Client("", None), ""))  # type: ignore[arg-type]
