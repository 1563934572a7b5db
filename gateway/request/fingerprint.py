"""What makes two requests the same: everything that can change the image, and nothing else.

`n`, `user`, `stream`, `partial_images` and `response_format` are not in it, nor is anything at
its default: `request/validation` keeps only what is off it (CONTRACT §6).
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from gateway.images import ImageRequest

VERSION: Final = 1
"""Raise it when the meaning of a fingerprint changes; old entries are then never found again."""

_CANONICAL: Final = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def fingerprint(request: ImageRequest, *, cache_epoch: int, upstream_name: str, scope: str) -> str:
    """SHA-256, hex, of the request in canonical JSON: sorted keys, ASCII only, no spaces.

    The prompt goes in verbatim: no trimming, no case folding, no Unicode normalisation. ASCII
    escapes also give a lone surrogate an encoding, where UTF-8 would have none.
    """
    parts = {
        "version": VERSION,
        "scope": scope,
        "upstream": upstream_name,
        "model": request.model,
        "cache_epoch": cache_epoch,
        "prompt": request.prompt,
        "parameters": dict(request.parameters),
    }
    return hashlib.sha256(_CANONICAL.encode(parts).encode("ascii")).hexdigest()
