"""A dialect by a row of `dialects`, as it is at the moment: `models.yaml` may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from yarl import URL

from gateway.catalog.dialects import DialectRow
from gateway.errors import UpstreamFailure
from gateway.images import ImageRequest, UpstreamAnswer
from gateway.net.sse import Event
from gateway.upstream.auth import Auth, in_header
from gateway.upstream.dialect import ParsedEvent
from gateway.upstream.openai import excerpt, parse_error, parse_event, refuses_prompt, request_id
from gateway.upstream.services.answers import (
    answer_from,
    as_openai_error,
    interpreted,
    is_withheld,
)
from gateway.upstream.services.requests import body_of, check_supported, url_of


class ServiceDialect:
    """How a service is called. What its row does not say is as OpenAI has it."""

    def __init__(self, row: Callable[[], DialectRow]) -> None:
        self._row = row

    @property
    def auth(self) -> Auth:
        """The header that the row names, when the connection is opened."""
        row = self._row()
        if row.auth_scheme is None:
            return in_header(row.auth_header)
        return Auth(row.auth_header, row.auth_scheme)

    def generations_url(self, base: URL, model: str) -> URL:
        """The row's path, with the model if it has a place for it."""
        row = self._row()
        return url_of(row, base, row.path, model=model)

    def models_url(self, base: URL) -> URL:
        """The row's list of models."""
        row = self._row()
        return url_of(row, base, row.models_path)

    def check_supported(self, request: ImageRequest, *, images: int) -> None:
        """Raises `UpstreamFailure` for what the row says that the service cannot make."""
        check_supported(self._row(), request, images=images)

    def forwarded_body(self, request: ImageRequest, *, images: int, stream: bool = False) -> bytes:
        """The body with the row's names and constants. Raises `UpstreamFailure`."""
        return body_of(self._row(), request, images=images, stream=stream)

    def parse_answer(
        self, body: bytes | bytearray, *, images: int, upstream_request_id: str | None
    ) -> UpstreamAnswer:
        """The images that the service does not withhold. Raises `UpstreamFailure`."""
        return answer_from(
            self._row(), body, images=images, upstream_request_id=upstream_request_id
        )

    def parse_event(
        self, event: Event, *, upstream_request_id: str | None, is_first: bool = False
    ) -> ParsedEvent | None:
        """As OpenAI's."""
        parsed = parse_event(event, upstream_request_id=upstream_request_id, is_first=is_first)
        if isinstance(parsed, UpstreamFailure):
            return interpreted(self._row(), parsed)
        return parsed

    def parse_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes | bytearray,
        *,
        is_complete: bool = True,
        received_at: float | None = None,
    ) -> UpstreamFailure:
        """As OpenAI's, with the row's keys and refusals."""
        row = self._row()
        failure = parse_error(
            status,
            headers,
            as_openai_error(row, body),
            is_complete=is_complete,
            received_at=received_at,
        )
        return interpreted(row, failure)

    def refuses_prompt(self, failure: UpstreamFailure, texts: Iterable[str]) -> bool:
        """A withheld image says nothing about the next one of the same prompt."""
        return not is_withheld(failure) and refuses_prompt(failure, texts)

    def request_id(self, headers: Mapping[str, str]) -> str | None:
        """As OpenAI's."""
        return request_id(headers)

    def excerpt(self, body: bytes | bytearray, headers: Mapping[str, str]) -> str:
        """As OpenAI's."""
        return excerpt(body, headers)
