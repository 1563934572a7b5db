"""The fingerprint of a request: the cache key.

It contains everything that can change the image, and nothing else: not `n`, `user`, `stream`,
`partial_images` or `response_format`, and no parameter at its default, which `request.validation`
leaves out. Of a model without a row it contains the whole body (`request.unchecked`). See
`docs/reference/cache.md#fingerprint`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final

from gateway.images import ImageRequest

VERSION: Final = 1
"""Raised when the meaning of a fingerprint changes. Entries of older versions are not found."""

# ASCII escapes also encode a lone surrogate, which UTF-8 cannot.
_CANONICAL: Final = json.JSONEncoder(ensure_ascii=True, sort_keys=True, separators=(",", ":"))

_TEXTS: Final = frozenset({str})


def fingerprint(request: ImageRequest, *, cache_epoch: int, upstream_name: str, scope: str) -> str:
    """SHA-256, hex, of the request in canonical JSON: sorted keys, ASCII only, no spaces.

    The prompt goes in verbatim: no trimming, no case folding, no Unicode normalisation.
    """
    parts: dict[str, Any] = {
        "version": VERSION,
        "scope": scope,
        "upstream": upstream_name,
        "model": request.model,
        "cache_epoch": cache_epoch,
    }
    if request.unchecked is None:
        parts |= {"prompt": request.prompt, "parameters": request.parameters}
        canonical = _join(parts)
    else:
        parts["body"] = request.unchecked.canonical
        canonical = _CANONICAL.encode(parts)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _join(parts: Mapping[str, Any]) -> str:
    """As the encoder, which takes twice as long because it prepares itself at each call."""
    return (
        f'{{"cache_epoch":{parts["cache_epoch"]:d},"model":{_quoted(parts["model"])},'
        f'"parameters":{_join_parameters(parts["parameters"])},'
        f'"prompt":{_quoted(parts["prompt"])},"scope":{_quoted(parts["scope"])},'
        f'"upstream":{_quoted(parts["upstream"])},"version":{parts["version"]:d}}}'
    )


def _join_parameters(parameters: Mapping[str, Any]) -> str:
    if not _TEXTS.issuperset(map(type, parameters.values())):
        return _CANONICAL.encode(dict(parameters))
    members = [f"{_quoted(name)}:{_quoted(parameters[name])}" for name in sorted(parameters)]
    return f"{{{','.join(members)}}}"
