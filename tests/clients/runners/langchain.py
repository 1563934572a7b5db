"""LangChain (Python): DallEAPIWrapper, which joins the links of the response."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from calls import NotOffered, run, wanted
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper


def make(base_url: str, flavour: str, call: SimpleNamespace) -> dict[str, Any]:
    if call.stream or call.response_format is not None:
        raise NotOffered
    options = wanted(call, "model", "n", "size")
    wrapper = DallEAPIWrapper(base_url=base_url, api_key=call.key, **options)
    return {"images": wrapper.run(call.prompt).split("\n")}


run(make)
