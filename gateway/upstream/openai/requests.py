"""The URLs of upstream, and the request body that is sent to it."""

from __future__ import annotations

import json
from functools import lru_cache
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


def check_supported(_request: ImageRequest, *, images: int) -> None:
    """Refuses nothing: the service says itself what it cannot make."""


def forwarded_body(request: ImageRequest, *, images: int, stream: bool = False) -> bytes:
    """The JSON body of a request for `images` images, of the members that `members` has."""
    return orjson.dumps(members(request, images=images, stream=stream))


def members(request: ImageRequest, *, images: int, stream: bool = False) -> dict[str, Any]:
    """The members of the body by name, for dialects that name some of them differently.

    `stream` is an argument because the purchase decides it, not the client's request. The body is
    built from the interpreted request and never copied from the client's bytes, so that only the
    keys of `docs/reference/images-api.md#what-is-forwarded` can be in it; except for a model
    without a row, whose members are all forwarded.
    """
    given = _checked_members if request.unchecked is None else _unchecked_members
    body = given(request, images)
    if stream:
        body["stream"] = True
        if request.partial_images:
            body["partial_images"] = request.partial_images
    return body


def _checked_members(request: ImageRequest, images: int) -> dict[str, Any]:
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
    return body


def _unchecked_members(request: ImageRequest, images: int) -> dict[str, Any]:
    """The members as the client wrote them. `n` differs only if some images need not be bought."""
    given = request.unchecked
    if given is None:
        return {}
    body: dict[str, Any] = {"model": request.model}
    body |= {name: orjson.Fragment(text) for name, text in given.members.items()}
    if images != request.n:
        body["n"] = images
    elif given.n is not None:
        body["n"] = orjson.Fragment(given.n)
    return body


@lru_cache(maxsize=256)
def join_path(base: URL, path: str) -> URL:
    """The base with a path, percent-encoded, below its own. Its query is kept."""
    return base.with_path(base.raw_path.rstrip("/") + path, encoded=True, keep_query=True)
