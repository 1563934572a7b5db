"""The headers with which a client follows its request: read, checked, logged and forwarded.

They are `traceparent` and `tracestate` (W3C Trace Context) and `X-Client-Request-Id`, see
`docs/reference/headers.md#trace-context`. A header that is not valid counts as absent. None of them
changes what a request means, and none is stored.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
CLIENT_REQUEST_ID: Final = "X-Client-Request-Id"

MAX_TRACEPARENT: Final = 256
"""Characters. Version 00 has 55; a later one may have more."""

MAX_TRACESTATE: Final = 512
"""Characters of all lines together: as many as W3C asks every participant to pass on."""

MAX_CLIENT_REQUEST_ID: Final = 512
"""Characters, as the service accepts them."""

_TRACEPARENT: Final = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
    r"(?P<further>-[!-~]*)?"
)
_PRINTABLE: Final = re.compile(r"[ -~]+")

_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{40,}")
"""What may be a key, a token or a signature. The ids of most tracers are shorter."""

_MIN_SECRET: Final = 8
"""Characters. A shorter word, such as `Bearer`, is no credential."""


class Headers(Protocol):
    """Request headers, of which a name may occur several times."""

    def getall(self, name: str, default: Sequence[str], /) -> Sequence[str]:
        """All values of a name."""

    def get(self, name: str, default: str, /) -> str:
        """The first value of a name."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The valid ones of a request's headers."""

    traceparent: str | None = None
    tracestate: str | None = None
    client_request_id: str | None = None

    @property
    def trace_id(self) -> str | None:
        """The id of the trace, which all versions of `traceparent` have at the same place."""
        return None if self.traceparent is None else self.traceparent[3:35]

    @property
    def fields(self) -> Mapping[str, str]:
        """The fields of a log line, without those that are absent."""
        if self is NO_TRACE_CONTEXT:  # most often
            return _NOTHING
        named = (
            ("trace_id", self.trace_id),
            ("traceparent", self.traceparent),
            # The client's own text. By mistake it may be another key, a token or a link.
            ("client_request_id", _SECRET.sub("***", self.client_request_id or "") or None),
        )
        return {name: value for name, value in named if value is not None}

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of a request to upstream."""
        if self is NO_TRACE_CONTEXT:
            return _NOTHING
        named = (
            (TRACEPARENT, self.traceparent),
            (TRACESTATE, self.tracestate),
            (CLIENT_REQUEST_ID, self.client_request_id),
        )
        return {name: value for name, value in named if value is not None}


NO_TRACE_CONTEXT: Final = TraceContext()
_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


def read_trace_context(headers: Headers) -> TraceContext:
    """The trace context of a request."""
    parents = headers.getall(TRACEPARENT, ())
    ids = headers.getall(CLIENT_REQUEST_ID, ())
    if not parents and not ids:
        return NO_TRACE_CONTEXT
    secrets = [word for word in _credentials(headers) if len(word) >= _MIN_SECRET]

    def printable(value: str, max_length: int) -> str | None:
        is_valid = len(value) <= max_length and _PRINTABLE.fullmatch(value)
        # Neither the log nor upstream may see a key.
        return value if is_valid and not any(secret in value for secret in secrets) else None

    # Of a repeated header, which one counts is not known.
    parent = printable(parents[0].strip(), MAX_TRACEPARENT) if len(parents) == 1 else None
    client_request_id = printable(ids[0].strip(), MAX_CLIENT_REQUEST_ID) if len(ids) == 1 else None
    traceparent = valid_traceparent(parent)
    if traceparent is None:
        return TraceContext(client_request_id=client_request_id)
    tracestate = printable(",".join(headers.getall(TRACESTATE, ())).strip(), MAX_TRACESTATE)
    return TraceContext(traceparent, tracestate, client_request_id)


def _credentials(headers: Headers) -> Iterator[str]:
    """The words of a request's credentials, of Basic as they are and decoded."""
    yield headers.get("api-key", "").strip()
    for word in headers.get("Authorization", "").split():
        yield word
        with suppress(ValueError):  # no base64, or not ASCII
            # What is not UTF-8 cannot be in a header that is kept.
            yield from b64decode(word, validate=True).decode("utf-8", "replace").split(":")


def valid_traceparent(value: object) -> str | None:
    """The value, from a client or the store, if it is valid."""
    if not isinstance(value, str) or len(value) > MAX_TRACEPARENT:
        return None
    match = _TRACEPARENT.fullmatch(value)
    if match is None or (match["version"] == "00" and match["further"]):
        return None
    return value
