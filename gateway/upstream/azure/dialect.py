"""Azure's URLs and request bodies; its answers are OpenAI's, and its errors are `errors`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote

import orjson
from yarl import URL

from gateway.errors import UpstreamFailure
from gateway.images import ImageRequest, UpstreamAnswer
from gateway.net.sse import Event
from gateway.upstream.auth import Auth
from gateway.upstream.azure.errors import filtered_answer, is_of_output, translated
from gateway.upstream.dialect import ParsedEvent
from gateway.upstream.failures import refused_unsent
from gateway.upstream.openai import (
    excerpt,
    models_url,
    parse_answer,
    parse_error,
    parse_event,
    refuses_prompt,
    request_id,
)
from gateway.upstream.openai.requests import join_path, members
from gateway.upstream.path_names import check_path_name

DEFAULT_API_VERSION: Final = "2025-04-01-preview"
"""Of requests to deployments, if neither the base URL nor the settings name another one."""

_API_VERSION: Final = "api-version"

_OTHER_DEFAULTS: Final = ("quality",)
"""Parameters that Azure sets to another value than OpenAI when they are omitted. A request at
OpenAI's default sends it, because its fingerprint says that the image was made with that."""

_NOT_MADE: Final = frozenset({"webp"})
"""Values of `output_format`. Whether Azure makes gif and svg is not known: it says so itself."""


class AzureDialect:
    """How an Azure OpenAI resource is called.

    A base URL that ends in `/v1` has the model in the body. Any other has deployments below
    `/openai`, which is added, unless the base URL names one deployment itself.
    """

    auth = Auth("api-key")

    def __init__(self, base_url: str, *, api_version: str | None = None) -> None:
        self._names_model = not _has_deployments(URL(base_url))
        self._api_version = api_version

    def generations_url(self, base: URL, model: str) -> URL:
        """The path has the deployment, which is the model's name at this account."""
        if not _has_deployments(base) or _is_deployment(base):
            return self._versioned(join_path(base, "/images/generations"))
        path = f"/deployments/{quote(model, safe='')}/images/generations"
        return self._versioned(join_path(_below_openai(base), path))

    def models_url(self, base: URL) -> URL:
        """The list of the models that can be deployed, which is free of charge."""
        if _is_deployment(base):
            base = base.parent.parent.with_query(base.query)
        return self._versioned(models_url(_below_openai(base) if _has_deployments(base) else base))

    def check_supported(self, request: ImageRequest, *, images: int) -> None:
        """Raises `UpstreamFailure` for a format that Azure does not make, or a name of no path."""
        _check_format(request)
        if not self._names_model:
            check_path_name(request.model)

    def forwarded_body(self, request: ImageRequest, *, images: int, stream: bool = False) -> bytes:
        """The body, without the model if the path has it. Raises as `check_supported`."""
        self.check_supported(request, images=images)
        body = members(request, images=images, stream=stream)
        for name in _OTHER_DEFAULTS:
            if name in request.defaults:
                body.setdefault(name, request.defaults[name])
        if not self._names_model:
            del body["model"]
        return orjson.dumps(body)

    def parse_answer(
        self, body: bytes | bytearray, *, images: int, upstream_request_id: str | None
    ) -> UpstreamAnswer:
        """As OpenAI's. Images that a filter kept back are a refusal of the content."""
        try:
            answer = parse_answer(body, images=images, upstream_request_id=upstream_request_id)
        except UpstreamFailure as failure:
            raise translated(failure) from None
        filtered = filtered_answer(answer)
        if filtered is not None:
            raise filtered
        return answer

    def parse_event(
        self, event: Event, *, upstream_request_id: str | None, is_first: bool = False
    ) -> ParsedEvent | None:
        """As OpenAI's, with Azure's errors."""
        parsed = parse_event(event, upstream_request_id=upstream_request_id, is_first=is_first)
        return translated(parsed) if isinstance(parsed, UpstreamFailure) else parsed

    def parse_error(
        self,
        status: int,
        headers: Mapping[str, str],
        body: bytes | bytearray,
        *,
        is_complete: bool = True,
        received_at: float | None = None,
    ) -> UpstreamFailure:
        """As OpenAI's, with Azure's codes read as OpenAI's where they mean the same."""
        failure = parse_error(
            status, headers, body, is_complete=is_complete, received_at=received_at
        )
        failure.upstream_request_id = self.request_id(headers)
        return translated(failure)

    def refuses_prompt(self, failure: UpstreamFailure, texts: Iterable[str]) -> bool:
        """A filter that kept the image back may let the next one of the same prompt through."""
        return not is_of_output(failure) and refuses_prompt(failure, texts)

    def request_id(self, headers: Mapping[str, str]) -> str | None:
        """`x-request-id`, or else that of the gateway in front of the resource."""
        received = {name.lower(): value for name, value in headers.items()}
        given = received.get("x-request-id") or received.get("apim-request-id", "")
        return request_id({"x-request-id": given})

    def excerpt(self, body: bytes | bytearray, headers: Mapping[str, str]) -> str:
        """As OpenAI's."""
        return excerpt(body, headers)

    def _versioned(self, url: URL) -> URL:
        if self._api_version is not None:
            return url.update_query({_API_VERSION: self._api_version})
        if _API_VERSION not in url.query and _is_dated(url):
            return url.update_query({_API_VERSION: DEFAULT_API_VERSION})
        return url


def _has_deployments(base: URL) -> bool:
    return not base.path.rstrip("/").endswith("/v1")


def _is_deployment(base: URL) -> bool:
    """Whether a base URL leads to one deployment."""
    return base.path.rstrip("/").rpartition("/")[0].endswith("/deployments")


def _is_dated(url: URL) -> bool:
    """Whether the API at this URL has dated versions, of which a request must name one."""
    return "/v1/" not in url.path


def _below_openai(base: URL) -> URL:
    return base if base.path.rstrip("/").endswith("/openai") else join_path(base, "/openai")


def _check_format(request: ImageRequest) -> None:
    wanted = request.parameters.get("output_format")
    if wanted in _NOT_MADE:
        message = (
            f"Azure OpenAI, the upstream service of this gateway, does not make '{wanted}'. "
            "Supported values are: 'png' and 'jpeg'."
        )
        raise refused_unsent(message, param="output_format")
