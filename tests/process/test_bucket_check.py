"""Starts and `doctor` with a bucket: what is wrong with it is said before an image is bought."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import hdrs, web
from obstore.exceptions import GenericError
from structlog.testing import capture_logs
from yarl import URL

from gateway.process.bucket_check import check_bucket, examine_bucket
from gateway.process.plaintext import judge_plaintext
from gateway.store.handshake import StoreMisconfigured
from tests.bucket_servers import SECRET_KEY, BucketServer
from tests.gateways import ADMIN_TOKEN, Client, Upstream, make_settings, run_upstream
from tests.local_server import serve
from tests.ports import closed_port, free_port
from tests.waiting import eventually

Answer = tuple[int, str]
"""A status, and the code of an error of S3."""


@asynccontextmanager
async def faulty(
    server: BucketServer, url: str, faults: dict[str, Answer], *, hours_late: float = 0
) -> AsyncIterator[str]:
    """The URL of the bucket behind a proxy that answers some methods itself."""

    async def handle(request: web.Request) -> web.Response:
        is_list = "list-type" in request.query
        is_bulk = request.method == "POST" and "delete" in request.query
        method = "LIST" if is_list else "DELETE" if is_bulk else request.method
        if method in faults:
            status, code = faults[method]
            body = f"<Error><Code>{code}</Code><Message>hunter2</Message></Error>"
            return web.Response(status=status, text="" if method == "HEAD" else body)
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(
                request.method,
                URL(f"{server.endpoint}{request.raw_path}", encoded=True),
                headers=request.headers,
                data=await request.read(),
            ) as answer,
        ):
            headers = {n: v for n, v in answer.headers.items() if n != hdrs.CONNECTION}
            if hdrs.LAST_MODIFIED in headers:
                late = datetime.now(UTC) + timedelta(hours=hours_late)
                headers[hdrs.LAST_MODIFIED] = format_datetime(late, usegmt=True)
            return web.Response(status=answer.status, headers=headers, body=await answer.read())

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with serve(app) as proxy:
        yield url.replace(server.endpoint, proxy)


async def test_a_bucket_that_works_is_ok_and_left_empty(
    bucket_server: BucketServer, bucket_url: str
) -> None:
    (finding,) = await examine_bucket(bucket_url, signs=True)
    assert (finding.level, finding.name) == ("ok", "images")
    assert "write, read, list, delete, clock" in finding.message
    bucket = bucket_server.folder / URL(bucket_url).host
    assert [path for path in bucket.rglob("*") if path.is_file() and "ephemeral" in str(path)] == []


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"PUT": (403, "AccessDenied")}, "writing objects is forbidden (AccessDenied)"),
        ({"GET": (403, "AccessDenied")}, "reading objects is forbidden (AccessDenied)"),
        ({"LIST": (403, "AccessDenied")}, "listing objects is forbidden (AccessDenied)"),
        ({"DELETE": (403, "AccessDenied")}, "deleting objects is forbidden (AccessDenied)"),
        ({"PUT": (403, "RequestTimeTooSkewed")}, "synchronize this machine's clock"),
        ({"PUT": (403, "InvalidAccessKeyId")}, "AWS_ACCESS_KEY_ID"),
        ({"PUT": (404, "NoSuchBucket")}, "there is no such bucket: create it"),
        ({"PUT": (400, "AuthorizationHeaderMalformed")}, "check region and endpoint"),
        ({"PUT": (301, "PermanentRedirect")}, "check region and endpoint"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
async def test_what_an_operator_has_to_change_keeps_a_gateway_from_starting(
    tmp_path: Path,
    bucket_server: BucketServer,
    bucket_url: str,
    faults: dict[str, Answer],
    words: str,
) -> None:
    async with faulty(bucket_server, bucket_url, faults) as url:
        settings = make_settings(tmp_path, "http://x/v1", store={"blobs_url": url})
        with pytest.raises(StoreMisconfigured) as caught:
            await check_bucket(settings)
        (finding,) = await examine_bucket(url, signs=False)
    assert words in str(caught.value)
    assert (finding.level, finding.message) == ("fault", str(caught.value))
    assert "hunter2" not in finding.message


async def test_a_clock_that_differs_is_a_fault(
    bucket_server: BucketServer, bucket_url: str
) -> None:
    async with faulty(bucket_server, bucket_url, {}, hours_late=0.1) as url:
        (finding,) = await examine_bucket(url, signs=False)
    assert finding.level == "fault"
    assert re.search(r"differs from this machine's by 3[56][0-9] s: .* NTP", finding.message)


async def test_a_gateway_starts_while_its_bucket_is_unavailable(
    tmp_path: Path, bucket_url: str
) -> None:
    """It may come up by itself, so a start only says so."""
    with closed_port() as port, capture_logs() as logs:
        url = f"s3://images?endpoint=http://127.0.0.1:{port}"
        await check_bucket(make_settings(tmp_path, "http://x/v1", store={"blobs_url": url}))
    (line,) = logs
    assert (line["event"], line["during"], line["store"]) == (
        "store_unavailable",
        "start",
        "s3://images",
    )
    assert line["reason"] == "s3://images cannot be reached."
    # `doctor` is asked whether images can be stored now.
    (finding,) = await examine_bucket(url, signs=False)
    assert (finding.level, finding.message) == ("fault", line["reason"])


async def test_the_check_imports_nothing_from_the_working_directory(
    tmp_path: Path, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    with capture_logs() as logs:
        await check_bucket(make_settings(tmp_path, "http://x/v1", store={"blobs_url": bucket_url}))
    assert logs == []


def test_the_parent_of_the_workers_never_uses_the_bucket(
    tmp_path: Path, bucket_url: str, redis_url: str
) -> None:
    """All that it does before it forks them. The threads of obstore do not survive that."""
    code = f"""
import asyncio, pathlib, sys
from gateway.configuration.settings import Settings
from gateway.process.bootstrap import check_store, prepare
from gateway.process.checks import check_before_serving
settings = Settings.model_validate({{"store": {{
    "data_dir": {str(tmp_path / "data")!r}, "redis_url": {redis_url!r}, "blobs_url": {bucket_url!r}
}}}})
prepare(settings)
asyncio.run(check_store(settings))
asyncio.run(check_before_serving(settings))
sys.exit("obstore" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_start_that_is_refused_says_why_in_one_line(tmp_path: Path, bucket_url: str) -> None:
    file = tmp_path / "gateway.yaml"
    store = {"data_dir": str(tmp_path / "data"), "blobs_url": bucket_url.replace("images", "none")}
    admin = {"listen": "127.0.0.1:0", "admin_token": ADMIN_TOKEN}
    file.write_text(yaml.safe_dump({"server": admin, "store": store, "upstream": {"api_key": "k"}}))
    served = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(file)],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        text=True,
    )
    (line,) = served.stderr.splitlines()
    assert line.startswith("Error: s3://")
    assert "there is no such bucket" in line
    assert (served.returncode, served.stdout) == (1, "")


async def test_redirects_need_credentials_that_can_sign(
    bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a SAS token of Azure cannot, with which everything else works."""

    async def refuse(*_: object) -> str:
        raise GenericError("Generating SAS keys with SAS tokens auth is not supported")

    monkeypatch.setattr("obstore.sign_async", refuse)
    (serves,) = await examine_bucket(bucket_url, signs=False)
    (redirects,) = await examine_bucket(bucket_url, signs=True)
    assert serves.level == "ok"
    assert redirects.level == "fault"
    assert "cannot sign URLs: use others, or set cache.links to serve." in redirects.message


def test_a_plain_endpoint_in_public_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://images?endpoint=http://minio.example.com:9000"
    settings = make_settings(tmp_path, "https://x.internal/v1", store={"blobs_url": url})
    messages = {finding.name: finding.message for finding in judge_plaintext(settings)}
    assert "minio.example.com" in messages["store.blobs_url"]
    private = url.replace("minio.example.com", "minio")
    settings = make_settings(tmp_path, "https://x.internal/v1", store={"blobs_url": private})
    assert "store.blobs_url" not in {finding.name for finding in judge_plaintext(settings)}
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://minio.example.com:9000")
    settings = make_settings(tmp_path, "https://x/v1", store={"blobs_url": "s3://images"})
    assert "store.blobs_url" in {finding.name for finding in judge_plaintext(settings)}


async def test_two_workers_share_a_bucket(
    tmp_path: Path, upstream: Upstream, bucket_url: str
) -> None:
    """`gateway serve`, in processes of its own: the threads of obstore do not survive a fork."""
    port = free_port()
    config = {
        "server": {"listen": f"127.0.0.1:{port}", "admin_token": ADMIN_TOKEN},
        "store": {"data_dir": str(tmp_path / "data"), "blobs_url": bucket_url},
        "upstream": {"base_url": upstream.base_url, "api_key": "sk-upstream-secret"},
        "workers": {"count": 2},
        "cache": {"links": "redirect", "memory_bytes": "0"},
        "rehost": {"allow": ["127.0.0.1"]},
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(config))
    command = (sys.executable, "-m", "gateway")
    with subprocess.Popen(  # noqa: ASYNC220 - it only starts
        [*command, "serve", "--config", str(file)], cwd=tmp_path, stderr=subprocess.PIPE
    ) as served:
        try:
            async with aiohttp.ClientSession() as session:
                client = Client(f"http://127.0.0.1:{port}", session)

                async def is_ready() -> bool:
                    assert served.poll() is None
                    with contextlib.suppress(aiohttp.ClientError):
                        return (await client.send("GET", "/readyz")).status == 200
                    return False

                await eventually(is_ready)
                alice = await client.with_key()
                replies = [await alice.ask(f"otter {n % 3}", model="dall-e-3") for n in range(12)]
                shown = []
                for reply in replies:
                    async with session.get(reply.json["data"][0]["url"]) as response:
                        shown.append((response.status, hash(await response.read())))
            doctor = await asyncio.to_thread(
                subprocess.run,
                [*command, "doctor", "--config", str(file), "--format", "json"],
                cwd=tmp_path,
                capture_output=True,
                check=False,
            )
        finally:
            served.send_signal(signal.SIGTERM)
            _, log = served.communicate(timeout=30)

    findings = {row["check"]: row["finding"] for row in json.loads(doctor.stdout)}
    assert {status for status, _ in shown} == {200}
    assert len(set(shown)) == 3
    assert "write, read, list, delete, clock" in findings["images"]
    assert served.returncode == 0, log
    for text in (log, doctor.stdout, doctor.stderr):
        assert SECRET_KEY.encode() not in text
        assert b"X-Amz" not in text


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with run_upstream() as opened:
        yield opened
