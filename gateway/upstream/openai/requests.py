"""The URLs of upstream, and the request body that is sent to it."""

from __future__ import annotations

import json
from typing import Any

import orjson
from yarl import URL

from gateway.images import IDENTITIES, ImageRequest


def generations_url(base: URL, _model: str) -> URL:
    """The URL of generations, the same for every model. A query of the base is kept."""
    return join_path(base, "/images/generations")


def models_url(base: URL) -> URL:
    """The URL that lists the models, which is free of charge."""
    return join_path(base, "/models")


def forwarded_body(request: ImageRequest, *, images: int, stream: bool = False) -> bytes:
    """The JSON body of a request for `images` images, of the members that `members` has."""
    return orjson.dumps(members(request, images=images, stream=stream))


def members(request: ImageRequest, *, images: int, stream: bool = False) -> dict[str, Any]:
    """The members of the body by name, for dialects that name some of them differently.

    `stream` is an argument because the purchase decides it, not the client's request. The body is
    built from the interpreted request and never copied from the client's bytes, so that only the
    keys of `docs/reference/images-api.md#what-is-forwarded` can be in it.
    """
    body: dict[str, Any] = {"model": request.model, "prompt": request.prompt}
    if images != 1:
        body["n"] = images
    body |= request.parameters
    if request.requested_response_format is not None:
        body["response_format"] = request.requested_response_format
    for name in IDENTITIES:
        if (value := getattr(request, name)) is not None:
            # By the standard library, because orjson rejects integers beyond 64 bits.
            body[name] = orjson.Fragment(json.dumps(value))
    if stream:
        body["stream"] = True
        if request.partial_images:
            body["partial_images"] = request.partial_images
    return body


def join_path(base: URL, path: str) -> URL:
    """The base with a path, percent-encoded, below its own. Its query is kept."""
    return base.with_path(base.raw_path.rstrip("/") + path, encoded=True, keep_query=True)
