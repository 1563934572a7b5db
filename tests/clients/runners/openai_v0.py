"""openai (Python) before 1: module-wide settings, dictionaries, no streams of images."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import openai
from calls import NotOffered, run, wanted


def make(base_url: str, flavour: str, call: SimpleNamespace) -> dict[str, Any]:
    if call.stream:
        raise NotOffered
    openai.api_base, openai.api_key = base_url, call.key
    body = wanted(call, "model", "n", "size", "response_format")
    response = openai.Image.create(prompt=call.prompt, **body)
    return {"images": [item.get("url") or item["b64_json"] for item in response["data"]]}


run(make)
