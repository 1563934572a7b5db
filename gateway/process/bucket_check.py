"""Checks a bucket: writing, reading, listing, deleting, its clock, and signing where it is needed.

The parent of the workers runs this module as a process of its own, because the threads in which a
bucket is used do not survive a fork.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
import sys
from collections.abc import Sequence
from typing import Final

import structlog

from gateway.configuration.settings import Settings
from gateway.errors import StoreUnavailable
from gateway.process.findings import Finding, Level
from gateway.store.blobs.bucket_url import is_bucket, parse_bucket_url
from gateway.store.handshake import StoreMisconfigured

log = structlog.get_logger(__name__)

MAX_CLOCK_DIFFERENCE_SECONDS: Final = 5.0
"""Between a bucket, whose clock has whole seconds, and this machine. With more, images expire early
or late; with some minutes, a bucket refuses every request."""

CHECK_SECONDS: Final = 60.0
"""A start waits at most this long for the check of a bucket."""


def bucket_of(settings: Settings) -> str | None:
    """The URL of the bucket that has the images; None if they are elsewhere."""
    url = settings.store.plain_blobs_url
    return url if is_bucket(url) else None


async def examine_bucket(url: str, *, signs: bool, starts: bool = False) -> Sequence[Finding]:
    """The faults of a bucket, or one finding that it can be used.

    An unavailable bucket may come up by itself, so when a gateway `starts` it is only a warning.
    """
    # Imported only by the process that uses the bucket: see `bucket_client`.
    from gateway.store.blobs.bucket import open_bucket_blobs  # noqa: PLC0415
    from gateway.store.blobs.bucket_client import BucketMisconfigured  # noqa: PLC0415

    data = b"image-gateway " + secrets.token_hex(16).encode()
    digest = hashlib.sha256(data).hexdigest()
    try:
        async with open_bucket_blobs(url) as blobs:
            checked = await blobs.ephemeral().check(data, digest, signs=signs)
    except BucketMisconfigured as error:
        return [Finding("images", "fault", error.reason or error.message)]
    except StoreUnavailable as error:
        level: Level = "warning" if starts else "fault"
        return [Finding("images", level, error.reason or error.message)]
    except ValueError as error:
        return [Finding("images", "fault", str(error))]
    location, findings = parse_bucket_url(url).location, list[Finding]()
    if abs(checked.clock_difference_seconds) > MAX_CLOCK_DIFFERENCE_SECONDS:
        message = (
            f"The clock of {location} differs from this machine's by "
            f"{abs(checked.clock_difference_seconds):.0f} s: synchronize this machine's by NTP."
        )
        findings.append(Finding("images", "fault", message))
    if checked.keeps_versions:
        message = (
            f"{location} keeps old versions, so bytes that were taken down stay in the bucket: "
            "turn versioning off, or let a lifecycle rule remove old versions after a day."
        )
        findings.append(Finding("images", "warning", message))
    return findings or [Finding("images", "ok", f"{location}: write, read, list, delete, clock")]


async def check_bucket(settings: Settings) -> None:
    """Raises `StoreMisconfigured` for a bucket that an operator has to change.

    An unavailable one may still come up, so it is only logged.
    """
    url = bucket_of(settings)
    if url is None:
        return
    process = await asyncio.create_subprocess_exec(
        # `-P`: a `json.py` in the working directory is not imported.
        *(sys.executable, "-P", "-m", __name__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    question = json.dumps({"url": url, "signs": settings.cache.links == "redirect"})
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            answer, _ = await process.communicate(question.encode())
    except TimeoutError:
        answer = b""
    finally:  # also if the start is interrupted
        if process.returncode is None:
            process.kill()
            await process.wait()
    store = parse_bucket_url(url).location
    findings = json.loads(answer or b'[["warning", "The check of the bucket has not ended."]]')
    for level, message in findings:
        if level == "fault":
            raise StoreMisconfigured(message)
        if level == "warning":
            log.warning("store_unavailable", during="start", store=store, reason=message)


def main() -> None:
    """Answers the question of `check_bucket`."""
    question = json.loads(sys.stdin.read())
    found = asyncio.run(examine_bucket(question["url"], signs=question["signs"], starts=True))
    sys.stdout.write(json.dumps([[finding.level, finding.message] for finding in found]))
    sys.stdout.flush()


if __name__ == "__main__":
    # The parent logs what the answer says.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    main()
