"""A client of a bucket, and its errors as those of a store.

obstore does its work in threads of its own, which do not survive a fork: it is imported by the
process that uses a bucket, when it opens it, and never by the parent of the workers.
"""

from __future__ import annotations

import asyncio
import atexit
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from gateway.conditions import Condition
from gateway.errors import StoreFull, StoreUnavailable
from gateway.store.blobs.bucket_url import CREDENTIALS, BucketUrl, find_endpoint

log = structlog.get_logger(__name__)

Client = S3Store | GCSStore | AzureStore

CALL_SECONDS: Final = 30.0
"""How long a call may take, with its retries, and so the timeout of one request."""

CONNECT_SECONDS: Final = 3.0

MAX_RETRIES: Final = 2
"""Of one call. A purchase repeats the call until the bucket has its image."""

RETRY_SECONDS: Final = 5.0
"""A request that fails later than this after its start is not sent again."""

QUIET_SECONDS: Final = 2.0
"""An outage is over after so many seconds without a failed call."""

END_SECONDS: Final = 0.1
"""How long the process waits for obstore's threads at its end. A thread that returns its result
after the interpreter has ended aborts the process, whose exit status is then not 0."""

_CODE: Final = re.compile(
    r"<(?:Code|code)>([A-Za-z]{3,64})</|\"(?:reason|error)\": ?\"([A-Za-z_]+)\""
)
_PANIC: Final = "RustPanic"
_STATUS: Final = re.compile(r"status code: (\d{3})")

_NO_BUCKET: Final = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"})
_FULL: Final = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"}
)
_CLOCK: Final = frozenset({"RequestTimeTooSkewed", "RequestExpired"})
_WRONG_KEYS: Final = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthenticationFailed"),
        *("InvalidToken", "ExpiredToken"),
    }
)
_TRANSIENT: Final = frozenset({"RequestTimeout", "IncompleteBody"})
"""Codes of a 400 that the same request may not get a second time."""
_SOURCE: Final = re.compile(
    r"https?://(?:169\.254\.|\[fd00:ec2:|sts\.[a-z0-9.-]*amazonaws\.com|metadata\.google\.internal"
    r"|login\.microsoftonline\.|oauth2\.googleapis\.com)"
)
"""How the addresses begin that credentials are fetched from."""
_CREDENTIAL_WORDS: Final = re.compile(r"token (?:request|file)|credential|IDENTITY")


# Sleeping releases the interpreter's lock, for which those threads wait.
atexit.register(time.sleep, END_SECONDS)


def create_client(url: BucketUrl, folder: str) -> Client:
    """A client of the part of a bucket below `folder`. No I/O.

    Raises `ValueError` for an environment that obstore cannot read.
    """
    options, config = url.options, dict[str, Any]()
    endpoint = find_endpoint(url)
    if endpoint is not None:
        config["base_url" if url.scheme == "gs" else "endpoint"] = endpoint
    if "region" in options:
        config["region"] = options["region"]
    if "account" in options:
        config["account_name"] = options["account"]
    if "virtual_hosted" in options:
        config["virtual_hosted_style_request"] = options["virtual_hosted"] == "true"
    path = f"{url.prefix}/{folder}" if url.prefix else folder
    try:
        # obstore refuses http:// unless it is allowed. An operator who writes it means it.
        is_plain = endpoint is not None and urlsplit(endpoint).scheme == "http"
        return _create(url, path, config, allow_http=is_plain)
    except BaseError as error:
        # Without the message's second part, which has the values.
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{url.location} cannot be used: {reason}") from None


def _create(url: BucketUrl, path: str, config: dict[str, Any], *, allow_http: bool) -> Client:
    settings: dict[str, Any] = {
        "prefix": path,
        "config": config,
        "client_options": {
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "timeout": timedelta(seconds=CALL_SECONDS),
            "user_agent": "image-gateway",
            **({"allow_http": True} if allow_http else {}),
        },
        "retry_config": {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    }
    if url.scheme == "s3":
        return S3Store(url.bucket, **settings)
    if url.scheme == "gs":
        return GCSStore(url.bucket, **settings)
    return AzureStore(url.bucket, **settings)


class BucketErrors:
    """Turns the errors of a bucket into those of a store, and logs its outages."""

    def __init__(self, url: BucketUrl) -> None:
        self._url = url
        self._outage = Condition(
            log,
            "store_unavailable",
            "store_available",
            counted="failed_calls",
            fields={"store": url.location, "holds": "bytes"},
        )

    @contextmanager
    def translated(self, doing: str, *, may_be_missing: bool = False) -> Iterator[None]:
        """Raises `StoreUnavailable` or `StoreFull`, also if the bucket is missing.

        With `may_be_missing`, lets the `FileNotFoundError` of a missing object through. A missing
        bucket counts as an unavailable store, so that no image is taken for lost because of it.
        """
        try:
            yield
        except (BaseError, OSError) as error:  # asyncio's TimeoutError is an OSError
            codes = _codes(str(error))
            if may_be_missing and isinstance(error, FileNotFoundError) and not codes & _NO_BUCKET:
                raise
            # `from None`: a message of obstore has addresses, and may have a signature.
            if codes & _FULL or _status(str(error)) == "507":
                raise StoreFull from None
            fault = describe(error, self._url, doing)
            self._outage.occurs(fault.reason or "", reason=fault.reason)
            raise fault from None
        except Exception as error:
            # A fault of obstore itself, which it has written to standard error and whose class it
            # does not export. A purchase must store its image again after that too.
            if type(error).__name__ != _PANIC:
                raise
            reason = f"{self._url.location}: {doing} has failed in obstore: check the endpoint."
            self._outage.occurs(reason, reason=reason)
            raise BucketMisconfigured(reason=reason) from None
        if self._outage.lasts:
            self._outage.ends_if_quiet(QUIET_SECONDS)


class BucketMisconfigured(StoreUnavailable):
    """The bucket answers, but an operator has to change something before it can be used."""


def bounded() -> asyncio.Timeout:
    """The deadline of one call."""
    return asyncio.timeout(CALL_SECONDS)


def describe(error: Exception, url: BucketUrl, doing: str) -> StoreUnavailable:
    """What is wrong, and the fix where it is known; nothing of the message's own text.

    `doing` is what was tried: writing, reading, listing, deleting or signing.
    """
    text, at = str(error), url.location
    codes, status = _codes(text), _status(text)
    code = next(iter(sorted(codes)), "")
    head = text.partition("\n")[0]
    has_no_credentials = not codes and status != "404" and _is_of_source(head)
    if isinstance(error, TimeoutError):
        return StoreUnavailable(reason=f"{at} did not answer within {CALL_SECONDS:.0f} s.")
    if codes & _NO_BUCKET:
        fix = "there is no such bucket: create it, or correct GATEWAY_BLOBS_URL."
    elif codes & _CLOCK:
        fix = f"requests of this time are refused ({code}): synchronize this machine's clock."
    elif codes & _WRONG_KEYS:
        fix = f"the credentials are not accepted ({code}): check {CREDENTIALS[url.scheme]}."
    elif has_no_credentials:
        fix = f"no credentials were found: set {CREDENTIALS[url.scheme]}."
    elif doing == "signing":
        fix = "these credentials cannot sign URLs: use others, or set cache.links to serve."
    elif status in ("401", "403"):
        fix = f"{doing} objects is forbidden ({code or status}): allow it below the prefix."
    elif (status in ("301", "307", "400") and not codes & _TRANSIENT) or _is_redirect(head):
        fix = f"{doing} is refused ({code or status or 301}): check region and endpoint."
    elif status:
        return StoreUnavailable(reason=f"{at} answered {status}{f' ({code})' if code else ''}.")
    else:
        return StoreUnavailable(reason=f"{at} cannot be reached.")
    return BucketMisconfigured(reason=f"{at}: {fix}")


def _is_of_source(head: str) -> bool:
    """Whether an error came from where credentials are fetched."""
    # Names of buckets and prefixes may be any of these words: they are in addresses only.
    before, scheme, _ = head.partition("http")
    return bool(_CREDENTIAL_WORDS.search(before)) or bool(scheme and _SOURCE.search(head))


def _is_redirect(head: str) -> bool:
    return "Received redirect" in head


def _codes(text: str) -> set[str]:
    return {found for pair in _CODE.findall(text) for found in pair if found}


def _status(text: str) -> str:
    match = _STATUS.search(text)
    return match[1] if match is not None else ""
