"""Estimates are upper bounds, and costs are exact.

The numbers are calculated by hand from `docs/reference/images-api.md#output-tokens` and the
sections after it.
"""

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing import pricing
from gateway.billing.pricing import (
    KINDS,
    PICOS_PER_MICRO,
    Cost,
    charge,
    estimate,
    is_billed_by_tokens,
    split_cost,
    tokens_by_kind,
)
from gateway.images import Amounts, Usage
from gateway.request.validation import validate
from tests.catalogs import shipped_catalog
from tests.rows import each_row

CATALOG = shipped_catalog()

# By hand from docs/reference/images-api.md#output-tokens.
OLD_TOKENS = {
    "1024x1024": {"low": 272, "medium": 1056, "high": 4160},
    "1024x1536": {"low": 408, "medium": 1584, "high": 6240},
    "1536x1024": {"low": 400, "medium": 1568, "high": 6208},
}
NEW_TOKENS = {
    "1024x1024": {"low": 196, "medium": 1756, "high": 7024},
    "1536x1024": {"low": 158, "medium": 1372, "high": 5488},
    "1024x1536": {"low": 158, "medium": 1372, "high": 5488},
    "768x1024": {"low": 134, "medium": 1204, "high": 4815},
    "2048x2048": {"low": 397, "medium": 3568, "high": 14272},
    "2560x1440": {"low": 205, "medium": 1843, "high": 7370},
    "3072x2160": {"low": 380, "medium": 3524, "high": 14094},
    "3840x2160": {"low": 371, "medium": 3336, "high": 13342},
}
MODELS_OF_2_5 = (
    "gpt-image-2.5-flare",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-flare-2026-09-08",
    "gpt-image-2.5-sunburst-2026-09-08",
)
MODELS_OF_2_6 = ("gpt-image-2.6-flare", "gpt-image-2.6-sunburst")
"""Their tokens have tests of their own, in `test_token_table`."""
TOKENS = {
    "gpt-image-1": OLD_TOKENS,
    "gpt-image-1-mini": OLD_TOKENS,
    "gpt-image-1.5": OLD_TOKENS,
    "chatgpt-image-latest": OLD_TOKENS,
    "gpt-image-2": NEW_TOKENS,
    "gpt-image-2-2026-04-21": NEW_TOKENS,
}

# By hand from docs/reference/images-api.md#prices-per-image, in micro-dollars: 1024² low, medium
# and high, then 1024x1536 and 1536x1024.
IMAGES_OF_1_5 = ((9_000, 34_000, 133_000), (13_000, 50_000, 200_000))
IMAGES_OF_2 = ((6_000, 53_000, 211_000), (5_000, 41_000, 165_000))
PER_IMAGE = {
    "gpt-image-1": ((11_000, 42_000, 167_000), (16_000, 63_000, 250_000)),
    "gpt-image-1-mini": ((5_000, 11_000, 36_000), (6_000, 15_000, 52_000)),
    "gpt-image-1.5": IMAGES_OF_1_5,
    "chatgpt-image-latest": IMAGES_OF_1_5,
    "gpt-image-2": IMAGES_OF_2,
    "gpt-image-2-2026-04-21": IMAGES_OF_2,
}

# The same for the models without tokens.
DALLE = {
    "dall-e-2": {
        ("256x256", "standard"): 16_000,
        ("512x512", "standard"): 18_000,
        ("1024x1024", "standard"): 20_000,
    },
    "dall-e-3": {
        ("1024x1024", "standard"): 40_000,
        ("1024x1024", "hd"): 80_000,
        ("1792x1024", "standard"): 80_000,
        ("1792x1024", "hd"): 120_000,
        ("1024x1792", "standard"): 80_000,
        ("1024x1792", "hd"): 120_000,
    },
}

# docs/reference/images-api.md#token-prices, in micro-dollars of a token. Without a price of its own
# text out costs as much as image out.
KINDS_OF_TOKENS = KINDS[:6]
OF_1_5 = ("5.00", "1.25", "8.00", "2.00", "32.00", "10.00")
OF_2 = ("5.00", "1.25", "8.00", "2.00", "30.00", "30.00")
PRICES = {
    model: dict(zip(KINDS_OF_TOKENS, prices, strict=True))
    for model, prices in {
        "gpt-image-1": ("5.00", "1.25", "10.00", "2.50", "40.00", "40.00"),
        "gpt-image-1-mini": ("2.00", "0.20", "2.50", "0.25", "8.00", "8.00"),
        "gpt-image-1.5": OF_1_5,
        "chatgpt-image-latest": OF_1_5,
        "gpt-image-2": OF_2,
        "gpt-image-2-2026-04-21": OF_2,
        **dict.fromkeys((*MODELS_OF_2_5, *MODELS_OF_2_6), OF_2),
    }.items()
}

OTTER_TOKENS = 8 + 16  # the bytes of "an otter", and the overhead


def row(model, size):
    return [(model, size, quality, n) for quality, n in TOKENS[model][size].items()]


def bound(model, images=1, prompt="an otter", **parameters):
    request = validate({"model": model, "prompt": prompt, **parameters}, CATALOG)
    return estimate(CATALOG.models[model], request, images)


def cost(model, usage=None, images=1, size=None, quality=None):
    found = CATALOG.models[model]
    parameters = {"size": size, "quality": quality}
    priced = pricing.cost(found, usage=usage, images=images, parameters=parameters)
    return priced.usd_micros


@each_row(
    ("model", "size", "quality", "tokens"),
    [case for model, sizes in TOKENS.items() for size in sizes for case in row(model, size)],
)
def test_output_tokens_are_the_published_ones(model, size, quality, tokens):
    found = bound(model, size=size, quality=quality)
    assert found.amounts.tokens == OTTER_TOKENS + tokens
    assert found.reason is None


@each_row(
    ("model", "size", "quality", "micros"),
    [
        (model, size, quality, micros)
        for model, (square, oblong) in PER_IMAGE.items()
        for size, prices in (("1024x1024", square), ("1024x1536", oblong), ("1536x1024", oblong))
        for quality, micros in zip(("low", "medium", "high"), prices, strict=True)
    ],
)
def test_an_estimate_is_never_below_the_official_price_per_image(model, size, quality, micros):
    price = CATALOG.models[model].billing.usd_per_image[size][quality]
    assert price * 1_000_000 == micros
    assert bound(model, size=size, quality=quality).amounts.usd_micros >= micros


@pytest.mark.parametrize(
    ("size", "usd"),
    [
        ("1024x1024", (".0059", ".0527", ".2107")),
        ("1536x1024", (".0047", ".0412", ".1646")),
        ("1024x1536", (".0047", ".0412", ".1646")),
        ("768x1024", (".0040", ".0361", ".1444")),
        ("2048x2048", (".0119", ".1070", ".4282")),
        ("2560x1440", (".0062", ".0553", ".2211")),
        ("3072x2160", (".0114", ".1057", ".4228")),
        ("3840x2160", (".0111", ".1001", ".4003")),
    ],
)
def test_an_image_of_any_size_costs_the_published_price(size, usd):
    for quality, dollars in zip(("low", "medium", "high"), usd, strict=True):
        micros = cost("gpt-image-2", Usage(image_out=NEW_TOKENS[size][quality]))
        assert micros / 1_000_000 == pytest.approx(float(dollars), abs=0.00005)


@each_row(
    ("model", "size", "quality", "micros"),
    [
        ("dall-e-2", "256x256", "standard", 16_000),
        ("dall-e-2", "512x512", "standard", 18_000),
        ("dall-e-2", "1024x1024", "standard", 20_000),
        ("dall-e-2", "auto", "auto", 20_000),
        ("dall-e-2", None, None, 20_000),
        ("dall-e-3", "1024x1024", "standard", 40_000),
        ("dall-e-3", "1024x1024", "hd", 80_000),
        ("dall-e-3", "1792x1024", "standard", 80_000),
        ("dall-e-3", "1024x1792", "standard", 80_000),
        ("dall-e-3", "1792x1024", "hd", 120_000),
        ("dall-e-3", "1024x1792", "hd", 120_000),
        ("dall-e-3", None, "hd", 80_000),
    ],
)
def test_images_without_tokens_have_a_price_each(model, size, quality, micros):
    assert cost(model, size=size, quality=quality) == micros
    assert cost(model, images=4, size=size, quality=quality) == 4 * micros
    found = bound(model, 4, size=size, quality=quality)
    assert found.amounts == Amounts(images=4, tokens=0, usd_micros=4 * micros)
    assert found.reason is None


@each_row(
    ("model", "kind", "usd"),
    [(model, kind, usd) for model, prices in PRICES.items() for kind, usd in prices.items()],
)
def test_a_million_tokens_of_each_kind_cost_the_published_price(model, kind, usd):
    cached = {kind: 1_000_000} if kind.startswith("cached") else {}
    usage = Usage(**{kind.removeprefix("cached_"): 1_000_000}, **cached)
    assert cost(model, usage) == Decimal(usd) * 1_000_000


def test_the_published_example_of_a_usage_costs_what_its_tokens_do():
    """docs/reference/images-api.md#usage"""
    assert cost("gpt-image-2", Usage(text_in=14, image_out=380)) == 11_470


def test_text_out_without_a_price_costs_as_much_as_image_out():
    assert cost("gpt-image-1", Usage(text_out=10)) == 400


def test_cost_rounds_up_once_per_purchase():
    assert cost("gpt-image-1-mini", Usage(image_in=1)) == 3  # 2.5
    assert cost("gpt-image-1-mini", Usage(image_in=2)) == 5  # not twice 3


# ── the cost of each kind ───────────────────────────────────────────────────────────────────


def split(*micros: str | float) -> tuple[int, list[int], dict[str, int]]:
    """The cost, its parts and its rounding, of exact costs of the first kinds."""
    exact = [int(Decimal(str(cost)) * PICOS_PER_MICRO) for cost in micros]
    found = split_cost(dict(zip(KINDS, exact, strict=False)))
    parts = [found.by_kind.get(kind, 0) for kind in KINDS[: len(micros)]]
    return found.usd_micros, parts, dict(found.rounding)


@pytest.mark.parametrize(
    ("micros", "total", "parts", "rounded"),
    [
        ((2, 3), 5, [2, 3], []),
        ((2.5,), 3, [3], [0]),
        ((0.2, 0.3), 1, [0, 1], [1]),
        ((0.5, 0.5), 1, [1, 0], [0]),  # both halves are one whole: the first kind has it
        ((0.6, 2.5), 4, [1, 3], [0, 1]),
        ((0.6, 2.5, 7), 11, [1, 3, 7], [0, 1]),
        ((0.1, 0.1, 0.1, 0.1), 1, [1, 0, 0, 0], [0]),
        ((0.4, 0.9, 0.9), 3, [1, 1, 1], [0, 1, 2]),
        ((0.3, 0.9, 0.8), 2, [0, 1, 1], [1, 2]),
        ((0.000001, 0, 5), 6, [1, 0, 5], [0]),
        ((0, 0), 0, [0, 0], []),
    ],
)
def test_the_rounding_goes_to_the_kinds_with_the_largest_remainders(micros, total, parts, rounded):
    found = split(*micros)
    assert found == (total, parts, {KINDS[i]: 1 for i in rounded})


@given(st.lists(st.integers(0, 10**15), max_size=len(KINDS)))
def test_the_costs_of_all_kinds_add_up_to_the_sum_rounded_up_once(picos):
    exact = dict(zip(KINDS, picos, strict=False))
    found = split_cost(exact)
    assert found.usd_micros == math.ceil(Fraction(sum(picos), PICOS_PER_MICRO))
    assert sum(found.by_kind.values()) == found.usd_micros
    assert 0 not in found.by_kind.values()
    remainders = {kind: cost % PICOS_PER_MICRO for kind, cost in exact.items()}
    for kind, cost in exact.items():
        added = found.rounding.get(kind, 0)
        assert found.by_kind.get(kind, 0) == cost // PICOS_PER_MICRO + added
        assert added == 0 or (added == 1 and remainders[kind] > 0)
    # Nothing that was left out has a larger remainder, nor an equal one before it.
    order = sorted(exact, key=lambda kind: (-remainders[kind], KINDS.index(kind)))
    assert set(found.rounding) == set(order[: len(found.rounding)])


USAGES = st.builds(
    lambda text, cached, image, cached_image, out, text_out: Usage(
        text_in=text + cached,
        cached_text_in=cached,
        image_in=image + cached_image,
        cached_image_in=cached_image,
        image_out=out,
        text_out=text_out,
    ),
    *[st.integers(0, 10**9)] * 6,
)


@given(model=st.sampled_from(sorted(TOKENS)), usage=USAGES)
def test_the_kinds_of_a_record_cost_their_tokens_at_their_prices(model, usage):
    """An oracle of fractions, with the prices of the page's table."""
    found = pricing.cost(CATALOG.models[model], usage=usage, images=1, parameters={})
    tokens = tokens_by_kind(usage)
    exact = {kind: count * Fraction(PRICES[model][kind]) for kind, count in tokens.items()}
    assert sum(tokens.values()) == usage.total
    assert found.usd_micros == math.ceil(sum(exact.values()))
    assert sum(found.by_kind.values()) == found.usd_micros
    for kind, cost in exact.items():
        assert math.floor(cost) + found.rounding.get(kind, 0) == found.by_kind.get(kind, 0)


def test_a_price_per_image_is_a_kind_of_its_own_and_an_estimate_too():
    priced = pricing.cost(
        CATALOG.models["dall-e-3"], usage=None, images=2, parameters={"quality": "hd"}
    )
    assert priced == Cost(160_000, {"image": 160_000}, {})
    assert pricing.estimated_cost(566) == Cost(566, {"estimated": 566}, {})
    assert pricing.estimated_cost(0) == Cost(0, {}, {})


def test_a_token_model_without_usage_has_no_known_cost():
    with pytest.raises(ValueError, match="use the estimate"):
        cost("gpt-image-1")


@pytest.mark.parametrize(
    ("model", "parameters", "tokens", "micros", "reason"),
    [
        # 24 input tokens: 272 × 32 = 8,704 micros, and .009 per image is more; 24 × 5 besides
        ("gpt-image-1.5", {"quality": "low", "size": "1024x1024"}, 296, 9_120, None),
        # 4160 × 32 + 120 is more than .133
        ("gpt-image-1.5", {"quality": "high", "size": "1024x1024"}, 4184, 133_240, None),
        (
            "gpt-image-1.5",
            {"size": "1024x1024"},
            4184,
            133_240,
            "quality omitted: reserved as high",
        ),
        (
            "gpt-image-1.5",
            {},
            6264,
            200_120,
            "quality omitted: reserved as high; size omitted: reserved as 1024x1536",
        ),
        (
            "gpt-image-1.5",
            {"quality": "low", "size": "auto"},
            432,
            13_176,
            "size omitted: reserved as 1024x1536",
        ),
        # mini: the price per image is above the price of the tokens
        ("gpt-image-1-mini", {"quality": "low", "size": "1024x1024"}, 296, 5_048, None),
        ("gpt-image-1-mini", {"quality": "high", "size": "1024x1536"}, 6264, 52_048, None),
        (
            "gpt-image-2",
            {},
            23_743,
            711_690,
            "quality omitted: reserved as high; size omitted: reserved as 2880x2880",
        ),
        # ⌈96 · 96 · 10,294,400 / 4 M⌉
        ("gpt-image-2", {"quality": "high", "size": "2880x2880"}, 23_743, 711_690, None),
        # each partial image adds 100 tokens, but only in a stream
        (
            "gpt-image-1.5",
            {"quality": "high", "size": "1024x1024", "stream": True, "partial_images": 3},
            4484,
            142_840,
            None,
        ),
        (
            "gpt-image-1.5",
            {"quality": "high", "size": "1024x1024", "partial_images": 3},
            4184,
            133_240,
            None,
        ),
    ],
)
def test_an_estimate_covers_the_most_expensive_possible_response(
    model, parameters, tokens, micros, reason
):
    found = bound(model, **parameters)
    assert found.amounts == Amounts(images=1, tokens=tokens, usd_micros=micros)
    assert found.reason == reason


def test_several_images_share_one_prompt():
    found = bound("gpt-image-1.5", 3, quality="high", size="1024x1024")
    assert found.amounts == Amounts(images=3, tokens=24 + 3 * 4160, usd_micros=120 + 3 * 4160 * 32)


def test_the_prompt_counts_in_bytes():
    one = bound("gpt-image-2", prompt="🦦", quality="low", size="1024x1024")
    assert one.amounts.tokens == 4 + 16 + 196


def test_images_with_usage_are_charged_their_cost():
    usage = Usage(text_in=14, image_out=380)
    assert charged("gpt-image-2", usage) == Amounts(images=1, tokens=394, usd_micros=11_470)


def test_images_of_a_token_model_without_usage_are_charged_the_estimate():
    assert charged("gpt-image-2", None) == Amounts(images=9, tokens=9, usd_micros=9)


def test_images_with_a_price_each_are_charged_by_request_and_delivery():
    amounts = charged("dall-e-3", None, images=1, quality="hd")
    assert amounts == Amounts(images=1, tokens=0, usd_micros=80_000)
    amounts = charged("dall-e-2", Usage(text_in=5), images=2, n=4, size="256x256")
    assert amounts == Amounts(images=2, tokens=0, usd_micros=32_000)


def charged(model, usage, images=1, **parameters):
    request = validate({"model": model, "prompt": "an otter", **parameters}, CATALOG)
    estimated = Amounts(images=9, tokens=9, usd_micros=9)
    found = CATALOG.models[model]
    return charge(found, request, usage=usage, images=images, estimated=estimated)[0]


def test_every_price_of_the_shipped_table_is_in_the_tables_of_this_module():
    """A new model or price needs a row here, with its source."""
    for name, model in CATALOG.models.items():
        prices = {
            (size, quality): int(usd * 1_000_000)
            for size, row in model.billing.usd_per_image.items()
            for quality, usd in row.items()
        }
        if name in DALLE:
            assert prices == DALLE[name]
            continue
        square, oblong = PER_IMAGE.get(name, ((), ()))
        sizes = {"1024x1024": square, "1024x1536": oblong, "1536x1024": oblong}
        assert prices == {
            (size, quality): micros
            for size, row in sizes.items()
            for quality, micros in zip(("low", "medium", "high"), row, strict=False)
        }
        usd = model.billing.usd_per_million_tokens
        kinds = {kind: getattr(usd, kind) for kind in KINDS_OF_TOKENS}
        kinds["text_out"] = usd.image_out if usd.text_out is None else usd.text_out
        assert kinds == {kind: Decimal(price) for kind, price in PRICES[name].items()}
        assert model.billing.partial_image_tokens == 100


def test_the_shipped_gpt_models_are_billed_by_tokens():
    by_tokens = {name for name, model in CATALOG.models.items() if is_billed_by_tokens(model)}
    assert by_tokens == {*TOKENS, *MODELS_OF_2_5, *MODELS_OF_2_6}


@given(st.data())
def test_no_response_costs_more_than_its_estimate(data):
    """Upstream may choose any size and quality for `auto`."""
    model = data.draw(st.sampled_from(sorted(TOKENS)))
    size = data.draw(st.sampled_from(["auto", *TOKENS[model]]))
    quality = data.draw(st.sampled_from(["auto", "low", "medium", "high"]))
    images, partials = data.draw(st.sampled_from([(1, 0), (1, 1), (1, 3), (2, 0), (10, 0)]))
    prompt = data.draw(st.text(min_size=1, max_size=60))
    real_size = data.draw(st.sampled_from(sorted(TOKENS[model]))) if size == "auto" else size
    real_quality = (
        data.draw(st.sampled_from(["low", "medium", "high"])) if quality == "auto" else quality
    )
    usage = Usage(
        text_in=math.ceil(len(prompt) / 4) + data.draw(st.integers(5, 14)),
        image_out=images * TOKENS[model][real_size][real_quality] + 100 * partials,
    )
    parameters = {
        "size": size,
        "quality": quality,
        "stream": partials > 0,
        "partial_images": partials,
    }
    bound_amounts = bound(model, images, prompt=prompt, **parameters).amounts
    assert usage.total <= bound_amounts.tokens
    assert cost(model, usage, images, real_size, real_quality) <= bound_amounts.usd_micros
