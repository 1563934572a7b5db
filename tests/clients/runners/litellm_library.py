"""LiteLLM as a library: `litellm.image_generation` with the gateway as `api_base`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import litellm
from calls import NotOffered, as_report, run, wanted


def make(base_url: str, flavour: str, call: SimpleNamespace) -> dict[str, Any]:
    if call.stream:
        raise NotOffered
    options = wanted(call, "n", "size", "response_format")
    if call.model is not None:
        options["model"] = f"openai/{call.model}"
    response = litellm.image_generation(
        prompt=call.prompt, api_base=base_url, api_key=call.key, **options
    )
    return as_report(response)


run(make)
