"""`GET /images/…`: a link serves its image, as nginx serves a file."""

from __future__ import annotations

import asyncio
import base64
import html
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
import pytest_asyncio
from yarl import URL

from gateway.api.http import sending
from tests.gateways import (
    ADMIN_TOKEN,
    Client,
    InProcess,
    Reply,
    needs_asyncio_that_pauses,
    run_upstream,
)
from tests.http.image_links import Album, open_album, request
from tests.waiting import GENEROUS_SECONDS, eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "abcdefghijklmnopqrstuvwx"
LARGE = random.Random(1).randbytes(3_000_000)
"""More than a socket accepts at once."""
HUGE_BYTES = 40_000_000
"""More than all buffers between two sockets hold."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def album(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Album]:
    folder: Path = tmp_path_factory.mktemp("album")
    async with run_upstream() as upstream, open_album(folder, upstream) as opened:
        yield opened


def assert_refused(reply: Reply, status: int, code: str) -> None:
    """The response is an error of the gateway, in JSON, that no cache may store."""
    assert (reply.status, reply.error["code"]) == (status, code)
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["x-gateway-error-source"] == "gateway"
    assert reply.headers["x-request-id"].startswith("req_")
    assert "ETag" not in reply.headers


# ── the image ───────────────────────────────────────────────────────────────────────────────


async def test_a_link_serves_the_image_with_its_headers(album: Album) -> None:
    reply = await album.show()

    assert (reply.status, reply.body) == (200, album.data)
    expected = {
        "Content-Type": "image/png",
        "Content-Length": str(len(album.data)),
        "Content-Disposition": f'inline; filename="{album.name}"',
        "ETag": album.etag,
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Referrer-Policy": "no-referrer",
    }
    assert {name: reply.headers[name] for name in expected} == expected
    assert "Set-Cookie" not in reply.headers


@pytest.mark.parametrize("ttl_seconds", [60, 3600, 86_400])
async def test_a_client_may_cache_the_image_until_the_link_expires(
    album: Album, ttl_seconds: int
) -> None:
    reply = await album.show(album.sign(ttl_seconds=ttl_seconds))
    private, max_age, immutable = reply.headers["Cache-Control"].split(", ")

    assert (private, immutable) == ("private", "immutable")
    seconds = int(max_age.removeprefix("max-age="))
    assert ttl_seconds - GENEROUS_SECONDS <= seconds <= ttl_seconds


async def test_head_has_the_same_headers_without_the_image(album: Album) -> None:
    shown, head = await album.show(), await album.show(method="HEAD")
    changing = {"date", "x-request-id", "openai-processing-ms", "cache-control"}

    assert (head.status, head.body) == (200, b"")
    assert {n: v for n, v in head.headers.items() if n.lower() not in changing} == {
        n: v for n, v in shown.headers.items() if n.lower() not in changing
    }


@pytest.mark.parametrize(
    "authorization", ["Bearer gk-wrong", f"Bearer {ADMIN_TOKEN}", "Basic eDp5", "nonsense"]
)
async def test_a_key_beside_the_link_is_ignored(album: Album, authorization: str) -> None:
    """Open WebUI sends its key with every fetch."""
    reply = await album.show(Authorization=authorization, api_key="gk-wrong")
    assert (reply.status, reply.body) == (200, album.data)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
async def test_content_type_and_file_name_follow_the_format(album: Album, format: str) -> None:
    link = await album.add(f"a {format}".encode(), image_id=f"{format:x<24}", format=format)
    reply = await album.show(link)
    assert reply.status == 200
    assert reply.headers["Content-Type"] == f"image/{format}"
    assert reply.headers["Content-Disposition"].endswith(f'.{format}"')


async def test_a_large_image_is_served_whole_and_in_part(album: Album) -> None:
    link = await album.add(LARGE, image_id="L" * 24)
    whole = await album.show(link)
    part = await album.show(link, Range="bytes=1000000-2999998")

    assert (whole.status, whole.body == LARGE) == (200, True)
    assert (part.status, part.body == LARGE[1_000_000:2_999_999]) == (206, True)


@pytest.mark.asyncio(loop_scope="function")
async def test_links_work_on_both_stores(alice: Client, gateway: InProcess) -> None:
    reply = await alice.ask(model="dall-e-3", response_format="url")
    link = reply.json["data"][0]["url"].removeprefix(gateway.client.url)
    stored = await alice.ask(model="dall-e-3", response_format="b64_json")
    shown = await gateway.client.send("GET", link)
    assert (shown.status, shown.body) == (200, base64.b64decode(stored.images[0]))


# ── conditions ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', 'W/"a,b" ,W/{}', "*", " * "])
async def test_a_client_that_has_the_image_gets_304(album: Album, method: str, form: str) -> None:
    reply = await album.show(method=method, If_None_Match=form.format(album.etag))

    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["ETag"] == album.etag
    assert reply.headers["Cache-Control"].startswith("private, max-age=")
    assert not {"Content-Type", "Content-Length", "Content-Disposition"} & set(reply.headers)


@pytest.mark.parametrize("form", ['"other"', 'W/"other"', "{bare}", '"*"', "", '"{bare}'])
async def test_a_client_that_has_another_image_gets_200(album: Album, form: str) -> None:
    reply = await album.show(If_None_Match=form.format(bare=album.etag.strip('"')))
    assert (reply.status, reply.body) == (200, album.data)


@pytest.mark.parametrize(
    ("form", "status"),
    [("{}", 200), ("*", 200), ('"other", {}', 200), ('"other"', 412), ("W/{}", 412), ("x", 412)],
)
async def test_if_match_is_compared_strongly(album: Album, form: str, status: int) -> None:
    reply = await album.show(If_Match=form.format(album.etag))
    assert reply.status == status
    if status == 412:
        assert_refused(reply, 412, "precondition_failed")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"If_Match": '"other"', "If_None_Match": "{}"}, 412),
        ({"If_Match": "{}", "If_None_Match": "{}"}, 304),
        ({"If_None_Match": "{}", "Range": "bytes=0-1"}, 304),
        ({"If_None_Match": "{}", "Range": "bytes=99999999-"}, 304),
        ({"If_None_Match": '"other"', "Range": "bytes=0-1"}, 206),
        ({"If_Match": '"other"', "Range": "bytes=0-1"}, 412),
        ({"If_Match": "{}", "Range": "bytes=99999999-"}, 416),
        ({"If_Range": "{}", "Range": "bytes=0-1"}, 206),
        ({"If_Range": '"other"', "Range": "bytes=0-1"}, 200),
        ({"If_Range": "W/{}", "Range": "bytes=0-1"}, 200),
        ({"If_Range": "Wed, 21 Oct 2065 07:28:00 GMT", "Range": "bytes=0-1"}, 200),
        ({"If_Range": '"other"', "Range": "bytes=99999999-"}, 200),
        ({"If_Range": "{}"}, 200),
        # There is no modification date, so conditions on it are ignored.
        ({"If_Modified_Since": "Wed, 21 Oct 2065 07:28:00 GMT"}, 200),
        ({"If_Unmodified_Since": "Wed, 21 Oct 2015 07:28:00 GMT"}, 200),
    ],
)
async def test_conditions_are_evaluated_in_the_order_of_rfc_9110(
    album: Album, headers: dict[str, str], status: int
) -> None:
    reply = await album.show(**{n: v.format(album.etag) for n, v in headers.items()})
    assert reply.status == status
    if status == 200:
        assert reply.body == album.data


# ── ranges ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=10-", 10, None),
        ("bytes=0-", 0, None),
        ("bytes=-10", -10, None),
        ("bytes=-99999999", 0, None),
        ("bytes=5-99999999", 5, None),
        ("BYTES=007-9", 7, 10),
    ],
)
async def test_a_range_is_answered_with_that_part(
    album: Album, field: str, start: int, stop: int | None
) -> None:
    reply = await album.show(Range=field)
    part = range(len(album.data))[start:stop]

    assert (reply.status, reply.body) == (206, album.data[start:stop])
    assert reply.headers["Content-Range"] == f"bytes {part[0]}-{part[-1]}/{len(album.data)}"
    assert reply.headers["Content-Length"] == str(len(part))
    assert reply.headers["ETag"] == album.etag
    assert reply.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize(
    "field", ["bytes=0-1,5-6", "bytes=0-1,", "items=0-1", "bytes=2-1", "bytes=-", "bytes=a-b", "x"]
)
async def test_a_field_that_is_not_one_range_of_bytes_is_ignored(album: Album, field: str) -> None:
    reply = await album.show(Range=field)
    assert (reply.status, reply.body) == (200, album.data)
    assert "Content-Range" not in reply.headers


@pytest.mark.parametrize("field", ["bytes=99999999-", "bytes=-0", f"bytes={'9' * 30}-"])
async def test_a_range_beyond_the_end_is_refused_with_the_size(album: Album, field: str) -> None:
    reply = await album.show(Range=field)
    assert_refused(reply, 416, "range_not_satisfiable")
    assert reply.headers["Content-Range"] == f"bytes */{len(album.data)}"


async def test_head_ignores_ranges(album: Album) -> None:
    for field in ("bytes=0-1", "bytes=99999999-"):
        reply = await album.show(method="HEAD", Range=field)
        assert (reply.status, reply.headers["Content-Length"]) == (200, str(len(album.data)))
        assert "Content-Range" not in reply.headers


# ── refused links ───────────────────────────────────────────────────────────────────────────


async def test_an_expired_link_is_refused(album: Album) -> None:
    assert_refused(await album.show(album.sign(ttl_seconds=-1)), 403, "link_expired")


async def test_any_changed_character_of_a_link_is_refused(album: Album) -> None:
    """From `/images/` on; a change before that is another path."""
    first = len("/images/")
    for index in range(first, len(album.path)):
        other = "A" if album.path[index] != "A" else "B"
        changed = album.path[:index] + other + album.path[index + 1 :]
        assert_refused(await album.show(changed), 403, "link_invalid")


@pytest.mark.parametrize(
    "change",
    [
        (".png", "%2Epng"),
        ("img-", "img-%20"),
        (".png", ".webp"),
        (".png", ""),
        (".png", ".png/"),
        ("/img-", "%2Fimg-"),
        ("/img-", "//img-"),
        ("/img-", "/x/img-"),
        ("/test.", "//test."),
        ("/test.", "/./test."),
        ("/test.", "/%74est."),
        ("/test.", "/TEST."),
        ("/test.", "/other."),
        ("/test.", "/test..."),
        ("/test.", "/test.0"),
        ("/test.", "/test%2E"),
        ("/test.", "/"),
    ],
    ids=lambda change: f"{change[0]} {change[1]}",
)
async def test_another_spelling_of_a_link_is_refused(album: Album, change: tuple[str, str]) -> None:
    assert_refused(await album.show(album.path.replace(*change)), 403, "link_invalid")


@pytest.mark.parametrize("suffix", ["&", "&x=1", "=", "#top", "%00", "%3Fw=200", ";v=1", "/", "#?"])
async def test_a_link_with_a_suffix_is_refused(album: Album, suffix: str) -> None:
    received = await album.raw(request("GET", album.path + suffix, last=True))
    assert received.startswith(b"HTTP/1.1 403 ")
    assert b'"link_invalid"' in received


@pytest.mark.parametrize("query", ["?", "?w=200", "?exp=1&kid=x&sig=y", "??", "?a/../b#", "?%00"])
async def test_a_query_behind_a_link_is_ignored(album: Album, query: str) -> None:
    """Clients and content networks append one, for sizes or against caches."""
    sent = (request(method, album.path + query, last=True) for method in ("GET", "HEAD"))
    shown, head = [await album.raw(one) for one in sent]

    assert shown.startswith(b"HTTP/1.1 200 ")
    assert shown.endswith(b"\r\n\r\n" + album.data)
    assert head.startswith(b"HTTP/1.1 200 ")
    part = await album.raw(request("GET", album.path + query, "Range: bytes=0-3", last=True))
    assert part.startswith(b"HTTP/1.1 206 ")


@pytest.mark.parametrize(
    "cut",
    [
        lambda link: link.partition("?")[0],
        lambda link: re.match(r"[^?#]*", link)[0],
        lambda link: str(URL(link)),
        unquote,
        lambda link: quote(unquote(link)),
        lambda link: html.unescape(html.escape(link)),
        lambda link: re.search(r"/images/[\w./-]+\.png", f"![otter]({link})")[0],
    ],
)
async def test_a_link_survives_what_clients_do_with_it(
    album: Album, cut: Callable[[str], str]
) -> None:
    assert cut(album.path) == album.path
    assert (await album.show(cut(album.path))).body == album.data


async def test_no_line_of_the_log_has_a_links_signature(
    album: Album, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (album.path, album.path + "?x", album.path + "x", f"/v1{album.path}"):
        await album.show(path)
    await album.show(method="POST")
    client = album.gateway.client
    await client.admin(
        "POST", "/admin/cache/takedown", {"image": album.path.replace("img-", "img-0")}
    )
    logged = "".join(capsys.readouterr())

    assert logged.count("request_answered") >= 6
    assert album.signature not in logged


async def test_an_error_never_repeats_a_links_signature(album: Album) -> None:
    """Of a path that is no link either, or of a method that a link does not have."""
    for method, target, status in [
        ("POST", album.path, 405),
        ("GET", f"/prefix{album.path}", 404),
        ("GET", f"/v1{album.path}", 404),
        ("GET", f"/v1/images{album.path}%00", 404),
        ("GET", album.path.replace("/images", "/IMAGES"), 404),
        ("GET", album.path + "x", 403),
        ("POST", f"{album.path}?x={album.signature}", 405),
    ]:
        received = await album.raw(request(method, target, last=True))
        assert received.startswith(f"HTTP/1.1 {status} ".encode()), target
        assert album.signature.encode() not in received


@pytest.mark.parametrize(
    "path",
    [
        f"/images/img-{ID}.png",
        f"/images/img-{ID}.gif?exp=1&sig=2",
        f"/images/img-{ID}.png?exp=9999999999&kid=test&sig={'A' * 43}",
        f"/images/test/img-{ID}.png",
        f"/images/test.9999999999.{'A' * 43}/img-{ID}.png",
        f"/images/test.9999999999.{'A' * 43}",
        f"/images/test.9999999999.{'A' * 43}/",
    ],
)
async def test_a_link_without_a_signature_is_refused(album: Album, path: str) -> None:
    assert_refused(await album.show(path), 403, "link_invalid")
    head = await album.show(path, "HEAD")
    assert (head.status, head.headers["Cache-Control"], head.body) == (403, "no-store", b"")


async def test_an_unknown_image_is_not_found(album: Album) -> None:
    assert_refused(await album.show(album.sign(f"/images/img-{ID}.png")), 404, "image_not_found")


async def test_a_link_with_another_extension_is_not_found(album: Album) -> None:
    other = album.unsigned_path.replace(".png", ".webp")
    names = (other, f"{other}.png", other.removesuffix(".webp"), "/images/x.png", "/images/a")
    formats = (other.replace("webp", extension) for extension in ("gif", "svg"))
    for path in (*names, *formats):
        assert_refused(await album.show(album.sign(path)), 404, "image_not_found")


async def test_an_evicted_image_is_410(album: Album) -> None:
    link = await album.add(b"soon evicted", image_id="E" * 24)
    etag = (await album.show(link)).headers["ETag"]
    await album.evict(b"soon evicted")
    assert_refused(await album.show(link), 410, "image_gone")
    assert_refused(await album.show(link, If_None_Match=etag), 410, "image_gone")


async def test_other_methods_are_not_allowed(album: Album) -> None:
    for method in ("POST", "PUT", "DELETE"):
        reply = await album.show(method=method)
        assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD")


# ── the connection ──────────────────────────────────────────────────────────────────────────


async def test_after_responses_without_a_body_the_connection_is_usable(album: Album) -> None:
    received = await album.raw(
        request("HEAD", album.path),
        request("GET", album.path, f"If-None-Match: {album.etag}"),
        request("GET", album.path, "Range: bytes=0-3"),
        request("HEAD", album.path + "x"),
        request("GET", album.path, last=True),
    )
    statuses = re.findall(rb"HTTP/1\.1 (\d+) ", received)
    assert statuses == [b"200", b"304", b"206", b"403", b"200"]
    assert received.endswith(b"\r\n\r\n" + album.data)


async def count_served(album: Album) -> float:
    """The number of served images, by the metrics."""
    samples = await album.gateway.client.metrics()
    return sum(
        value
        for name, value in samples.items()
        if name.startswith('gateway_requests_total{endpoint="image"') and 'status="200"' in name
    )


@needs_asyncio_that_pauses
async def test_a_client_that_stops_reading_is_disconnected(
    album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "WRITE_STALL_SECONDS", 0.2)
    before = await count_served(album)
    link = await album.add(bytes(HUGE_BYTES), image_id="H" * 24)
    url = URL(album.gateway.client.url)
    reader, writer = await asyncio.open_connection(url.host, url.port, limit=1024)
    writer.write(request("GET", link).encode())

    async def is_counted() -> bool:
        return await count_served(album) > before

    await eventually(is_counted)
    received = 0
    with suppress(ConnectionResetError):
        while chunk := await reader.read(2**20):
            received += len(chunk)
    writer.close()
    assert received < HUGE_BYTES
    assert (await album.show(link, Range="bytes=-1")).body == bytes(1)


async def test_a_proxy_may_send_the_absolute_form(album: Album) -> None:
    """RFC 9112 §3.2.2: a server must accept it."""
    received = await album.raw(request("GET", f"http://images{album.path}", last=True))
    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(album.data)
    refused = await album.raw(request("GET", f"http://images/{album.path}", last=True))
    assert not refused.startswith(b"HTTP/1.1 200 ")


async def test_the_route_is_counted_in_the_metrics(album: Album) -> None:
    before = await count_served(album)
    await album.show()
    assert await count_served(album) == before + 1


async def test_a_links_lifetime_starts_with_the_response(album: Album) -> None:
    assert 86_400 - 60 <= album.expires_at - time.time() <= 86_400 * 25 / 24
