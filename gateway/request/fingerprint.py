"""The fingerprint of a request: the cache key.

It contains everything that can change the image, and nothing else: not `n`, `user`, `stream`,
`partial_images` or `response_format`, and no parameter at its default, which `request.validation`
leaves out. Of a model without a row it contains the whole body (`request.unchecked`). See
`docs/reference/cache.md#fingerprint`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from gateway.images import ImageRequest

VERSION: Final = 1
"""Raised when the meaning of a fingerprint changes. Entries of older versions are not found."""

# ASCII escapes also encode a lone surrogate, which UTF-8 cannot.
_CANONICAL: Final = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"))


def fingerprint(request: ImageRequest, *, cache_epoch: int, upstream_name: str, scope: str) -> str:
    """SHA-256, hex, of the request in canonical JSON: sorted keys, ASCII only, no spaces.

    The prompt goes in verbatim: no trimming, no case folding, no Unicode normalisation.
    """
    parts: dict[str, object] = {
        "version": VERSION,
        "scope": scope,
        "upstream": upstream_name,
        "model": request.model,
        "cache_epoch": cache_epoch,
    }
    if request.unchecked is None:
        parts |= {"prompt": request.prompt, "parameters": dict(request.parameters)}
    else:
        parts["body"] = request.unchecked.canonical
    return hashlib.sha256(_CANONICAL.encode(parts).encode("ascii")).hexdigest()
