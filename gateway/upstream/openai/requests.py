"""The request body that is sent upstream."""

from __future__ import annotations

import json
from typing import Any

import orjson

from gateway.images import (
    ImageRequest,
)

# ── out ─────────────────────────────────────────────────────────────────────────────────────


def forwarded_body(request: ImageRequest, *, images: int, stream: bool = False) -> bytes:
    """The JSON that asks upstream for `images` images of `request` (CONTRACT §5, Forwarded).

    Whether they come as a stream is the purchase's matter and not the request's. Written anew and
    never the caller's own bytes, so nothing else can pass (WIRE §8 rows 23, 24).
    """
    body: dict[str, Any] = {"model": request.model, "prompt": request.prompt}
    if images != 1:
        body["n"] = images
    body |= request.parameters
    if request.requested_response_format is not None:
        body["response_format"] = request.requested_response_format
    if request.user is not None:
        # Written by the standard library, which has no largest integer.
        body["user"] = orjson.Fragment(json.dumps(request.user))
    if stream:
        body["stream"] = True
        if request.partial_images:
            body["partial_images"] = request.partial_images
    return orjson.dumps(body)
