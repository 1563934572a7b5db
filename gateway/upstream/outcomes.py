"""What one attempt to buy ends with, and whether another account may be asked after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import aiohttp

from gateway.errors import Charge, UpstreamFailure
from gateway.failure_report import Reason
from gateway.frozen import frozen
from gateway.images import ImageRequest, UpstreamAnswer
from gateway.upstream import failures

_OF_ACCOUNT: Final = frozenset(
    {Reason.CREDENTIAL_REFUSED, Reason.ACCESS_REFUSED, Reason.QUOTA_EXHAUSTED}
)
"""Reasons that concern the account alone: another one may have the key, the right or the money."""


@frozen
class Reply:
    """A complete 2xx answer, in chunks as received."""

    status: int
    chunks: list[bytes]
    size_bytes: int
    headers: Mapping[str, str]


@frozen
class Answered:
    """A 2xx answer or a stream that brought an image."""

    status: int
    answer: UpstreamAnswer


@frozen
class Failed:
    """An attempt that failed."""

    status: int | str
    """Upstream's, or `unreachable`, `cut`, `rejected` or `timeout`."""
    failure: UpstreamFailure
    came_with_200: bool = False
    """Its status is not the response's. It is not retried: upstream had begun to work."""

    @property
    def is_retryable(self) -> bool:
        """Whether the same account may be asked again, after a pause."""
        if self.came_with_200:
            return False
        status = self.status if isinstance(self.status, int) else None
        return failures.is_retryable(self.failure, upstream_status=status)

    @property
    def is_outage(self) -> bool:
        """Whether the breaker counts it: no connection, no complete answer in time, or 5xx."""
        return not isinstance(self.status, int) or self.status >= 500

    @property
    def concerns_account(self) -> bool:
        """Whether the account cannot sell this model for now: its key, its rights, its money."""
        if self.came_with_200 or self.failure.charge is not Charge.FREE:
            return False
        reason = self.failure.report.reason
        if reason is Reason.CONTENT_REFUSED or not isinstance(self.status, int):
            return False
        if self.status == 503:
            return False
        # Of a model that is unknown or was shut down, OpenAI says it with a 400 for `model`.
        says_model = self.status == 404 or (self.status == 400 and self.failure.param == "model")
        is_unknown = says_model and reason is Reason.MODEL_UNKNOWN
        return self.status in (401, 403) or reason in _OF_ACCOUNT or is_unknown

    @property
    def is_certainly_free(self) -> bool:
        """Whether another account may be asked: this one has certainly charged nothing.

        It was never sent, or answered with 429, 503, or an error of the account itself. Other 4xx
        would be the same everywhere. See `docs/reference/upstreams.md#failover`.
        """
        if self.came_with_200 or self.failure.charge is not Charge.FREE:
            return False
        if not isinstance(self.status, int):
            return True
        if self.failure.report.reason is Reason.CONTENT_REFUSED:
            return False
        is_proxy = self.failure.report.reason is Reason.PROXY_FAILED
        return self.status in (429, 503) or is_proxy or self.concerns_account


Outcome: TypeAlias = Reply | Answered | Failed


@frozen
class PreparedRequest:
    """The request of a purchase as one account gets it, and the reader of its answer."""

    request: ImageRequest
    """With our name of the model."""
    upstream_model: str
    """Its name at the account."""
    body: bytes
    receive: Callable[[aiohttp.ClientResponse], Awaitable[Outcome]]
    """Reads a 2xx answer. Raises `aiohttp.ClientError` or `OSError` if it was cut off."""
    images: int
    """How many it asks for."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompt and the names of the client, which upstream may quote."""
        return (self.request.prompt, *self.request.user_names)
