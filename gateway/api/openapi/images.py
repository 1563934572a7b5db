"""JSON Schema of an image of the cache."""

from __future__ import annotations

from typing import Final

from gateway.api.openapi.requests import Schema
from gateway.imagefile.svg_content import ACTIVE

_TEXT: Final[Schema] = {"type": "string"}
_TEXT_OR_NULL: Final[Schema] = {"type": ["string", "null"]}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_USD: Final[Schema] = {"type": "number", "minimum": 0, "description": "US dollars."}
_TIME_OR_NULL: Final[Schema] = {"type": ["number", "null"], "description": "Unix seconds."}
_PROMPT: Final[Schema] = {
    "type": ["string", "null"],
    "description": "Null without `cache.store_prompts`. In a list it may be cut.",
}

_PROPERTIES: Final[Schema] = {
    "id": _TEXT,
    "created_at": {"type": "number", "description": "Unix seconds."},
    "model": _TEXT,
    "size": {"type": "string", "examples": ["1024x1024"]},
    "quality": _TEXT_OR_NULL,
    "format": {"type": "string", "examples": ["png"]},
    "bytes": _COUNT,
    "width": {**_COUNT, "description": "0 for an SVG that has no size of its own."},
    "height": _COUNT,
    "key": {"type": ["string", "null"], "description": "The name of the key that bought it."},
    "key_id": _TEXT_OR_NULL,
    "team": _TEXT_OR_NULL,
    "tags": {"type": "array", "items": _TEXT, "description": "Of the request that bought it."},
    "cost_usd": _USD,
    "hits": {**_COUNT, "description": "How often it was delivered without being bought."},
    "saved_usd": _USD,
    "last_hit_at": _TIME_OR_NULL,
    "fingerprint": _TEXT,
    "slot": {"type": ["integer", "null"], "description": "Null if it is not in its entry."},
    "expires_at": _TIME_OR_NULL,
    "state": {"enum": ["cached", "expired", "purged"]},
    "transcoded": {"type": "boolean", "description": "Made from a png, so it cost nothing."},
    "active": {
        "type": "array",
        "items": {"enum": list(ACTIVE)},
        "description": "Of an SVG: what a browser could run or load.",
    },
    "prompt": _PROMPT,
    "revised_prompt": _PROMPT,
    "url": {"type": "string", "description": "A signed link.", "format": "uri"},
}

CACHED_IMAGE: Final[Schema] = {
    "type": "object",
    "required": list(_PROPERTIES),
    "properties": _PROPERTIES,
}
