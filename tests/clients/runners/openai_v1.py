"""openai (Python) 1 and later: OpenAI, AsyncOpenAI, AzureOpenAI, AsyncAzureOpenAI."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import openai
from calls import NotOffered, as_report, run, wanted

VERSION = tuple(map(int, openai.__version__.split(".")[:2]))
HAS_STREAMS = VERSION >= (1, 88)
KNOWS_MODELS = VERSION >= (1, 2)
"""Before, `model` is one of the parameters that only `extra_body` takes."""


def make(base_url: str, flavour: str, call: SimpleNamespace) -> dict[str, Any]:
    if call.stream and not HAS_STREAMS:
        raise NotOffered
    client: Any = getattr(openai, flavour)
    if "Azure" in flavour:
        where = {"azure_endpoint": base_url, "api_version": "2025-04-01-preview"}
    else:
        where = {"base_url": base_url}
    opened = client(api_key=call.key, **where)
    body = {"prompt": call.prompt} | wanted(call, "model", "n", "size", "response_format")
    if not KNOWS_MODELS and "model" in body:
        body["extra_body"] = {"model": body.pop("model")}
    if call.stream:
        body |= {"stream": True, "partial_images": 2}
    if flavour.startswith("Async"):
        return asyncio.run(generate_async(opened, body))
    response = opened.images.generate(**body)
    return of_events(list(response)) if call.stream else as_report(response)


async def generate_async(client: Any, body: dict[str, Any]) -> dict[str, Any]:
    async with client:
        response = await client.images.generate(**body)
        if body.get("stream"):
            return of_events([event async for event in response])
        return as_report(response)


def of_events(events: list[Any]) -> dict[str, Any]:
    completed = [event for event in events if event.type == "image_generation.completed"]
    return {
        "images": [event.b64_json for event in completed],
        "partials": len(events) - len(completed),
        "usage": sum(event.usage.total_tokens for event in completed),
    }


run(make)
