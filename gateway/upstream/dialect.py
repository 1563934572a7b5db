"""A dialect: how one kind of upstream is called, and how its responses are read.

A package such as `openai/` is a dialect, because it has these functions. Another kind of upstream
is another package, which may import most of them from `openai/`, and a name in `dialects`. A
service that differs in little is a row of `models.yaml`, which `services/` reads.
Dialects do no I/O; sending, deadlines, retries and the circuit breaker are `client`. They neither
redact nor shorten what they read, which `relaying` does for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, TypeAlias

from yarl import URL

from gateway.errors import UpstreamFailure
from gateway.images import ImageRequest, PartialImage, UpstreamAnswer
from gateway.net.sse import Event
from gateway.upstream.auth import Auth

ParsedEvent: TypeAlias = PartialImage | UpstreamAnswer | UpstreamFailure
"""A partial image, the final image, or the failure that ends the stream."""


class Dialect(Protocol):
    """The functions of a dialect."""

    @property
    def auth(self) -> Auth:
        """How the key is sent, unless the operator has named a header."""

    def generations_url(self, base: URL, model: str, /) -> URL:
        """Where purchases of a model are sent."""

    def models_url(self, base: URL) -> URL:
        """The list of the models, which is free of charge."""

    def check_supported(self, request: ImageRequest, *, images: int) -> None:
        """Raises `UpstreamFailure`, free of charge, for what the service cannot make.

        It is called for each account that a purchase may ask, so it builds no body.
        """

    def forwarded_body(self, request: ImageRequest, *, images: int, stream: bool = False) -> bytes:
        """The body of a request for `images` images. Raises as `check_supported`."""

    def parse_answer(
        self, body: bytes | bytearray, *, images: int, upstream_request_id: str | None
    ) -> UpstreamAnswer:
        """At most `images` images of a 2xx response. Raises `UpstreamFailure` if it has none."""

    def parse_event(
        self, event: Event, *, upstream_request_id: str | None, is_first: bool = False
    ) -> ParsedEvent | None:
        """One event of a stream, or its first; None if it is to be ignored."""

    def parse_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes | bytearray,
        *,
        is_complete: bool = True,
        received_at: float | None = None,
    ) -> UpstreamFailure:
        """The failure that a response which is not 2xx reports, as far as its body has come.

        `received_at` is when its head came, in Unix seconds.
        """

    def refuses_prompt(self, failure: UpstreamFailure, texts: Iterable[str]) -> bool:
        """Whether the failure, as it is relayed, is a refusal of the prompt's content.

        `texts` are the client's own, which the failure may quote.
        """

    def request_id(self, headers: Mapping[str, str]) -> str | None:
        """Upstream's id of a request, for the ledger."""

    def excerpt(self, body: bytes | bytearray, headers: Mapping[str, str]) -> str:
        """The first words of a body that is not the API's, for the operator."""
