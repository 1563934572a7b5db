"""`GET /openapi.json`: the gateway's own description in OpenAPI 3.1.

The paths are those of the URL tables (`api/routes`), what they do is `operations`, the bodies are
`requests` and `answers`. The document depends on the model table, and is replaced with it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson
from aiohttp import hdrs, web

from gateway import __version__
from gateway.access.policy import Policy
from gateway.api.http.json import JSON
from gateway.api.http.ranges import is_not_modified
from gateway.api.openapi.answers import ANSWERS
from gateway.api.openapi.headers import HEADERS, error_responses, header_references
from gateway.api.openapi.operations import describe
from gateway.api.openapi.parts import TAG_NAMES, Content, Credential, Operation, Success
from gateway.api.openapi.requests import Schema, generation_schemas, key_schemas, reference
from gateway.api.openapi.subjects import subject_schemas
from gateway.api.services import SERVICES
from gateway.catalog import Catalog

_VARIABLE: Final = re.compile(r"\{(\w+)[^{}]*(?:\{[^{}]*\}[^{}]*)*\}")
"""A variable part of an aiohttp path, whose pattern may have braces itself."""

_USUAL_SPELLING: Final = {"_prefix": "v1/", "_tail": ""}
"""What clients usually send for the parts of a path that have several spellings."""
_SEGMENTS: Final = {"link": ("signature", "image")}
"""The parts of a path that have slashes. A variable of OpenAPI is one segment: clients escape the
slashes in it, and an escaped link is another one."""
_SLASHES: Final = re.compile(r"_\d*")
"""The name of a part that stands for one slash, or more."""

_PATH_VARIABLES: Final = {
    "id": "An id, as answers have it.",
    "model": "The id of a model.",
    "deployment": "The id of a model, as Azure's clients name a deployment.",
    "signature": "Key id, expiry and signature of a link: `KID.EXPIRY.SIGNATURE`.",
    "image": "The name of the image: `img-ID.png`.",
}

_EVENT_SCHEMAS: Final = ("PartialImageEvent", "CompletedEvent", "Error")

_SECURITY: Final[Mapping[Credential, list[dict[str, list[str]]]]] = {
    "key": [{"key": []}, {"apiKey": []}, {"basic": []}],
    "admin": [{"adminToken": []}, {"adminApiKey": []}],
    "metrics": [{"metricsToken": []}, {"adminToken": []}],
}
"""Any one of the schemes opens the path."""

_SECURITY_SCHEMES: Final = {
    "key": {"type": "http", "scheme": "bearer", "description": "A gateway key."},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "api-key",
        "description": "The same key, as Azure's clients send it.",
    },
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The same key as the password, with any user name. Requests of pages of "
        "other origins are refused.",
    },
    "adminToken": {"type": "http", "scheme": "bearer", "description": "`GATEWAY_ADMIN_TOKEN`."},
    "adminApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "api-key",
        "description": "`GATEWAY_ADMIN_TOKEN`.",
    },
    "metricsToken": {"type": "http", "scheme": "bearer", "description": "`GATEWAY_METRICS_TOKEN`."},
}


class Documents:
    """The document of the current model table, as bytes."""

    def __init__(self, routes: Iterable[web.RouteDef]) -> None:
        self._routes = tuple(routes)
        self._current: tuple[Policy, bytes, str] | None = None

    async def find(self, policy: Policy) -> tuple[bytes, str]:
        """The document and its `ETag`."""
        if self._current is None or self._current[0] is not policy:
            # In a thread: it takes milliseconds.
            body = await asyncio.to_thread(self._encode, policy)
            self._current = policy, body, f'"{hashlib.sha256(body).hexdigest()}"'
        return self._current[1:]

    def _encode(self, policy: Policy) -> bytes:
        return orjson.dumps(create_document(self._routes, policy.catalog))


DOCUMENTS: Final = web.AppKey("documents", Documents)


async def show_document(request: web.Request) -> web.Response:
    """`GET /openapi.json`."""
    body, etag = await request.app[DOCUMENTS].find(request.app[SERVICES].policy())
    headers = {hdrs.ETAG: etag, hdrs.CACHE_CONTROL: "no-cache"}
    if is_not_modified(request, etag):
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, content_type=JSON, headers=headers)


def create_document(routes: Iterable[web.RouteDef], catalog: Catalog) -> Schema:
    """The document of these routes. Raises `KeyError` for a route without an operation."""
    paths: dict[str, Schema] = {}
    for route in routes:
        path, variables = path_template(route.path)
        operation = describe(route.kwargs["name"], route.method)
        methods = paths.setdefault(path, {})
        methods.setdefault(route.method.lower(), _operation(operation, variables))
    for path, methods in paths.items():
        for method, found in methods.items():
            found["operationId"] = re.sub(r"\W+", "_", f"{method}{path}").strip("_")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Image Gateway",
            "version": __version__,
            "summary": "A caching reverse proxy for OpenAI-compatible image generation.",
            "description": "Errors are JSON everywhere. Paths of the images API work with and "
            "without `/v1`, below `/openai` as Azure's clients write them, and with doubled and "
            "trailing slashes.",
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in TAG_NAMES.items()],
        "paths": paths,
        "components": {
            "schemas": {
                **generation_schemas(catalog),
                **key_schemas(),
                **subject_schemas(),
                **ANSWERS,
            },
            "responses": error_responses(),
            "headers": {
                name: {"description": meaning, "schema": {"type": "string"}}
                for name, meaning in HEADERS.items()
            },
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def path_template(pattern: str) -> tuple[str, tuple[str, ...]]:
    """The path of a route in its usual spelling, and the names of its variables."""
    names: list[str] = []

    def show(found: re.Match[str]) -> str:
        name = found[1]
        if name in _USUAL_SPELLING:
            return _USUAL_SPELLING[name]
        if _SLASHES.fullmatch(name):
            return "/"
        segments = _SEGMENTS.get(name, (name,))
        names.extend(segments)
        return "/".join(f"{{{segment}}}" for segment in segments)

    return _VARIABLE.sub(show, pattern), tuple(names)


def _operation(operation: Operation, variables: tuple[str, ...]) -> Schema:
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_VARIABLES.get(name, f"The {name}."),
            "schema": {"type": "string"},
        }
        for name in variables
    ]
    responses = {str(status): _success(found) for status, found in operation.responses.items()}
    responses |= {
        str(status): {"$ref": f"#/components/responses/Error{status}"}
        for status in sorted(operation.errors)
    }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": _SECURITY[operation.credential] if operation.credential else [],
        "parameters": [*in_path, *operation.parameters],
        "responses": {**responses, "default": {"$ref": "#/components/responses/Error"}},
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _contents((operation.body,))}
    return described


def _success(response: Success) -> Schema:
    described: Schema = {
        "description": response.description,
        "headers": header_references(response.headers),
    }
    if response.content:
        described["content"] = _contents(response.content)
    return described


def _contents(contents: Iterable[Content]) -> Schema:
    return {content.media_type: _content(content) for content in contents}


def _content(content: Content) -> Schema:
    described: Schema = {}
    if content.schema is not None and content.more:
        described["schema"] = {"anyOf": [*map(reference, (content.schema, *content.more))]}
    elif content.schema is not None:
        described["schema"] = reference(content.schema)
    elif content.media_type == "text/event-stream":
        # OpenAPI 3.1 has no place for the schema of one event.
        described["schema"] = {"type": "string"}
        described["x-event_schemas"] = [*map(reference, _EVENT_SCHEMAS)]
    if content.examples:
        described["examples"] = dict(content.examples)
    return described
