"""Blobs in a bucket: what object storage adds to the contract of `test_blobs`."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.exceptions import GenericError
from structlog.testing import capture_logs
from yarl import URL

from gateway.errors import StoreUnavailable
from gateway.store.blobs import open_blob_store
from gateway.store.blobs.bucket import (
    MAX_DELETIONS,
    MULTIPART_BYTES,
    SWEEP_GRACE_SECONDS,
    BucketBlobs,
)
from gateway.store.blobs.bucket_client import BucketMisconfigured, describe
from gateway.store.blobs.bucket_url import parse_bucket_url
from tests.bucket_servers import CREDENTIALS, REGION, SECRET_KEY, BucketServer
from tests.ports import closed_port
from tests.processor import watching_loop
from tests.store.test_blobs import digest
from tests.waiting import eventually

PNG = b"\x89PNG\r\n\x1a\n" + b"the rest of an image"
DAY = 86_400.0


class Clock:
    """Unix seconds that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def objects_of(server: BucketServer, url: str) -> list[str]:
    """The names of all objects of a bucket."""
    folder = server.folder / parse_bucket_url(url).bucket
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in paths if ".nanio" not in str(path))


def open_at(url: str, clock: Clock) -> BucketBlobs:
    return BucketBlobs(parse_bucket_url(url), clock)


async def test_every_expiry_is_an_object_of_its_own(
    bucket_server: BucketServer, bucket_url: str
) -> None:
    """Putting bytes again soon replaces their object; later it adds another."""
    clock, name = Clock(), digest(PNG)
    blobs = open_at(bucket_url, clock)
    await blobs.put(name, PNG, 64 * DAY)
    clock.now += 10
    await blobs.put(name, PNG, 64 * DAY)
    once = objects_of(bucket_server, bucket_url)
    clock.now += 2 * DAY
    await blobs.put(name, PNG, 64 * DAY)
    twice = objects_of(bucket_server, bucket_url)
    await blobs.delete(name)

    assert len(once) in (1, 2)  # ten seconds may lie on both sides of a step
    assert len(twice) == len(once) + 1
    assert all(path.startswith(f"a/prefix/images/{name}/") for path in twice)
    assert objects_of(bucket_server, bucket_url) == []


@pytest.mark.parametrize("knows", [False, True], ids=["another worker", "the same worker"])
async def test_a_sweep_never_deletes_bytes_that_were_extended(
    bucket_server: BucketServer, bucket_url: str, knows: bool
) -> None:
    """However late another gateway extends them: only the object that has expired is deleted."""
    clock, name = Clock(), digest(PNG)
    here, there = open_at(bucket_url, clock), open_at(bucket_url, clock)
    await here.put(name, PNG, 60)
    await here.put(digest(b"old"), b"old", 60)
    clock.now += 60 + SWEEP_GRACE_SECONDS + 2
    listed = await there.scan("", 10)
    await (there if knows else here).put(name, PNG, 60)
    removed = await there.sweep(500)

    assert listed == (None, {})
    assert removed == 2
    assert [await blobs.get(name) for blobs in (here, there)] == [PNG, PNG]
    assert len(objects_of(bucket_server, bucket_url)) == 1


async def test_a_sweep_goes_on_where_it_has_stopped_and_leaves_objects_that_have_just_expired(
    bucket_url: str,
) -> None:
    clock = Clock()
    blobs = open_at(bucket_url, clock)
    for number in range(7):
        await blobs.put(digest(b"%d" % number), b"", 10)
    clock.now += 30
    early = await blobs.sweep(500)
    clock.now += SWEEP_GRACE_SECONDS
    await blobs.put(digest(b"new"), b"", 10)
    removed = [await blobs.sweep(3) for _ in range(4)]

    assert early == 0
    assert removed == [3, 3, 1, 0]
    assert (await blobs.scan("", 10))[1] == {digest(b"new"): 0}


async def test_blobs_of_other_workers_are_found_extended_and_deleted(bucket_url: str) -> None:
    """Also if this worker remembers an object that is no longer there."""
    clock, name = Clock(), digest(PNG)
    here, there = open_at(bucket_url, clock), open_at(bucket_url, clock)
    await here.put(name, PNG, 64)
    assert await there.get(name) == PNG
    clock.now += 32
    await here.put(name, PNG, 64)
    clock.now += 40
    after = await there.get(name), await there.size(name)
    await there.delete(name)
    gone = await here.get(name), await here.size(name), await here.presign(name, 60)

    assert after == (PNG, len(PNG))
    assert gone == (None, None, None)


async def test_a_large_blob_is_written_in_parts(bucket_url: str) -> None:
    data = os.urandom(2 * MULTIPART_BYTES + 1)
    blobs = open_at(bucket_url, Clock())
    await blobs.put(digest(data), data, 60)
    assert await blobs.get(digest(data)) == data
    assert (
        await blobs.get_range(digest(data), range(MULTIPART_BYTES - 2, MULTIPART_BYTES + 2))
        == (data[MULTIPART_BYTES - 2 : MULTIPART_BYTES + 2])
    )


async def test_parts_and_sizes_are_those_of_the_bytes(bucket_url: str) -> None:
    blobs = open_at(bucket_url, Clock())
    await blobs.put(digest(PNG), PNG, 60)
    parts = [range(3), range(5, 6), range(len(PNG) - 4, len(PNG))]
    found = [await blobs.get_range(digest(PNG), part) for part in parts]

    assert found == [PNG[part.start : part.stop] for part in parts]
    assert await blobs.size(digest(PNG)) == len(PNG)
    assert await blobs.get_range(digest(b"unknown"), range(1)) is None
    assert await blobs.size(digest(b"unknown")) is None


async def test_a_presigned_url_shows_one_image_with_its_own_type(bucket_url: str) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"></svg>'
    blobs = open_at(bucket_url, Clock())
    for data in (PNG, svg):
        await blobs.put(digest(data), data, 60)
    url = await blobs.presign(digest(PNG), 60)
    document = await blobs.presign(digest(svg), 60)
    short = await blobs.presign(digest(PNG), 1)
    assert url is not None
    assert document is not None
    assert short is not None
    await asyncio.sleep(2.1)
    async with aiohttp.ClientSession() as session:

        async def show(url: str) -> tuple[int, bytes, Mapping[str, str]]:
            async with session.get(URL(url, encoded=True)) as shown:
                return shown.status, await shown.read(), shown.headers

        status, data, headers = await show(url)
        other = await show(url.replace(digest(PNG), digest(svg)))
        asks_for_more = await show(f"{url}&response-content-type=text/html")
        tampered = await show(url.replace("Expires=60", "Expires=6000"))
        expired = await show(short)
        _, _, saved = await show(document)
        await blobs.delete(digest(PNG))
        deleted = await show(url)

    assert (status, data) == (200, PNG)
    assert headers["Content-Type"] == "image/png"
    assert headers["Content-Disposition"] == f'inline; filename="img-{digest(PNG)[:12]}.png"'
    assert saved["Content-Disposition"].startswith("attachment; ")
    refused = [other[0], asks_for_more[0], tampered[0], expired[0], deleted[0]]
    assert refused == [403, 403, 403, 403, 404]
    assert SECRET_KEY not in url


# ── faults ──────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def failing(url: str) -> AsyncIterator[list[str]]:
    """Every method raises `StoreUnavailable`; the list then has their reasons."""
    reasons: list[str] = []
    async with open_blob_store(url) as blobs:
        assert isinstance(blobs, BucketBlobs)
        yield reasons
        for call in (
            blobs.put(digest(PNG), PNG, 60),
            blobs.get(digest(PNG)),
            blobs.size(digest(PNG)),
            blobs.get_range(digest(PNG), range(1)),
            blobs.scan("", 10),
            blobs.sweep(10),
            blobs.delete(digest(PNG)),
            blobs.presign(digest(PNG), 60),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                await call
            reasons.append(caught.value.reason or "")


async def test_a_missing_bucket_is_unavailable_and_no_image_is_taken_for_lost(
    bucket_server: BucketServer, bucket_url: str
) -> None:
    bucket = parse_bucket_url(bucket_url).bucket
    async with failing(bucket_url.replace(bucket, "no-such-bucket")) as reasons:
        pass
    assert {r.partition(": ")[2] for r in reasons} == {
        "there is no such bucket: create it, or correct GATEWAY_BLOBS_URL."
    }


async def test_a_bucket_that_vanishes_under_a_worker_is_unavailable(
    bucket_server: BucketServer, bucket_url: str
) -> None:
    """The worker remembers an object, and reads that without a list."""
    blobs = open_at(bucket_url, Clock())
    await blobs.put(digest(PNG), PNG, 60)
    folder = bucket_server.folder / parse_bucket_url(bucket_url).bucket
    folder.rename(folder.with_name("moved-away"))
    try:
        for call in (blobs.get, blobs.size):
            with pytest.raises(BucketMisconfigured):
                await call(digest(PNG))
    finally:
        folder.with_name("moved-away").rename(folder)
    assert await blobs.get(digest(PNG)) == PNG


async def test_wrong_credentials_are_reported_without_showing_them(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-" + secrets.token_hex(8))
    with capture_logs() as logs:
        async with failing(bucket_url) as reasons:
            pass
    assert all("not accepted (SignatureDoesNotMatch)" in reason for reason in reasons)
    assert "AWS_SECRET_ACCESS_KEY" in reasons[0]
    assert "wrong-" not in str(logs) + str(reasons)
    assert [line["event"] for line in logs] == ["store_unavailable"]


async def test_an_outage_is_one_condition_in_the_log(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_port() as port, capture_logs() as logs:
        url = f"s3://images?endpoint=http://127.0.0.1:{port}&region={REGION}"
        async with failing(url) as reasons:
            pass
    assert set(reasons) == {"s3://images cannot be reached."}
    assert [(line["event"], line["store"], line["holds"]) for line in logs] == [
        ("store_unavailable", "s3://images", "bytes")
    ]


@pytest.mark.parametrize(
    "name", ["s3://credentials", "s3://images/metadata", "s3://redirect", "s3://images/oauth"]
)
async def test_the_name_of_a_bucket_is_not_taken_for_the_cause(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of obstore have addresses, and those have names. An unavailable bucket may come
    up by itself; one with wrong credentials keeps a gateway from starting.
    """
    for variable, value in CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    with closed_port() as port:
        blobs = open_at(f"{name}?endpoint=http://127.0.0.1:{port}", Clock())
        with pytest.raises(StoreUnavailable) as caught:
            await blobs.get(digest(PNG))
    assert caught.value.reason == f"{name} cannot be reached."
    assert not isinstance(caught.value, BucketMisconfigured)


@pytest.mark.parametrize(
    ("text", "doing", "words"),
    [
        (
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms",
            "writing",
            "no credentials were found",
        ),
        (
            "Generic MicrosoftAzure error: Error performing token request: Error performing GET x",
            "writing",
            "no credentials were found",
        ),
        ("Generic S3 error: Failed to read token file '/x'", "reading", "no credentials were"),
        ("Generic S3 error: Received redirect without LOCATION", "reading", "region and endpoint"),
        ("status code: 400\n<Code>ExpiredToken</Code>", "writing", "not accepted (ExpiredToken)"),
        ("status code: 400\n<Code>RequestTimeout</Code>", "writing", "answered 400"),
    ],
)
def test_the_cause_of_an_error_is_named(text: str, doing: str, words: str) -> None:
    fault = describe(GenericError(text), parse_bucket_url("s3://metadata/oauth"), doing)
    assert words in (fault.reason or "")
    assert isinstance(fault, BucketMisconfigured) == ("answered" not in words)


async def test_a_panic_of_obstore_is_an_unavailable_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bought is stored again after it."""

    class RustPanic(Exception):
        pass

    async def panic(*_: object, **__: object) -> None:
        raise RustPanic

    monkeypatch.setattr("obstore.put_async", panic)
    with pytest.raises(BucketMisconfigured) as caught:
        await open_at("s3://images", Clock()).put(digest(PNG), PNG, 60)
    assert "check the endpoint" in (caught.value.reason or "")


async def test_many_blobs_are_deleted_a_few_at_a_time(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eviction names up to a thousand, and no server takes as many requests at once."""
    blobs, deleting, highest = open_at(bucket_url, Clock()), 0, 0

    async def none(_: object, digest: str) -> AsyncIterator[object]:
        nonlocal deleting, highest
        deleting += 1
        highest = max(highest, deleting)
        await asyncio.sleep(0)
        deleting -= 1
        for nothing in ():
            yield nothing

    monkeypatch.setattr(BucketBlobs, "_list", none)
    await asyncio.gather(*(blobs.delete(digest(b"%d" % number)) for number in range(200)))
    assert highest == MAX_DELETIONS


async def test_the_environment_may_have_the_endpoint(
    bucket_server: BucketServer, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one with http://, as obstore alone would refuse it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket_server.endpoint)
    monkeypatch.setenv("AWS_REGION", REGION)
    blobs = open_at(bucket_url.partition("?")[0], Clock())
    await blobs.put(digest(PNG), PNG, 60)
    assert await blobs.get(digest(PNG)) == PNG


@pytest.mark.parametrize(
    "endpoint",
    ["https://u:hunter2@host", "http://127.0.0.1:99999", "http://hunter2 x:1", "hunter2"],
)
def test_an_endpoint_of_the_environment_is_checked(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ValueError, match="AWS_ENDPOINT_URL is no URL such as") as caught:
        open_at("s3://images", Clock())
    assert "hunter2" not in str(caught.value)


async def test_a_cancelled_call_closes_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    opened: list[asyncio.Task[bytes]] = []

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reads a request, and answers nothing."""
        await reader.read(1)
        opened.append(asyncio.ensure_future(reader.read()))
        await opened[-1]
        writer.close()

    async def cancel(call: Coroutine[Any, Any, object]) -> None:
        """Cancels it once the server has its request."""
        before, calling = len(opened), asyncio.create_task(call)
        await eventually(lambda: len(opened) > before)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    blobs = open_at(f"s3://images?endpoint=http://127.0.0.1:{port}", Clock())
    await cancel(blobs.put(digest(PNG), PNG, 60))
    await cancel(blobs.get(digest(PNG)))
    await eventually(lambda: all(connection.done() for connection in opened))
    server.close()
    assert len(opened) == 2


@pytest.mark.timed
async def test_the_event_loop_is_not_held_by_bytes(bucket_url: str) -> None:
    """64 images of 2 MB are written and read at once, and copied out of obstore's memory."""
    images = {digest(data): data for data in (os.urandom(2_000_000) for _ in range(64))}
    blobs = open_at(bucket_url, Clock())
    async with watching_loop() as held:
        await asyncio.gather(*(blobs.put(name, data, 600) for name, data in images.items()))
        found = await asyncio.gather(*map(blobs.get, images))
    assert found == list(images.values())
    assert held.seconds < 0.1


# ── URLs ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket", ("s3", "bucket", "", {})),
        ("s3://bucket/", ("s3", "bucket", "", {})),
        ("gs://my.bucket/team/images/", ("gs", "my.bucket", "team/images", {})),
        ("az://images/x?account=art", ("az", "images", "x", {"account": "art"})),
        (
            "s3://b-1/p?endpoint=https%3A%2F%2Fminio:9000&region=x&virtual_hosted=true",
            (
                "s3",
                "b-1",
                "p",
                {"endpoint": "https://minio:9000", "region": "x", "virtual_hosted": "true"},
            ),
        ),
    ],
)
def test_the_url_of_a_bucket_has_prefix_and_options(
    url: str, expected: tuple[str, str, str, dict[str, str]]
) -> None:
    parsed = parse_bucket_url(url)
    assert (parsed.scheme, parsed.bucket, parsed.prefix, dict(parsed.options)) == expected
    assert parsed.location == f"{url.partition('?')[0].rstrip('/')}"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "s3://bucket/prefix"),
        ("s3://AKIA:hunter2@bucket", "without credentials"),
        ("s3://bucket?secret_access_key=hunter2", "AWS_SECRET_ACCESS_KEY"),
        ("az://bucket?sas_token=hunter2", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("s3://bucket?regoin=hunter2", "did you mean region"),
        ("s3://bucket?endpoint=hunter2", "https://minio.example.com:9000"),
        ("s3://bucket?endpoint=http://u:hunter2@host", "no credentials"),
        ("s3://bucket?endpoint=http://hunter2:99999", "https://minio.example.com:9000"),
        ("s3://bucket?endpoint=http://[hunter2", "https://minio.example.com:9000"),
        ("s3://bucket?endpoint=http://hunter2%20", "https://minio.example.com:9000"),
        ("s3://bucket?endpoint=http://hunter2%C3%A9", "https://minio.example.com:9000"),
        ("s3://bucket?endpoint=http://host/%3Ftoken=hunter2", "https://minio.example.com:9000"),
        ("s3://bucket?region=hunter2/x", "a region of letters"),
        ("s3://bucket?virtual_hosted=hunter2", "virtual_hosted=true"),
        ("s3://hunter2_/../x", "s3://bucket/prefix"),
        ("gs://Hunter2", "gs://bucket/prefix"),
        ("gs://bb?region=hunter2", "no other options than endpoint"),
        ("s3://bucket/hunter2#x", "s3://bucket/prefix"),
        ("s3://bucket?hunter2", "s3://bucket/prefix"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_without_quoting_it(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_bucket_url(url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value).lower()


@given(st.text(max_size=40), st.sampled_from(["s3", "gs", "az"]))
def test_any_text_is_a_url_of_safe_names_or_refused(text: str, scheme: str) -> None:
    try:
        parsed = parse_bucket_url(f"{scheme}://{text}")
    except ValueError:
        return
    assert ".." not in parsed.location
    assert parsed.location.isascii()


def test_clients_of_all_providers_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking any of them. For Google's, this is all that is tested."""
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    for url in ("s3://bucket", "gs://bucket/x", "az://images/y?account=art"):
        assert BucketBlobs(parse_bucket_url(url)).name == url.partition("?")[0]


def test_an_account_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ValueError, match=r"^az://images cannot be used: .*[Aa]ccount"):
        BucketBlobs(parse_bucket_url("az://images"))


def test_obstore_is_not_imported_unless_a_bucket_is_used() -> None:
    """Its threads do not survive a fork of the workers."""

    code = "import gateway.cli.serve, sys; sys.exit('obstore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
