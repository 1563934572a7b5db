"""What-if: other qualities and no cache, computed by hand from `docs/reference/images-api.md`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing.pricing import cost, estimated_cost, tokens_by_kind
from gateway.billing.record_amounts import Sums
from gateway.billing.what_if import (
    NO_KINDS,
    NO_ORIGINAL,
    NO_PRICE,
    OTHER_QUALITIES,
    UNKNOWN_IMAGE,
    UNKNOWN_MODEL,
    WAS_ESTIMATED,
    Uncomputed,
    WhatIf,
    answer,
    parse_what_if,
)
from gateway.catalog import parse_catalog
from gateway.images import Usage
from tests.catalogs import read_shipped, shipped_catalog

CATALOG = shipped_catalog()
LOW, HIGH, NO_CACHE = WhatIf("low"), WhatIf("high"), WhatIf(None)


@dataclass(frozen=True)
class Row:
    dimensions: dict[str, Any]
    sums: Sums = field(default_factory=Sums)


def row(
    model: str | None,
    quality: str | None = "high",
    size: str | None = "1024x1024",
    *,
    usage: Usage | None = None,
    images: int = 1,
    **sums: Any,
) -> Row:
    """A purchase as the totals have it."""
    known = {"model": model, "size": size, "quality": quality}
    dimensions = {name: value for name, value in known.items() if value is not None}
    priced = estimated_cost(0)
    if model in CATALOG.models and "cost_micros" not in sums:
        priced = cost(
            CATALOG.models[model],
            usage=usage,
            images=images,
            parameters={"size": size, "quality": quality},
        )
    paid = {"cost_micros": priced.usd_micros, "costs": priced.by_kind}
    tokens = tokens_by_kind(usage)
    return Row(dimensions, Sums(images_bought=images, tokens=tokens, **{**paid, **sums}))


def ask(question: WhatIf, *rows: Row) -> tuple[int, tuple[Uncomputed, ...]]:
    found = answer(question, rows, CATALOG)
    assert found.charged_micros == sum(row.sums.cost_micros for row in rows)
    return found.cost_micros, found.uncomputed


@pytest.mark.parametrize(
    ("question", "paid", "expected"),
    [
        # 14 text tokens are 70; images: 4160, 1056, 272 tokens at 32
        (LOW, row("gpt-image-1.5", usage=Usage(text_in=14, image_out=4160)), 70 + 272 * 32),
        (
            WhatIf("medium"),
            row("gpt-image-1.5", usage=Usage(text_in=14, image_out=3 * 4160), images=3),
            70 + 3 * 1056 * 32,
        ),
        (HIGH, row("gpt-image-1", "low", usage=Usage(image_out=272)), 4160 * 40),
        # the sizes of the formula: 7024 and 196 tokens at 30
        (LOW, row("gpt-image-2", usage=Usage(text_in=14, image_out=7024)), 70 + 196 * 30),
        (
            LOW,
            row("gpt-image-2", size="3840x2160", usage=Usage(image_out=2 * 13342), images=2),
            2 * 371 * 30,
        ),
        # two partial images cost the same at any quality
        (LOW, row("gpt-image-1.5", usage=Usage(image_out=4160 + 200)), (272 + 200) * 32),
        (HIGH, row("gpt-image-1.5", "low", usage=Usage(image_out=272 + 300)), (4160 + 300) * 32),
        (WhatIf("hd"), row("dall-e-3", "standard", images=3), 3 * 80_000),
        (WhatIf("standard"), row("dall-e-3", "hd", size="1792x1024"), 80_000),
    ],
)
def test_images_cost_what_their_tokens_or_prices_at_the_other_quality_do(question, paid, expected):
    assert ask(question, paid) == (expected, ())


@given(
    model=st.sampled_from(["gpt-image-1", "gpt-image-1-mini", "gpt-image-1.5", "gpt-image-2"]),
    size=st.sampled_from(["1024x1024", "1024x1536", "1536x1024"]),
    images=st.integers(1, 50),
    text=st.integers(0, 5000),
    partials=st.integers(0, 3),
    data=st.data(),
)
def test_the_answer_is_the_bill_of_the_same_images_at_the_other_quality(
    model, size, images, text, partials, data
):
    billing = CATALOG.models[model].billing
    before = data.draw(st.sampled_from(["low", "medium", "high"]))
    after = data.draw(st.sampled_from(["low", "medium", "high"]))
    if billing.output_tokens is None:
        published = {"1024x1024": (196, 1756, 7024)}.get(size, (158, 1372, 5488))
        tokens = dict(zip(("low", "medium", "high"), published, strict=True))
    else:
        tokens = billing.output_tokens[size]

    def bill(quality: str) -> Row:
        out = images * (tokens[quality] + 100 * partials)
        return row(model, quality, size, usage=Usage(text_in=text, image_out=out), images=images)

    found, uncomputed = ask(WhatIf(after), bill(before))
    assert found == bill(after).sums.cost_micros
    assert uncomputed == ()


def test_without_the_cache_everything_that_was_saved_is_paid():
    hits = row("dall-e-3", images=0, cost_micros=0, saved_micros=80_000, images_served=2)
    bought = row("dall-e-3", "hd")
    assert ask(NO_CACHE, bought, hits) == (160_000, ())
    lost = row("dall-e-3", images=0, cost_micros=0, images_served=2)
    assert ask(NO_CACHE, bought, lost) == (80_000, (Uncomputed("dall-e-3", NO_ORIGINAL, 0),))


@pytest.mark.parametrize(
    ("paid", "reason"),
    [
        (row("gone-1", cost_micros=500, costs={"image": 500}), UNKNOWN_MODEL),
        (row(None, cost_micros=500, costs={"image_out": 500}), UNKNOWN_MODEL),
        (row("dall-e-3", "hd", cost_micros=500, costs={"image": 500}), OTHER_QUALITIES),
        (row("gpt-image-1", "auto", cost_micros=9, costs={"image_out": 9}), UNKNOWN_IMAGE),
        (row("gpt-image-1", size="9x9", cost_micros=9, costs={"image_out": 9}), UNKNOWN_IMAGE),
        (row("gpt-image-2", size="other", cost_micros=9, costs={"image_out": 9}), UNKNOWN_IMAGE),
        (row("gpt-image-2", size=None, cost_micros=9, costs={"image_out": 9}), UNKNOWN_IMAGE),
        (row("gpt-image-2", cost_micros=9, costs={"estimated": 9}), WAS_ESTIMATED),
        (row("gpt-image-2", cost_micros=9), NO_KINDS),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_kept_and_said(paid, reason):
    model = paid.dimensions.get("model")
    expected = paid.sums.cost_micros, (Uncomputed(model, reason, paid.sums.cost_micros),)
    assert ask(LOW, paid) == expected


def test_only_the_part_that_cannot_be_computed_is_kept():
    """Two images with usage, one charged at an estimate, and 7 micro-dollars of older records."""
    paid = row(
        "gpt-image-1.5",
        images=3,
        cost_micros=2 * 4160 * 32 + 200_000 + 7,
        costs={"image_out": 2 * 4160 * 32, "estimated": 200_000},
        usage=Usage(image_out=2 * 4160),
    )
    assert ask(LOW, paid) == (
        2 * 272 * 32 + 200_007,
        (
            Uncomputed("gpt-image-1.5", WAS_ESTIMATED, 200_000),
            Uncomputed("gpt-image-1.5", NO_KINDS, 7),
        ),
    )


def test_a_corrected_charge_is_no_estimate_any_more():
    """The presumed charge and the images are in the row of the failure."""
    presumed = row("gpt-image-1.5", cost_micros=200_000, costs={"estimated": 200_000})
    late = row(
        "gpt-image-1.5",
        images=0,
        cost_micros=4160 * 32 - 200_000,
        costs={"image_out": 4160 * 32, "estimated": -200_000},
        usage=Usage(image_out=4160),
    )
    assert ask(LOW, presumed, late) == (272 * 32, ())


def test_a_model_without_a_price_is_kept():
    table = read_shipped()
    del table["models"]["dall-e-3"]["billing"]
    paid = row("dall-e-3", "hd")
    found = answer(WhatIf("standard"), [paid], parse_catalog(table, file="models.yaml"))
    assert found.cost_micros == 80_000
    assert found.uncomputed == (Uncomputed("dall-e-3", NO_PRICE, 80_000),)


def test_refused_requests_and_hits_cost_nothing_at_any_quality():
    refused = Row({}, Sums(requests=3))
    hits = row("dall-e-3", images=0, cost_micros=0, saved_micros=80_000, images_served=2)
    assert ask(LOW, refused, hits) == (0, ())


@pytest.mark.parametrize("name", ["low", "medium", "high", "standard", "hd"])
def test_every_quality_with_a_price_can_be_asked_for(name):
    assert parse_what_if(f"quality={name}", CATALOG) == WhatIf(name)
    assert parse_what_if("cache=off", CATALOG) == NO_CACHE


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("quality=lo", "quality=low"),
        ("quality=auto", "quality="),
        ("cache=of", "cache=off"),
        ("cache=on", "cache=off"),
        ("", "quality="),
        ("quality=" + "x" * 5000, "quality="),
    ],
)
def test_another_question_is_refused_with_the_nearest_valid_one(text, near):
    with pytest.raises(ValueError, match=near) as raised:
        parse_what_if(text, CATALOG)
    assert len(str(raised.value)) < 250
