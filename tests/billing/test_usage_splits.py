"""From the `usage` of an answer to the kinds of a record: a table with the sources of its rows.

The rules are `docs/reference/images-api.md#usage`, the prices those of its table of token prices.
"""

from __future__ import annotations

from typing import Any

import pytest

from gateway.billing.pricing import cost, tokens_by_kind
from gateway.upstream.openai.answers import parse_usage
from tests.catalogs import shipped_catalog

CATALOG = shipped_catalog()


def of(tokens_in: int, tokens_out: int, **details: Any) -> dict[str, Any]:
    return {
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        **details,
    }


def split(text: int, image: int, **cached: Any) -> dict[str, Any]:
    return {"text_tokens": text, "image_tokens": image, **cached}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, int], dict[str, int]]] = {
    # name: (model, usage, tokens by kind, micro-dollars by kind)
    "the example of the page": (
        "gpt-image-2",
        of(
            14,
            380,
            input_tokens_details=split(14, 0),
            output_tokens_details=split(0, 380),
        ),
        {"text_in": 14, "image_out": 380},
        {"text_in": 70, "image_out": 11_400},
    ),
    # "without details all input is text and all output is image"
    "no details": (
        "gpt-image-1",
        of(14, 272),
        {"text_in": 14, "image_out": 272},
        {"text_in": 70, "image_out": 10_880},
    ),
    "input of text and image": (
        "gpt-image-1",
        of(60, 272, input_tokens_details=split(20, 40)),
        {"text_in": 20, "image_in": 40, "image_out": 272},
        {"text_in": 100, "image_in": 400, "image_out": 10_880},
    ),
    # a model with a price for text out, and one without: "such tokens cost as much as image out"
    "output of text and image": (
        "gpt-image-1.5",
        of(10, 300, output_tokens_details=split(28, 272)),
        {"text_in": 10, "image_out": 272, "text_out": 28},
        {"text_in": 50, "image_out": 8_704, "text_out": 280},
    ),
    "output of text without a price of its own": (
        "gpt-image-1",
        of(10, 300, output_tokens_details=split(28, 272)),
        {"text_in": 10, "image_out": 272, "text_out": 28},
        {"text_in": 50, "image_out": 10_880, "text_out": 1_120},
    ),
    # "some clones write prompt_tokens and completion_tokens"
    "the spelling of clones": (
        "gpt-image-1",
        {"prompt_tokens": 14, "completion_tokens": 272},
        {"text_in": 14, "image_out": 272},
        {"text_in": 70, "image_out": 10_880},
    ),
    # "are part of the input tokens, are charged at the cached price"
    "cached text": (
        "gpt-image-1.5",
        of(100, 272, input_tokens_details=split(100, 0, cached_tokens=64)),
        {"text_in": 36, "cached_text_in": 64, "image_out": 272},
        {"text_in": 180, "cached_text_in": 80, "image_out": 8_704},
    ),
    "cached text and image": (
        "gpt-image-1-mini",
        of(
            100,
            272,
            input_tokens_details=split(
                40, 60, cached_tokens=50, cached_tokens_details=split(20, 30)
            ),
        ),
        {
            "text_in": 20,
            "cached_text_in": 20,
            "image_in": 30,
            "cached_image_in": 30,
            "image_out": 272,
        },
        # 7.5 of cached image: the sum, 2302.5, is rounded up, and that half is the only remainder
        {
            "text_in": 40,
            "cached_text_in": 4,
            "image_in": 75,
            "cached_image_in": 8,
            "image_out": 2_176,
        },
    ),
    # "cached tokens without a split count as text first"
    "cached without a split": (
        "gpt-image-1",
        of(100, 272, input_tokens_details=split(40, 60, cached_tokens=50)),
        {
            "cached_text_in": 40,
            "image_in": 50,
            "cached_image_in": 10,
            "image_out": 272,
        },
        {
            "cached_text_in": 50,
            "image_in": 500,
            "cached_image_in": 25,
            "image_out": 10_880,
        },
    ),
    # "each partial image adds 100 output tokens": 272 + 3 × 100
    "an image with three partial ones": (
        "gpt-image-1",
        of(14, 572),
        {"text_in": 14, "image_out": 572},
        {"text_in": 70, "image_out": 22_880},
    ),
    # two halves: 0.5 + 2.5 = 3, of which the first kind gets the one that the floors leave
    "equal remainders": (
        "gpt-image-1-mini",
        of(
            11,
            0,
            input_tokens_details=split(0, 11, cached_tokens=10, cached_tokens_details=split(0, 10)),
        ),
        {"image_in": 1, "cached_image_in": 10},
        {"image_in": 3, "cached_image_in": 2},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_token_is_of_one_kind_and_costs_its_price(name: str) -> None:
    model, document, tokens, micros = CASES[name]
    usage = parse_usage(document)
    assert usage is not None
    assert tokens_by_kind(usage) == tokens
    total = document.get("total_tokens", sum(tokens.values()))
    assert sum(tokens.values()) == usage.total == total
    found = cost(CATALOG.models[model], usage=usage, images=1, parameters={})
    assert found.by_kind == micros
    assert found.usd_micros == sum(micros.values())
