"""pydantic-ai: ImageGenerator with an OpenAIProvider. It refuses dall-e models itself."""

from __future__ import annotations

import asyncio
import base64
from types import SimpleNamespace
from typing import Any

from calls import NotOffered, run
from pydantic_ai.images import ImageGenerator
from pydantic_ai.images.openai import OpenAIImageGenerationModel
from pydantic_ai.providers.openai import OpenAIProvider


def make(base_url: str, flavour: str, call: SimpleNamespace) -> dict[str, Any]:
    if call.stream or call.response_format is not None or call.model is None:
        raise NotOffered
    if call.model.startswith("dall-e"):
        raise NotOffered
    provider = OpenAIProvider(base_url=base_url, api_key=call.key)
    model = OpenAIImageGenerationModel(call.model, provider=provider)
    settings: dict[str, Any] = {}
    if call.n is not None:
        settings["openai_n"] = call.n
    if call.size is not None:
        settings["openai_size"] = call.size
    result = asyncio.run(ImageGenerator(model).generate(call.prompt, settings=settings))
    images = [base64.b64encode(image.content.data).decode() for image in result.images]
    return {"images": images, "usage": result.usage.total_tokens}


run(make)
