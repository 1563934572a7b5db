"""An estimate is an upper bound of every legal request: an oracle of its own numbers.

The numbers are those of `docs/reference/images-api.md`: output tokens, token prices and prices per
image (OpenAI's guides, 2026-07). Nothing here is read from `config/models.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing.pricing import cost, estimate
from gateway.images import Usage
from gateway.request.validation import validate
from tests.catalogs import shipped_catalog
from tests.rows import each_row

CATALOG = shipped_catalog()

QUALITIES = ("low", "medium", "high")
FIXED_SIZES = ("1024x1024", "1024x1536", "1536x1024")
TABLE = dict(
    zip(FIXED_SIZES, ((272, 1056, 4160), (408, 1584, 6240), (400, 1568, 6208)), strict=True)
)
GRIDS = {"low": 16, "medium": 48, "high": 96}
PARTIAL_TOKENS = 100
OVERHEAD = 16

# Micro-dollars of a token: text in, image out.
TOKEN_PRICES = {
    "gpt-image-1": (5, 40),
    "gpt-image-1-mini": (2, 8),
    "gpt-image-1.5": (5, 32),
    "chatgpt-image-latest": (5, 32),
    "gpt-image-2": (5, 30),
    "gpt-image-2-2026-04-21": (5, 30),
}
# Micro-dollars of an image: 1024x1024, then both oblong sizes.
OF_1_5 = ((9_000, 34_000, 133_000), (13_000, 50_000, 200_000))
OF_2 = ((6_000, 53_000, 211_000), (5_000, 41_000, 165_000))
IMAGE_PRICES = {
    "gpt-image-1": ((11_000, 42_000, 167_000), (16_000, 63_000, 250_000)),
    "gpt-image-1-mini": ((5_000, 11_000, 36_000), (6_000, 15_000, 52_000)),
    "gpt-image-1.5": OF_1_5,
    "chatgpt-image-latest": OF_1_5,
    "gpt-image-2": OF_2,
    "gpt-image-2-2026-04-21": OF_2,
}
DALLE_PRICES = {
    ("dall-e-2", "256x256", "standard"): 16_000,
    ("dall-e-2", "512x512", "standard"): 18_000,
    ("dall-e-2", "1024x1024", "standard"): 20_000,
    ("dall-e-2", "auto", "auto"): 20_000,
    ("dall-e-3", "1024x1024", "standard"): 40_000,
    ("dall-e-3", "1024x1024", "hd"): 80_000,
    ("dall-e-3", "1792x1024", "standard"): 80_000,
    ("dall-e-3", "1792x1024", "hd"): 120_000,
    ("dall-e-3", "1024x1792", "standard"): 80_000,
    ("dall-e-3", "1024x1792", "hd"): 120_000,
    ("dall-e-3", "auto", "auto"): 40_000,
}

PROMPTS = ("x", "an otter", "🦦" * 40, "a" * 32_000)
FORMATS = (
    {},
    {"output_format": "jpeg", "output_compression": 0},
    {"output_format": "webp", "background": "transparent"},
    {"background": "opaque", "moderation": "low"},
)
RUNS = [(n, None) for n in range(1, 11)] + [(1, partials) for partials in range(4)]
"""`n` and, of a stream, `partial_images`: every legal pair."""

FREE_MODELS = ("gpt-image-2", "gpt-image-2-2026-04-21")


def free_sizes() -> Iterator[tuple[int, int]]:
    """All sizes that gpt-image-2 takes."""
    for width, height in product(range(16, 3841, 16), repeat=2):
        if 655_360 <= width * height <= 8_294_400 and max(width, height) <= 3 * min(width, height):
            yield width, height


def formula_tokens(width: int, height: int, quality: str) -> int:
    grid = GRIDS[quality]
    cells = math.floor(Fraction(grid * min(width, height), max(width, height)) + Fraction(1, 2))
    return math.ceil(Fraction(grid * cells * (2_000_000 + width * height), 4_000_000))


def image_of(model: str, size: str, quality: str) -> tuple[int, int]:
    """Output tokens of an image, and what they or the image cost, whichever is more."""
    if model in FREE_MODELS:
        tokens = formula_tokens(*map(int, size.split("x")), quality)
    else:
        tokens = TABLE[size][QUALITIES.index(quality)]
    price = 0
    if size in FIXED_SIZES:
        row = IMAGE_PRICES[model][size != "1024x1024"]
        price = row[QUALITIES.index(quality)]
    return tokens, max(tokens * TOKEN_PRICES[model][1], price)


def dearest(model: str, size: str, quality: str, sizes: tuple[str, ...]) -> tuple[int, int]:
    """The most tokens and the most money of what upstream may choose."""
    images = [
        image_of(model, a_size, a_quality)
        for a_size in (sizes if size == "auto" else (size,))
        for a_quality in (QUALITIES if quality == "auto" else (quality,))
    ]
    return max(tokens for tokens, _ in images), max(micros for _, micros in images)


def check(model: str, size: str, quality: str, *, sizes: tuple[str, ...], formats, prompts) -> int:
    tokens, micros = dearest(model, size, quality, sizes)
    text_price, image_price = TOKEN_PRICES[model]
    count = 0
    for (n, partials), form, prompt in product(RUNS, formats, prompts):
        body = {"model": model, "prompt": prompt, "size": size, "quality": quality, "n": n, **form}
        if partials is not None:
            body |= {"stream": True, "partial_images": partials}
        found = estimate(CATALOG.models[model], validate(body, CATALOG), n).amounts
        text = len(prompt.encode()) + OVERHEAD
        more = PARTIAL_TOKENS * (partials or 0)
        expected = (
            n,
            n * tokens + text + more,
            n * micros + text * text_price + more * image_price,
        )
        assert (found.images, found.tokens, found.usd_micros) == expected, body
        usage = Usage(text_in=text, image_out=n * tokens + more)
        bill = cost(
            CATALOG.models[model],
            usage=usage,
            images=n,
            parameters={"size": size, "quality": quality},
        )
        assert bill.usd_micros <= found.usd_micros, body
        count += 1
    return count


LARGEST = max(free_sizes(), key=lambda size: formula_tokens(*size, "high"))
SOME_SIZES = (*FIXED_SIZES, "768x1024", "2048x2048", "3840x2160", "3840x1280", "1280x3840")
SOME_FREE = (*SOME_SIZES, "2880x2880", "1024x640", "816x816", "2896x2864")


@each_row("quality", [*QUALITIES, "auto"])
@each_row("model", TOKEN_PRICES)
def test_an_estimate_covers_every_legal_request_in_images_tokens_and_money(model, quality):
    sizes = (*SOME_FREE, "auto") if model in FREE_MODELS else (*FIXED_SIZES, "auto")
    choices = SOME_FREE if model in FREE_MODELS else FIXED_SIZES
    for size in sizes:
        assert check(model, size, quality, sizes=choices, formats=FORMATS, prompts=PROMPTS) == 224


@each_row(("model", "size", "quality"), DALLE_PRICES)
@each_row("n", range(1, 11))
def test_an_estimate_of_a_model_with_prices_per_image_is_its_price(model, size, quality, n):
    body = {"model": model, "prompt": "an otter", "size": size, "quality": quality}
    found = estimate(CATALOG.models[model], validate(body, CATALOG), n).amounts
    price = DALLE_PRICES[model, size, quality]
    assert (found.images, found.tokens, found.usd_micros) == (n, 0, n * price)


def test_the_size_that_auto_is_reserved_as_is_the_dearest_of_all_sizes():
    for quality in QUALITIES:
        most = max(formula_tokens(*size, quality) for size in free_sizes())
        assert most == formula_tokens(2880, 2880, quality)
    assert LARGEST == (2880, 2880)


@given(
    size=st.sampled_from(list(free_sizes())),
    model=st.sampled_from(FREE_MODELS),
    quality=st.sampled_from(QUALITIES),
)
def test_an_estimate_covers_a_free_size(size, model, quality):
    """Some in each run; `make test-long` tries them all."""
    name = f"{size[0]}x{size[1]}"
    check(model, name, quality, sizes=(name,), formats=({},), prompts=("an otter",))


@given(
    model=st.sampled_from(list(TOKEN_PRICES)),
    size=st.sampled_from(FIXED_SIZES),
    quality=st.sampled_from(QUALITIES),
    prompt=st.text(min_size=1, max_size=60),
    data=st.data(),
)
def test_an_estimate_covers_every_split_of_the_same_tokens(model, size, quality, prompt, data):
    """Whatever is cached, and however upstream divides its output into text and image."""
    body = {"model": model, "prompt": prompt, "size": size, "quality": quality}
    found = estimate(CATALOG.models[model], validate(body, CATALOG), 1).amounts
    text = len(prompt.encode("utf-8", "surrogatepass")) + OVERHEAD
    tokens, _ = image_of(model, size, quality)
    text_out = data.draw(st.integers(0, tokens))
    usage = Usage(
        text_in=text,
        cached_text_in=data.draw(st.integers(0, text)),
        image_out=tokens - text_out,
        text_out=text_out,
    )
    bill = cost(
        CATALOG.models[model], usage=usage, images=1, parameters={"size": size, "quality": quality}
    )
    assert bill.usd_micros <= found.usd_micros
    assert usage.total == found.tokens


@pytest.mark.long
@pytest.mark.parametrize("quality", [*QUALITIES, "auto"])
@pytest.mark.parametrize("model", FREE_MODELS)
def test_an_estimate_covers_every_free_size(model, quality):
    count = 0
    for width, height in free_sizes():
        size = f"{width}x{height}"
        count += check(model, size, quality, sizes=(size,), formats=({},), prompts=("an otter",))
    assert count == 29_146 * len(RUNS)
