"""The check request: sent to the images API as purchases are, but no service can sell it anything.

`doctor` sends it to see what a purchase would meet. It asks for no image in four ways, because some
services ignore parameters that they do not know: the model does not exist, the prompt is not text,
n is 0, and the size has no pixels.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import aiohttp
import orjson
from yarl import URL

from gateway.errors import Charge, UpstreamFailure
from gateway.failure_report import FailureReport, Reason
from gateway.upstream import failures
from gateway.upstream.connection import AnswerRejected
from gateway.upstream.dialect import Dialect
from gateway.upstream.relaying import Relay
from gateway.upstream.session import SendState, TrackedBody

MODEL: Final = "image-gateway-doctor"

BODY: Final = orjson.dumps({"model": MODEL, "prompt": [], "n": 0, "size": "0x0"})

_OF_ADDRESS: Final = frozenset({Reason.PATH_UNKNOWN, Reason.REDIRECTED, Reason.UNREADABLE})

_TIMEOUT_SECONDS: Final = 10.0
_MAX_ANSWER_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class CheckReply:
    """What a base URL answered to the check request."""

    status: int | None
    """None without an answer."""
    report: FailureReport
    headers: Mapping[str, str] = field(default_factory=dict)
    is_api: bool = False
    """The answer is JSON, as an images API answers."""

    @property
    def is_refused(self) -> bool:
        """Whether an images API has refused the request itself, so that it would take a better one.

        Validators of several frameworks answer 422, and some services an error within a 200.
        """
        reason, is_invalid = self.report.reason, self.status in (400, 413, 415, 422)
        if reason in (Reason.MODEL_UNKNOWN, Reason.CONTENT_REFUSED, Reason.ERROR_IN_200):
            return self.is_api
        if reason is Reason.REQUEST_REFUSED:
            return self.is_api and (is_invalid or self.status == HTTPStatus.NOT_FOUND)
        return self.is_api and is_invalid and reason is Reason.EDGE_ERROR

    @property
    def is_of_another_service(self) -> bool:
        """Whether something answered that has no images API at this path."""
        if self.report.reason in _OF_ADDRESS:
            return True
        is_client_error = self.status is not None and 400 <= self.status < 500
        return is_client_error and not self.is_api and self.report.reason is Reason.EDGE_ERROR


async def send_check_request(
    session: aiohttp.ClientSession, base: URL, *, dialect: Dialect, relay: Relay
) -> CheckReply:
    """Sends the request once; never raises for what upstream does."""
    url = dialect.generations_url(base, MODEL)
    try:
        async with (
            asyncio.timeout(_TIMEOUT_SECONDS),
            session.post(
                url,
                data=TrackedBody(BODY, SendState()),
                allow_redirects=False,
            ) as response,
        ):
            body = await _read(response)
            headers = response.headers
    except TimeoutError:
        return _unanswered(failures.timed_out(was_sent=True), relay)
    except AnswerRejected as error:
        return _unanswered(failures.rejected(str(error)), relay)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _unanswered(failures.unreachable(error, host=url.raw_host), relay)
    status = response.status
    if 200 <= status < 300:
        failure = _read_success(body, headers, dialect=dialect)
    else:
        failure = dialect.parse_error(status, headers, body)
    report = relay.failure(failure).report
    return CheckReply(status, report, headers, is_api=_is_json(body))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of a body, as far as it comes."""
    body = bytearray()
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > _MAX_ANSWER_BYTES:
                break
    return bytes(body)


def _read_success(body: bytes, headers: Mapping[str, str], *, dialect: Dialect) -> UpstreamFailure:
    """The failure that a 2xx stands for; also with an image, because none was requested."""
    try:
        dialect.parse_answer(body, images=1, upstream_request_id=None)
    except UpstreamFailure as failure:
        if failure.report.reason is Reason.UNREADABLE:
            text = dialect.excerpt(body, headers)
            failure.report = FailureReport(Reason.UNREADABLE, text, status=200)
        return failure
    report = FailureReport(Reason.NO_IMAGE, "an answer with images", status=200)
    return UpstreamFailure("An image came.", charge=Charge.UNDELIVERED, report=report)


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except orjson.JSONDecodeError:
        return False


def _unanswered(failure: UpstreamFailure, relay: Relay) -> CheckReply:
    return CheckReply(None, relay.failure(failure).report)
