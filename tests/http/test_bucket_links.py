"""Links of a gateway whose images are in a bucket: served in parts, or by the bucket itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from gateway.configuration.settings import Settings
from gateway.imagefile.check import MEDIA_TYPES
from gateway.store.blobs.bucket import BucketBlobs
from tests.gateways import Reply, Upstream
from tests.http.image_links import Album, open_album

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'


@pytest.fixture
async def album(tmp_path: Path, upstream: Upstream, bucket_url: str) -> AsyncIterator[Album]:
    """A gateway that serves, and keeps nothing in memory."""
    given: dict[str, Any] = {"store": {"blobs_url": bucket_url}, "cache": {"memory_bytes": "0"}}
    async with open_album(tmp_path / "data", upstream, **given) as opened:
        yield opened


@pytest.fixture
async def redirecting(tmp_path: Path, upstream: Upstream, bucket_url: str) -> AsyncIterator[Album]:
    """A gateway that redirects."""
    given: dict[str, Any] = {"store": {"blobs_url": bucket_url}, "cache": {"links": "redirect"}}
    async with open_album(tmp_path / "data", upstream, **given) as opened:
        yield opened


@pytest.fixture(params=["serve", "redirect"])
async def either(
    request: pytest.FixtureRequest, tmp_path: Path, upstream: Upstream, bucket_url: str
) -> AsyncIterator[Album]:
    """A gateway of each kind, which keeps nothing in memory."""
    cache = {"links": request.param, "memory_bytes": "0"}
    given: dict[str, Any] = {"store": {"blobs_url": bucket_url}, "cache": cache}
    async with open_album(tmp_path / "data", upstream, **given) as opened:
        yield opened


class Reads:
    """What the gateway reads from the bucket."""

    def __init__(self, album: Album, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        read = BucketBlobs._get

        async def count(blobs: BucketBlobs, *given: Any) -> bytes | None:
            data = await read(blobs, *given)
            self.sizes.append(len(data or b""))
            return data

        monkeypatch.setattr(BucketBlobs, "_get", count)


async def test_a_link_is_served_from_the_bucket_by_range(
    album: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`HEAD`, a condition and a range read no bytes that are not sent."""
    size, reads = len(album.data), Reads(album, monkeypatch)
    whole = await album.show()
    head = await album.show(method="HEAD")
    unchanged = await album.show(If_None_Match=album.etag)
    other = await album.show(If_Match='"another"')
    beyond = await album.show(Range=f"bytes={size}-")
    unread = list(reads.sizes)
    parts = [
        (await album.show(Range=f"bytes={field}"), part)
        for field, part in {
            "0-9": range(10),
            "-7": range(size - 7, size),
            f"{size - 3}-": range(size - 3, size),
        }.items()
    ]
    stale = await album.show(Range="bytes=0-9", If_Range='"another"')

    assert (whole.status, whole.body) == (200, album.data)
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(size))
    assert (unchanged.status, unchanged.body) == (304, b"")
    assert (other.status, beyond.status) == (412, 416)
    assert unread == [size]
    for shown, part in parts:
        assert (shown.status, shown.body) == (206, album.data[part.start : part.stop])
        assert shown.headers["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
    assert (stale.status, stale.body) == (200, album.data)
    assert reads.sizes == [size, 10, 7, 3, size]
    assert {shown.headers["ETag"] for shown in (whole, head, unchanged)} == {album.etag}


@pytest.mark.parametrize(
    ("method", "headers"),
    [("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=0-1"}), ("GET", {"If-None-Match": "*"})],
    ids=["whole", "HEAD", "range", "condition"],
)
async def test_links_to_lost_bytes_answer_410(
    either: Album, method: str, headers: dict[str, str]
) -> None:
    """After a take-down, and after an eviction, which only the bucket knows of."""
    album = either
    evicted = await album.add(b"\x89PNG\r\n\x1a\nevicted", image_id="evicted")
    blobs = album.gateway.gateway.blob_store
    for digest in (await blobs.scan("", 100))[1]:
        if f'"{digest}"' != album.etag:
            await blobs.delete(digest)
    body = {"image": album.path}
    taken = await album.gateway.client.admin("POST", "/admin/cache/takedown", body)
    shown = [await album.show(path, method, **headers) for path in (evicted, album.path)]
    tampered = await album.show(album.path.replace(album.signature, "0" * 43), method, **headers)
    expired = await album.show(album.sign(ttl_seconds=-1), method, **headers)
    unknown = await album.show(album.sign("/images/img-unknown.png"), method, **headers)

    assert taken.status == 200
    assert [reply.status for reply in shown] == [410, 410]
    assert [reply.status for reply in (tampered, expired, unknown)] == [403, 403, 404]
    assert {reply.headers["Cache-Control"] for reply in shown} == {"no-store"}


async def follow(album: Album, shown: Reply) -> Reply:
    """Reads what a redirect leads to, as a client does: without the gateway's headers."""
    async with album.gateway.client.session.get(
        shown.headers["Location"], headers={"Range": "bytes=0-"}
    ) as response:
        return Reply(response.status, response.headers, await response.read())


async def test_a_link_redirects_to_the_bucket(
    redirecting: Album, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For 60 s, to a URL whose type and disposition are those of the image."""
    reads = Reads(redirecting, monkeypatch)
    shown = await redirecting.show()
    followed = await follow(redirecting, shown)
    head = await redirecting.show(method="HEAD")
    unchanged = await redirecting.show(If_None_Match=redirecting.etag)
    other = await redirecting.show(If_Match='"another"')
    again = await redirecting.show(Range="bytes=0-9")

    assert (shown.status, shown.body) == (302, b"")
    assert shown.headers["Cache-Control"] == "no-store"
    assert "X-Amz-Expires=60&" in shown.headers["Location"]
    assert "X-Amz-SignedHeaders=host&" in shown.headers["Location"]
    assert followed.body == redirecting.data
    assert followed.headers["Content-Type"] == "image/png"
    assert followed.headers["Content-Disposition"].startswith('inline; filename="img-')
    assert (head.status, head.headers["ETag"]) == (200, redirecting.etag)
    assert (unchanged.status, other.status, again.status) == (304, 412, 302)
    assert reads.sizes == []


@pytest.mark.parametrize("field", ["If_Match", "If_Range"])
async def test_conditions_with_a_tag_of_the_gateway_are_not_sent_to_the_bucket(
    redirecting: Album, field: str
) -> None:
    """Its tags are others: S3 would answer 412, or the whole image to who has most of it."""
    shown = await redirecting.show(Range="bytes=3-9", **{field: redirecting.etag})
    assert (shown.status, shown.body) == (206, redirecting.data[3:10])


async def test_a_redirect_works_no_longer_than_the_link(redirecting: Album) -> None:
    shown = await redirecting.show(redirecting.sign(ttl_seconds=9))
    seconds = int(URL(shown.headers["Location"]).query["X-Amz-Expires"])
    assert shown.status == 302
    assert 1 <= seconds <= 9


async def test_a_svg_is_never_redirected(redirecting: Album) -> None:
    """A bucket does not send the headers that keep a browser from running what is in it."""
    pictures = {
        kind: await redirecting.add(SVG, image_id=kind, format=kind) for kind in MEDIA_TYPES
    }
    shown = {kind: await redirecting.show(path) for kind, path in pictures.items()}

    assert {kind: reply.status for kind, reply in shown.items()} == {
        "png": 302, "jpeg": 302, "webp": 302, "gif": 302, "svg": 200,
    }  # fmt: skip
    assert shown["svg"].body == SVG
    assert "sandbox" in shown["svg"].headers["Content-Security-Policy"]


async def test_a_take_down_is_complete_when_the_object_is_deleted(redirecting: Album) -> None:
    """A redirect that was given before leads to nothing."""
    shown = await redirecting.show()
    before = await follow(redirecting, shown)
    body = {"image": redirecting.path}
    taken = await redirecting.gateway.client.admin("POST", "/admin/cache/takedown", body)
    after = await follow(redirecting, shown)

    assert (before.status, before.body) == (206, redirecting.data)
    assert taken.status == 200
    assert after.status == 404
    assert redirecting.data not in after.body


async def test_an_image_in_memory_is_served_while_the_bucket_is_unavailable(
    redirecting: Album, monkeypatch: pytest.MonkeyPatch, bucket_url: str
) -> None:
    blobs = redirecting.gateway.gateway.cache.blobs
    digest = redirecting.etag.strip('"')
    assert await blobs.load(digest, "raw") == redirecting.data
    server = redirecting.gateway.gateway.blob_store
    assert isinstance(server, BucketBlobs)

    async def fail(*_: Any, **__: Any) -> None:
        await asyncio.sleep(0)
        raise ConnectionRefusedError

    monkeypatch.setattr("obstore.head_async", fail)
    shown = await redirecting.show()
    assert (shown.status, shown.body) == (200, redirecting.data)


@pytest.mark.parametrize("store", [{}, {"blobs_url": "file:///srv/images"}])
def test_redirects_need_a_bucket(store: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"cache\.links: serve, unless the images are in a bucket"):
        Settings.model_validate({"store": store, "cache": {"links": "redirect"}})
