"""The refusals of requests that cannot be read, whose handlers never see them."""

from __future__ import annotations

from aiohttp import HttpVersion10, HttpVersion11, hdrs
from aiohttp.http import RawRequestMessage

from gateway.api.http.connection_limits import overloaded
from gateway.api.http.host import check_host
from gateway.errors import INVALID_REQUEST, ErrorCode, GatewayError, InvalidRequest


def not_http(status: int = 400) -> GatewayError:
    """The 400 for bytes that are no request; `status` is what aiohttp's parser says of them."""
    return InvalidRequest("The request is not valid HTTP.", status=status)


def check_head(message: RawRequestMessage) -> GatewayError | None:
    """The refusal of a head that the parser accepts although it should not."""
    if message.version not in (HttpVersion10, HttpVersion11):
        return not_http()
    # Any other coding, and any in HTTP/1.0, leaves open where the body ends (RFC 9112 §6.1).
    coding = message.headers.get(hdrs.TRANSFER_ENCODING)
    if coding is not None and (
        coding.lower() != "chunked" or message.version != HttpVersion11 or not message.chunked
    ):
        return not_http()
    return check_host(message)


def head_too_large(max_bytes: int) -> GatewayError:
    """The 431 for a head, or for the trailers and chunk extensions of a body."""
    return GatewayError(
        f"The head of the request is too large: this gateway accepts up to {max_bytes} bytes "
        "(server.max_head).",
        type=INVALID_REQUEST,
        code=ErrorCode.HEAD_TOO_LARGE,
    )


def memory_full() -> GatewayError:
    """The 503 for a request that `HeldBytes` has no room for."""
    return overloaded("This worker has no memory left for requests. Please try again.")
