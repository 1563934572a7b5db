"""Tokens and prices of every row, for every legal size and quality, by a calculation of its own.

The sizes, grids, tables and prices below are written down here a second time, from
`docs/reference/images-api.md`; nothing is read from `config/models.yaml`. `tests/billing/
test_estimates.py` has the fixed tables of older models with every combination of parameters.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.billing.pricing import charge, cost, estimate, output_tokens
from gateway.catalog import CatalogError, TokenBilling, parse_catalog
from gateway.errors import InvalidRequest
from gateway.images import UpstreamAnswer, UpstreamImage, Usage
from gateway.purchasing.charges import charge_answer
from gateway.request.validation import validate
from gateway.simulator.generation import output_tokens as tokens_at_upstream
from gateway.simulator.generation import resolve
from gateway.upstream.openai.answers import usage_of_images
from tests.catalogs import read_shipped, shipped_catalog
from tests.rows import each_row

CATALOG = shipped_catalog()

OF_2 = {"low": 16, "medium": 48, "high": 96}
OF_2_5 = {"low": 16, "medium": 24, "high": 48, "xhigh": 64, "max": 96}
BOUNDS_OF_2_6 = {"low": 48, "medium": 48, "high": 48, "xhigh": 64, "max": 96}
GRIDS = {
    "gpt-image-2": (OF_2, 0),
    "gpt-image-2-2026-04-21": (OF_2, 0),
    "gpt-image-2.5-flare": (OF_2_5, 0),
    "gpt-image-2.5-sunburst": (OF_2_5, 0),
    "gpt-image-2.5-flare-2026-09-08": (OF_2_5, 0),
    "gpt-image-2.5-sunburst-2026-09-08": (OF_2_5, 0),
    "gpt-image-2.6-flare": (BOUNDS_OF_2_6, 2),
    "gpt-image-2.6-sunburst": (BOUNDS_OF_2_6, 2),
}
"""The grid of each quality, and the percent that are added."""

OLD_TOKENS = {
    "1024x1024": {"low": 272, "medium": 1056, "high": 4160},
    "1024x1536": {"low": 408, "medium": 1584, "high": 6240},
    "1536x1024": {"low": 400, "medium": 1568, "high": 6208},
}
IMAGE_OUT = {
    "gpt-image-1": 40,
    "gpt-image-1-mini": 8,
    "gpt-image-1.5": 32,
    "chatgpt-image-latest": 32,
    **dict.fromkeys(GRIDS, 30),
}
"""US dollars per million output tokens."""

PUBLISHED = {
    # size: US dollars of low, medium, high, xhigh and max, of gpt-image-2.5
    "1024x1024": (".0059", ".0132", ".0527", ".0937", ".2107"),
    "1536x1024": (".0047", ".0103", ".0412", ".0738", ".1646"),
    "2048x2048": (".0119", ".0268", ".1070", ".1903", ".4282"),
    "3840x2160": (".0111", ".0260", ".1001", ".1779", ".4003"),
}
"""Published prices, rounded to a hundredth of a cent."""
DEAREST = (2880, 2880), "max", 23_719, ".7116"

AS_GPT_IMAGE_2 = {
    # size: published US dollars of gpt-image-2 at low, medium and high, whose grids are those of
    # low, high and max of gpt-image-2.5
    "1024x1024": (".0059", ".0527", ".2107"),
    "1024x1536": (".0047", ".0412", ".1646"),
    "1536x1024": (".0047", ".0412", ".1646"),
    "768x1024": (".0040", ".0361", ".1444"),
    "2048x2048": (".0119", ".1070", ".4282"),
    "2560x1440": (".0062", ".0553", ".2211"),
    "3072x2160": (".0114", ".1057", ".4228"),
    "3840x2160": (".0111", ".1001", ".4003"),
}
TWELVE_SIZES = (*(*AS_GPT_IMAGE_2, "1024x768", "1440x2560", "2160x3072", "2160x3840"),)
"""Eight that are published and the four of them that can be turned."""


@cache
def free_sizes() -> tuple[tuple[int, int], ...]:
    """All sizes from gpt-image-2 on: multiples of 16 within the bounds of edges and pixels."""
    return tuple(
        (16 * a, 16 * b)
        for a, b in product(range(1, 241), repeat=2)
        if 655_360 <= 256 * a * b <= 8_294_400 and max(a, b) <= 3 * min(a, b)
    )


def exact_tokens(width: int, height: int, grid: int, percent: int) -> int:
    """The formula as it is published, in fractions."""
    ratio = Fraction(min(width, height), max(width, height))
    cells = math.floor(grid * ratio + Fraction(1, 2))
    exact = Fraction(grid * cells * (2_000_000 + width * height), 4_000_000)
    return math.ceil(exact * Fraction(100 + percent, 100))


def billing_of(model: str) -> TokenBilling:
    billing = CATALOG.models[model].billing
    assert isinstance(billing, TokenBilling)
    return billing


# ── every size and quality ──────────────────────────────────────────────────────────────────


def test_every_token_model_is_in_these_tables() -> None:
    by_tokens = {
        name for name, row in CATALOG.models.items() if isinstance(row.billing, TokenBilling)
    }
    assert by_tokens == set(IMAGE_OUT)


def test_the_tokens_of_every_legal_size_and_quality() -> None:
    """All 29,146 free sizes, of which one and the same turned have as many tokens.

    For one model of each grid, the others have the same formula.
    """
    assert len(free_sizes()) == 29_146
    formulas = {}
    for model, (grids, percent) in GRIDS.items():
        formula = billing_of(model).output_tokens_formula
        assert formula is not None
        assert dict(formula.grid) == grids
        known = formulas.setdefault(tuple(grids.values()), (model, formula, percent))
        assert known[1:] == (formula, percent)
    assert [model for model, *_ in formulas.values()] == [
        "gpt-image-2",
        "gpt-image-2.5-flare",
        "gpt-image-2.6-flare",
    ]
    # In integers, as a second way to the same number: 29,146 fractions take seconds.
    for model, _, percent in formulas.values():
        grids, billing = GRIDS[model][0], billing_of(model)
        lying = [size for size in free_sizes() if size[0] >= size[1]]
        for long, short in lying[:: 1 if model == "gpt-image-2.5-flare" else 11]:
            found = output_tokens(billing, f"{long}x{short}")
            assert (long + short) % 97 or found == output_tokens(billing, f"{short}x{long}")
            for quality, q in grids.items():
                cells, rest = divmod(q * short, long)
                cells += 2 * rest >= long
                scaled = q * cells * (2_000_000 + long * short) * (100 + percent)
                assert found[quality] == -(-scaled // 400_000_000), (model, long, short)


def test_the_tokens_of_a_grid_of_sizes_by_the_published_formula() -> None:
    """In fractions; every 97th size, and those at the bounds."""
    edges = {(1024, 640), (2880, 2880), (3840, 2160), (2160, 3840), (3840, 1280), (1280, 3840)}
    for model, (grids, percent) in GRIDS.items():
        for width, height in (*free_sizes()[::97], *edges):
            found = output_tokens(billing_of(model), f"{width}x{height}")
            assert found == {
                quality: exact_tokens(width, height, grid, percent)
                for quality, grid in grids.items()
            }


def test_the_cost_of_every_table_entry() -> None:
    """Tokens × price of all rows, exactly, through the function that charges."""
    for model, dollars in IMAGE_OUT.items():
        if model in GRIDS:
            grids, percent = GRIDS[model]
            sizes = [(1024, 1024), (1536, 1024), (2048, 2048), (3840, 2160), (2880, 2880)]
            tokens = [
                exact_tokens(*size, grid, percent) for size in sizes for grid in grids.values()
            ]
        else:
            assert {
                size: dict(output_tokens(billing_of(model), size)) for size in OLD_TOKENS
            } == OLD_TOKENS
            tokens = [count for row in OLD_TOKENS.values() for count in row.values()]
        for count in tokens:
            usage = Usage(image_out=count)
            found = cost(CATALOG.models[model], usage=usage, images=1, parameters={})
            assert found.usd_micros == count * dollars


# ── published points ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("model", [name for name, (grids, _) in GRIDS.items() if grids is OF_2_5])
def test_the_published_prices_of_2_5(model: str) -> None:
    for size, row in PUBLISHED.items():
        for quality, dollars in zip(OF_2_5, row, strict=True):
            assert price_of(model, size, quality) == dollars, (size, quality)
    (width, height), quality, tokens, dollars = DEAREST
    assert output_tokens(billing_of(model), f"{width}x{height}")[quality] == tokens
    assert price_of(model, f"{width}x{height}", quality) == dollars


def test_the_sixty_points_of_twelve_sizes_and_five_qualities() -> None:
    """The rest of the sixty, by the rule; where gpt-image-2 has the same grid, also published."""
    points = {
        (size, quality): price_of("gpt-image-2.5-flare", size, quality)
        for size in TWELVE_SIZES
        for quality in OF_2_5
    }
    assert len(points) == 60
    for size, row in AS_GPT_IMAGE_2.items():
        assert tuple(points[size, q] for q in ("low", "high", "max")) == row
    for (size, quality), dollars in points.items():
        width, height = map(int, size.split("x"))
        tokens = exact_tokens(width, height, OF_2_5[quality], 0)
        assert dollars == rounded(tokens * 30)
        turned = f"{height}x{width}"
        assert points.get((turned, quality), dollars) == dollars


def price_of(model: str, size: str, quality: str) -> str:
    usage = Usage(image_out=output_tokens(billing_of(model), size)[quality])
    micros = cost(CATALOG.models[model], usage=usage, images=1, parameters={}).usd_micros
    return rounded(micros)


def rounded(micros: int) -> str:
    """US dollars with four decimals, halves to the even one: `.0527`."""
    return f".{round(Fraction(micros, 100)):04}"


# ── estimates ───────────────────────────────────────────────────────────────────────────────

OBSERVED_OF_2_6 = {
    ("1536x1024", "low"): 664,
    ("1536x1024", "high"): 1353,
    ("3840x2160", "high"): 3337,
    ("1024x1024", "auto"): 5800,
}


@pytest.mark.parametrize("model", ["gpt-image-2.6-flare", "gpt-image-2.6-sunburst"])
def test_what_was_observed_of_2_6_is_within_its_bounds(model: str) -> None:
    prompt = {"model": model, "prompt": "an otter"}
    for (size, quality), tokens in OBSERVED_OF_2_6.items():
        body = {**prompt, "size": size, "quality": quality}
        found = estimate(CATALOG.models[model], validate(body, CATALOG), 1)
        assert tokens + 24 <= found.amounts.tokens
    gif = {**prompt, "size": "512x512", "quality": "low", "output_format": "gif", "frame_count": 2}
    found = estimate(CATALOG.models[model], validate(gif, CATALOG), 1)
    assert 555 + 24 <= found.amounts.tokens < 3_000
    # As if nothing is known: the dearest image of all, and 2 %.
    found = estimate(CATALOG.models[model], validate(prompt, CATALOG), 1)
    assert found.amounts.tokens == 24 + math.ceil(Fraction(23_718_298 * 102, 100_000))


PROMPTS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=40) | st.just(
    "a" * 500
)


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, object]:
    """A legal body of any token model: any size, quality, format, and partial images."""
    model = draw(st.sampled_from(sorted(IMAGE_OUT)))
    row = CATALOG.models[model]
    body: dict[str, object] = {"model": model, "prompt": draw(PROMPTS)}
    formats = row.parameters["output_format"].values  # type: ignore[union-attr]
    kind = draw(st.sampled_from(formats))
    body["output_format"] = kind
    body["quality"] = draw(st.sampled_from(row.parameters["quality"].values))  # type: ignore[union-attr]
    if kind == "gif":
        frames = draw(st.integers(2, 16))
        body["frame_count"] = frames
        columns, rows = (3, 3) if frames <= 9 else (4, 3) if frames <= 12 else (4, 4)
        width, height = draw(st.sampled_from(free_sizes()))
        frame = width // columns // 16 * 16, height // rows // 16 * 16
        body["size"] = draw(st.sampled_from(["auto", f"{frame[0]}x{frame[1]}", "512x512"]))
    elif model in GRIDS:
        body["size"] = draw(
            st.just("auto") | st.sampled_from(free_sizes()).map(lambda s: f"{s[0]}x{s[1]}")
        )
    else:
        body["size"] = draw(st.sampled_from([*OLD_TOKENS, "auto"]))
    if kind in ("png", "webp", "jpeg") and draw(st.booleans()):
        body |= {"stream": True, "partial_images": draw(st.integers(0, 3))}
    elif kind == "svg":
        body["svg"] = {"model": draw(st.sampled_from(["gpt-5.6-sol", "other"]))}
        effort = draw(st.sampled_from([None, "none", "low", "medium", "high", "xhigh", "max"]))
        if effort is not None:
            body["svg"] = {**body["svg"], "reasoning": {"effort": effort}}  # type: ignore[dict-item]
    else:
        body["n"] = draw(st.integers(1, 10))
    return body


SVG_BOUNDS = {
    "none": 32_768,
    "low": 49_152,
    "medium": 65_536,
    "high": 98_304,
    "xhigh": 128_000,
    "max": 128_000,
}


@given(body=bodies(), data=st.data())
def test_no_legal_request_costs_more_than_its_estimate(
    body: dict[str, object], data: st.DataObject
) -> None:
    """Against the dearest answer that upstream may give, and that of the simulated upstream."""
    model = CATALOG.models[str(body["model"])]
    if body["output_format"] == "gif" and not is_legal(body):
        return  # a frame so small that its sheet has too few pixels
    request = validate(body, CATALOG)
    bound = estimate(model, request, request.n).amounts
    text = len(str(body["prompt"]).encode()) + 16
    generation = resolve(body, model)
    tokens = max(tokens_at_upstream(billing_of(model.id), generation), worst_tokens(model.id, body))
    image_out = request.n * tokens + 100 * request.partial_images
    usage = Usage(text_in=text, image_out=image_out)
    if body["output_format"] == "svg":
        usage = with_svg(usage, body, text, data)
    spent, priced = charge(model, request, usage=usage, images=request.n, estimated=bound)
    assert not spent.exceeds(bound), (body, spent, bound)
    assert priced.usd_micros == spent.usd_micros == micros_of(model.id, usage)


def worst_tokens(model: str, body: dict[str, object]) -> int:
    """What upstream may bill: for an omitted value the dearest, by the tables of this module."""
    size, quality = str(body["size"]), str(body["quality"])
    if model not in GRIDS:
        return max(
            count
            for a_size, row in OLD_TOKENS.items()
            if size in ("auto", a_size)
            for a_quality, count in row.items()
            if quality in ("auto", a_quality)
        )
    grids, percent = GRIDS[model]
    width, height = (2880, 2880) if size == "auto" else map(int, size.split("x"))
    if size != "auto" and body["output_format"] == "gif":
        frames = int(str(body["frame_count"]))
        columns, rows = (3, 3) if frames <= 9 else (4, 3) if frames <= 12 else (4, 4)
        width, height = width * columns, height * rows
    return max(
        exact_tokens(width, height, grid, percent)
        for name, grid in grids.items()
        if quality in ("auto", name)
    )


def with_svg(usage: Usage, body: dict[str, object], text: int, data: st.DataObject) -> Usage:
    svg = body["svg"]
    assert isinstance(svg, dict)
    effort = svg.get("reasoning", {}).get("effort", "max")
    reasoning = data.draw(st.integers(0, SVG_BOUNDS[effort]))
    apart = data.draw(st.booleans())
    written = SVG_BOUNDS[effort] - (reasoning if apart else 0)
    return Usage(
        text_in=usage.text_in,
        image_out=usage.image_out,
        svg_model=svg["model"] + data.draw(st.sampled_from(["", "-2026-07-09"])),
        svg_in=text + 16_384,
        svg_out=written,
        svg_reasoning=min(reasoning, SVG_BOUNDS[effort]),
        svg_reasoning_apart=apart,
    )


def micros_of(model: str, usage: Usage) -> int:
    """The exact sum of all tokens × their prices, rounded up once."""
    text_in = {"gpt-image-1-mini": 2}.get(model, 5)
    exact = usage.text_in * text_in + usage.image_out * IMAGE_OUT[model]
    if usage.svg_model:
        text, out = (5, 30) if usage.svg_model.startswith("gpt-5.6-sol") else (30, 180)
        written = usage.svg_out + usage.svg_reasoning * usage.svg_reasoning_apart
        exact += usage.svg_in * text + written * out
    return exact


def test_every_frame_size_is_bounded_by_every_arrangement_of_its_frames() -> None:
    """All square and some oblong frames, in any columns and rows that have room for them."""
    model = CATALOG.models["gpt-image-2.6-flare"]
    checked = 0
    for frames, width, height in product(
        (2, 9, 10, 12, 13, 16), (*range(256, 976, 80), 720), (256, 512, 720)
    ):
        body = {
            "model": model.id,
            "prompt": "a",
            "output_format": "gif",
            "frame_count": frames,
            "size": f"{width}x{height}",
            "quality": "high",
        }
        if width % 16 or not is_legal(body):
            continue
        bound = estimate(model, validate(body, CATALOG), 1).amounts.tokens - 17
        cells = 9 if frames <= 9 else 12 if frames <= 12 else 16
        for columns in range(1, cells + 1):
            for rows in range(-(-frames // columns), cells // columns + 1):
                assert exact_tokens(width * columns, height * rows, 48, 2) <= bound, body
                checked += 1
    assert checked > 500


def is_legal(body: dict[str, object]) -> bool:
    try:
        validate(body, CATALOG)
    except InvalidRequest:
        return False
    return True


def test_a_row_of_svg_needs_its_bounds_and_the_worst_case_of_text_models() -> None:
    data = read_shipped()
    del data["unknown_text_model"]
    with pytest.raises(CatalogError, match="unknown_text_model: needed by svg_max_tokens of"):
        parse_catalog(data, file="models.yaml")


def test_an_answer_without_svg_usage_is_charged_the_estimate() -> None:
    body = {"model": "gpt-image-2.6-flare", "prompt": "a", "output_format": "svg"}
    request = validate({**body, "svg": {"model": "gpt-5.6-sol"}}, CATALOG)
    model = CATALOG.models[request.model]
    bound = estimate(model, request, 1)
    assert bound.reason is not None
    assert "reasoning effort omitted: reserved as xhigh" in bound.reason
    answer = UpstreamAnswer(images=(UpstreamImage(data=b"x"),), usage=Usage(image_out=9), echoed={})
    charged = charge_answer(model, request, answer, estimate=bound.amounts)
    assert (charged.amounts, charged.flags) == (bound.amounts, ("no_usage",))


SVG_USAGE = {"input_tokens": 1572, "output_tokens": 1437, "reasoning_tokens": 994}


@each_row(
    ("svg_usage", "micros"),
    [
        ({**SVG_USAGE, "model": "gpt-5.6-sol"}, 1572 * 5 + 1437 * 30),
        ({**SVG_USAGE, "model": "quill-9"}, 1572 * 30 + 1437 * 180),
        # Without a name it is the model that was asked for: its price was reserved.
        (SVG_USAGE, 1572 * 5 + 1437 * 30),
        ({**SVG_USAGE, "model": {}}, 1572 * 5 + 1437 * 30),
        # No model writes an image of no tokens, or of less than none: the estimate.
        ({**SVG_USAGE, "output_tokens": 0, "reasoning_tokens": 0}, None),
        ({**SVG_USAGE, "output_tokens": 0, "reasoning_tokens": None}, None),
        ({**SVG_USAGE, "output_tokens": -1}, None),
        ({**SVG_USAGE, "output_tokens": 10**12}, None),
        ({**SVG_USAGE, "reasoning_tokens": -1}, None),
        ({**SVG_USAGE, "reasoning_tokens": 1e3}, None),
        ("1437", None),
    ],
)
def test_an_svg_usage_that_cannot_be_true_is_charged_the_estimate(
    svg_usage: object, micros: int | None
) -> None:
    body = {"model": "gpt-image-2.6-flare", "prompt": "a", "output_format": "svg"}
    request = validate({**body, "svg": {"model": "gpt-5.6-sol"}}, CATALOG)
    model = CATALOG.models[request.model]
    reserved = estimate(model, request, 1).amounts
    usage = usage_of_images(
        {"usage": {"input_tokens": 9, "output_tokens": 100}, "svg_usage": svg_usage}
    )
    answer = UpstreamAnswer(images=(UpstreamImage(data=b"x"),), usage=usage, echoed={})
    charged = charge_answer(model, request, answer, estimate=reserved)
    wanted = reserved.usd_micros if micros is None else 9 * 5 + 100 * 30 + micros
    assert charged.amounts.usd_micros == wanted
    is_known = "quill-9" not in str(svg_usage)
    assert ("unknown_price" in charged.flags) is not is_known
    assert ("no_usage" in charged.flags) is (micros is None)
