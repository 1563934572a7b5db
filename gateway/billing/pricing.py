"""Estimates, costs and charges of purchases. Pure and exact.

A price of one dollar per million tokens is one micro-dollar per token. It has at most six decimals,
so sums are whole *picos*, millionths of a micro-dollar. They are rounded up to whole micro-dollars
once per purchase; `split_cost` divides the result among the kinds. Which limits the amounts count
against is `billing.quota`; the prices are rows of `models.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from itertools import compress
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from gateway.catalog import (
    SIZE,
    ChoiceSpec,
    Model,
    SheetLayout,
    SizeSpec,
    TokenBilling,
    TokenFormula,
)
from gateway.errors import ErrorCode, InvalidRequest, shorten_name
from gateway.frozen import frozen
from gateway.images import UNNAMED_MODEL, Amounts, ImageRequest, Usage

PROMPT_OVERHEAD_TOKENS: Final = 16
"""Added to one token per UTF-8 byte, this bounds any prompt's tokens, see
`docs/reference/billing.md#estimates`."""

PICOS_PER_MICRO: Final = 1_000_000
"""Picos: what prices are counted in, millionths of a micro-dollar."""

LIST_PRICE: Final = Decimal(1)
"""The price factor of an account that charges the prices of `models.yaml`."""

_SCALED: Final = PICOS_PER_MICRO * 1_000_000
"""How many millionths of a pico, which factors with six decimals need, are a micro-dollar."""

IMAGE: Final = "image"
"""The kind of a cost per image."""

ESTIMATED: Final = "estimated"
"""The kind of tokens and costs that are charged although nothing says how many they were."""

KINDS: Final = (
    *("text_in", "cached_text_in", "image_in", "cached_image_in", "image_out", "text_out"),
    *("svg_text_in", "svg_text_out", IMAGE, ESTIMATED),
)
"""The kinds of costs. Of equal remainders the first kind is rounded up."""

UNKNOWN_PRICE: Final = "unknown_price"
"""The flag of a purchase whose model has no price: it is charged the configured worst case."""

MAX_PREPARED: Final = 1000
"""How many bounds of an image are kept of a row, by size and quality."""

_PRICES: Final = ("prices",)
"""The key of a row's token prices among what is prepared of it."""


class Cost(NamedTuple):
    """What a purchase costs, in whole micro-dollars."""

    usd_micros: int
    by_kind: Mapping[str, int]
    """Adds up to `usd_micros`; without kinds that cost nothing."""
    rounding: Mapping[str, int]
    """How much of each kind comes from rounding up the sum."""


@frozen
class Estimate:
    """An upper bound of images, tokens and money, which a purchase reserves."""

    amounts: Amounts
    reason: str | None
    """Why it is high, for the refusal message: `quality omitted: reserved as high`."""


def is_billed_by_tokens(model: Model) -> bool:
    """Whether the model's price follows from `usage`; otherwise each image has a price."""
    return isinstance(model.billing, TokenBilling)


def price_flags(model: Model) -> tuple[str, ...]:
    """The flags that its price gives to each record of a purchase."""
    return (UNKNOWN_PRICE,) if model.billing is None else ()


def check_price(model: Model) -> None:
    """Raises `InvalidRequest` for a model whose price is not known, if those are denied."""
    if model.is_sold:
        return
    remedy = "`billing` to the model's row in" if model.has_row else "a row with `billing` to"
    raise InvalidRequest(
        f"The price of the model '{shorten_name(model.id)}' is not known, so this gateway buys "
        f"none of its images. Its operator can add {remedy} models.yaml, or set "
        '`unknown_price` there to a worst case, such as {usd_per_image: "0.70"}.',
        param="model",
        code=ErrorCode.UNKNOWN_PRICE,
    )


# ── estimates ───────────────────────────────────────────────────────────────────────────────


def estimate(
    model: Model, request: ImageRequest, images: int, factor: Decimal = LIST_PRICE
) -> Estimate:
    """An upper bound of the cost of `images` images of this request.

    Every price is multiplied by `factor`, that of the account.

    Input tokens are the prompt's UTF-8 bytes + 16. Output tokens are those of the largest size
    and quality that upstream may choose. An image costs the larger of its tokens × price and its
    own price where both exist; the prompt and partial images cost their tokens besides. Models
    billed per image, and those with an assumed price, have no tokens. See
    `docs/reference/billing.md#estimates`. Raises as `check_price`.
    """
    if isinstance(model.billing, TokenBilling):
        return _estimate_tokens(model, model.billing, request, images=images, factor=factor)
    micros = cost(
        model, usage=None, images=images, parameters=request.parameters, factor=factor
    ).usd_micros
    reason = None
    if model.billing is None:
        reason = f"price unknown: reserved as ${model.assumed_usd_per_image} an image"
    return Estimate(Amounts(images=images, usd_micros=micros), reason)


def _estimate_tokens(
    model: Model, billing: TokenBilling, request: ImageRequest, *, images: int, factor: Decimal
) -> Estimate:
    requested_size = _requested(request, "size")
    requested_quality = _requested(request, "quality")
    sheet = _sheet(model, request)
    if sheet is None or requested_size is None:
        image = _most_expensive_image(billing, requested_size, requested_quality)
    else:
        image = _most_expensive_sheet(billing, sheet, requested_size, requested_quality)
    svg = svg_bound(model, request)
    partial_images = request.partial_images if request.stream else 0
    text_in = len(request.prompt.encode("utf-8", "surrogatepass")) + PROMPT_OVERHEAD_TOKENS
    image_out = partial_images * billing.partial_image_tokens
    prices = _token_picos(billing)
    picos = image.picos * images + prices["text_in"] * text_in + prices["image_out"] * image_out
    picos += svg.picos * images
    reasons = []
    if requested_quality is None:
        reasons.append(f"quality omitted: reserved as {image.quality}")
    if requested_size is None:
        reasons.append(f"size omitted: reserved as {image.size}")
    reasons += svg.reasons
    amounts = Amounts(
        images=images,
        tokens=text_in + image_out + images * (image.tokens + svg.tokens),
        usd_micros=_rounded_up(picos * _millions(factor), _SCALED),
    )
    return Estimate(amounts, "; ".join(reasons) or None)


class _ImageEstimate(NamedTuple):
    """The most that one image may cost, and the size and quality at which it costs so much."""

    tokens: int
    picos: int
    size: str
    quality: str


def _most_expensive_image(
    billing: TokenBilling, size: str | None, quality: str | None
) -> _ImageEstimate:
    """The bound of one image; None is what upstream chooses."""
    known: _ImageEstimate | None = billing.prepared.get((size, quality))
    if known is None:
        sizes = (
            [size]
            if size is not None
            else dict.fromkeys(
                (billing.dearest_size, *(billing.output_tokens or ()), *billing.usd_per_image)
            )
        )
        known = _highest(billing, sizes, quality)
        if len(billing.prepared) < MAX_PREPARED:  # clients choose among very many sizes
            billing.prepared[size, quality] = known
    return known


def _highest(billing: TokenBilling, sizes: Iterable[str], quality: str | None) -> _ImageEstimate:
    images = [
        _ImageEstimate(tokens, _image_bound(billing, tokens, size=size, quality=name), size, name)
        for size in sizes
        for name, tokens in output_tokens(billing, size).items()
        if quality in (None, name)
    ]
    highest = max(images, key=lambda image: image.picos)
    # Another size or quality may have more tokens, as its price per image is lower.
    return highest._replace(tokens=max(image.tokens for image in images))


def _sheet(model: Model, request: ImageRequest) -> SheetLayout | None:
    """How the frames of the requested format are laid out; None for a format without frames."""
    size = model.parameters.get("size")
    if not isinstance(size, SizeSpec) or size.sheet is None:
        return None
    if request.parameters.get("output_format") not in size.sheet.formats:
        return None
    frames = request.parameters.get(size.sheet.frames, model.parameters[size.sheet.frames].default)
    return size.sheet.layout_of(frames if isinstance(frames, int) else 1)


def _most_expensive_sheet(
    billing: TokenBilling, layout: SheetLayout, size: str, quality: str | None
) -> _ImageEstimate:
    """The bound of a sheet of frames of this size.

    How upstream arranges the frames is not known: of all sheets with as many pixels a square has
    the most tokens.
    """
    formula, matched = billing.output_tokens_formula, SIZE.fullmatch(size)
    if formula is None or matched is None:
        return _most_expensive_image(billing, None, quality)
    pixels = int(matched[1]) * int(matched[2]) * layout.columns * layout.rows
    images = [
        _ImageEstimate(tokens, _image_bound(billing, tokens, size=size, quality=name), size, name)
        for name, grid in formula.grid.items()
        if quality in (None, name)
        for tokens in (_grid_tokens(formula, grid, cells=grid, pixels=pixels),)
    ]
    return max(images, key=lambda image: image.picos)


class SvgBound(NamedTuple):
    """The most that the text model of an SVG image may cost."""

    tokens: int = 0
    picos: int = 0
    reasons: list[str] = []  # noqa: RUF012 - of a tuple, and never changed


_NO_SVG: Final = SvgBound()


def svg_bound(model: Model, request: ImageRequest) -> SvgBound:
    """The bound of the text model of one image; nothing for other formats."""
    billing = model.billing
    if not isinstance(billing, TokenBilling) or not is_svg(model, request):
        return _NO_SVG
    bounds, prices = billing.svg_max_tokens or {}, model.text_models
    if prices is None:  # the catalog has them for every row with bounds
        raise ValueError(f"{model.id} has no prices of text models")
    svg = request.parameters.get("svg")
    options: Mapping[str, Any] = svg if isinstance(svg, Mapping) else {}
    effort, name = (options.get("reasoning") or {}).get("effort"), options.get("model")
    reasons = []
    if effort is None:
        effort = max(bounds, key=bounds.__getitem__)
        reasons.append(f"reasoning effort omitted: reserved as {effort}")
    price = prices.dearest() if name is None else prices.price_of(name) or prices.unknown
    text_in = len(request.prompt.encode("utf-8", "surrogatepass")) + PROMPT_OVERHEAD_TOKENS
    text_in += billing.svg_input_tokens or 0
    picos = text_in * _millions(price.text_in) + bounds[effort] * _millions(price.text_out)
    return SvgBound(text_in + bounds[effort], picos, reasons)


def is_svg(model: Model, request: ImageRequest) -> bool:
    """Whether a text model writes the image, which is billed besides."""
    billing = model.billing
    has_bound = isinstance(billing, TokenBilling) and billing.svg_max_tokens is not None
    return has_bound and request.parameters.get("output_format") == "svg"


def _image_bound(billing: TokenBilling, tokens: int, *, size: str, quality: str) -> int:
    """The most that an image costs: its tokens, or its own price where that is higher.

    See `docs/reference/images-api.md#prices-per-image`.
    """
    prices = _token_picos(billing)
    picos = tokens * max(prices["image_out"], prices["text_out"])
    usd = billing.usd_per_image.get(size, {}).get(quality)
    return picos if usd is None else max(picos, _millions(usd) * PICOS_PER_MICRO)


def output_tokens(billing: TokenBilling, size: str) -> Mapping[str, int]:
    """Output tokens of one image of this size, by quality; empty for an unknown size."""
    formula = billing.output_tokens_formula
    if formula is not None:
        return {
            quality: _formula_tokens(formula, grid, size=size)
            for quality, grid in formula.grid.items()
        }
    return (billing.output_tokens or {}).get(size, {})


def _formula_tokens(formula: TokenFormula, grid: int, *, size: str) -> int:
    """The formula of `docs/reference/images-api.md#output-tokens`, in integers."""
    matched = SIZE.fullmatch(size)
    if matched is None:
        raise ValueError(f"not a size: {size}")
    shorter, longer = sorted(int(edge) for edge in matched.groups())
    cells = (2 * grid * shorter + longer) // (2 * longer)  # grid · shorter/longer, half up
    return _grid_tokens(formula, grid, cells=cells, pixels=shorter * longer)


def _grid_tokens(formula: TokenFormula, grid: int, *, cells: int, pixels: int) -> int:
    area = grid * cells * (formula.pixels_offset + pixels)
    return -(-area * (100 + formula.headroom_percent) // (100 * formula.pixels_divisor))


# ── costs ───────────────────────────────────────────────────────────────────────────────────


def charge(
    model: Model,
    request: ImageRequest,
    *,
    usage: Usage | None,
    images: int,
    estimated: Amounts,
    factor: Decimal = LIST_PRICE,
) -> tuple[Amounts, Cost]:
    """The charge for a purchase that delivered `images` images: the real cost if known.

    Otherwise, for a model billed by tokens that came without usage, `estimated` as a whole. A
    model billed per image is charged no tokens, even if upstream reports some.
    """
    by_tokens = is_billed_by_tokens(model)
    if by_tokens and usage is None:
        return estimated, estimated_cost(estimated.usd_micros)
    found = cost(model, usage=usage, images=images, parameters=request.parameters, factor=factor)
    tokens = usage.charged if by_tokens and usage is not None else 0
    return Amounts(images=images, tokens=tokens, usd_micros=found.usd_micros), found


def lacks_usage(model: Model, request: ImageRequest, usage: Usage | None) -> bool:
    """Whether the tokens of an image that was made are not all known, so the estimate is charged.

    An SVG image has two usages, as two models made it.
    """
    if not is_billed_by_tokens(model):
        return False
    return usage is None or (is_svg(model, request) and not usage.svg_model)


def text_model_flags(model: Model, request: ImageRequest, usage: Usage | None) -> tuple[str, ...]:
    """The flag of a charge whose text model has no price: it costs the configured worst case."""
    if usage is None or not usage.svg_model or model.text_models is None:
        return ()
    name = _text_model(usage, request.parameters)
    return () if model.text_models.price_of(name) is not None else (UNKNOWN_PRICE,)


def _text_model(usage: Usage, parameters: Mapping[str, object]) -> str:
    """The model that wrote an SVG image: the requested one, if upstream names none."""
    svg = parameters.get("svg")
    requested = svg.get("model") if isinstance(svg, Mapping) else None
    is_unnamed = usage.svg_model == UNNAMED_MODEL
    return requested if is_unnamed and isinstance(requested, str) else usage.svg_model


def cost(
    model: Model,
    *,
    usage: Usage | None,
    images: int,
    parameters: Mapping[str, object],
    factor: Decimal = LIST_PRICE,
) -> Cost:
    """The cost of a purchase, at an account whose prices are `factor` times those of the model.

    Models billed by tokens cost their `usage`, at the prices of both models where a text model
    wrote the image: the requested one, if upstream names none. Others cost their price per
    delivered image, by the `parameters` of the request; one that is not among them has its default.
    Without a price each image costs the configured worst case.

    Raises `ValueError` for a model billed by tokens without usage: then the cost is not known, and
    the estimate is charged (`docs/reference/billing.md#charges`), as by `charge`.
    """
    billing = model.billing
    if isinstance(billing, TokenBilling):
        if usage is None:
            raise ValueError(f"without usage the cost of {model.id} is not known: use the estimate")
        return _at_factor(_usage_picos(model, billing, usage, parameters), factor)
    if billing is None:
        check_price(model)
        assumed = _millions(model.assumed_usd_per_image or Decimal(0))
        return _of_images(assumed * images, factor)
    values = {name: _price_key(model, name, parameters.get(name)) for name in billing.priced_by}
    price = billing.price_of(values)
    if price is None:  # the catalog has checked the table, and validation the values
        raise ValueError(f"{model.id} has no price of an image with {values}")
    return _of_images(_millions(price) * images, factor)


def estimated_cost(usd_micros: int) -> Cost:
    """A charge of which nothing but the sum is known."""
    return _of_one_kind(ESTIMATED, usd_micros)


def reported_cost(picos: int) -> Cost:
    """What upstream says that a purchase cost, as a price of its images."""
    return split_cost({IMAGE: picos})


def _at_factor(picos: Mapping[str, int], factor: Decimal) -> Cost:
    """The cost of these exact list prices at an account, rounded up once."""
    if factor == LIST_PRICE:
        return split_cost(picos)
    millionths = _millions(factor)
    return split_cost({kind: exact * millionths for kind, exact in picos.items()}, _SCALED)


def _of_images(usd_micros: int, factor: Decimal) -> Cost:
    if factor == LIST_PRICE:
        return _of_one_kind(IMAGE, usd_micros)
    return _at_factor({IMAGE: usd_micros * PICOS_PER_MICRO}, factor)


def split_cost(picos: Mapping[str, int], unit: int = PICOS_PER_MICRO) -> Cost:
    """Rounds the sum of exact costs up, and divides it among their kinds.

    `picos` are in the order of `KINDS`, and `unit` of them are a micro-dollar. Each kind has the
    whole micro-dollars of its exact cost. Those that are left of the sum, fewer than there are
    kinds, go one each to the kinds with the largest remainders.
    """
    by_kind, remainders = {}, {}
    for kind, exact in picos.items():
        micros, remainder = divmod(exact, unit)
        if remainder:
            remainders[kind] = remainder
        if micros or remainder:
            by_kind[kind] = micros
    if not remainders:
        return Cost(sum(by_kind.values()), by_kind, _NOTHING)
    left = _rounded_up(sum(remainders.values()), unit)
    # Sorting is stable, so of equal remainders the first kind stays first.
    largest = sorted(remainders, key=remainders.__getitem__, reverse=True)[:left]
    for kind in largest:
        by_kind[kind] += 1
    by_kind = {kind: micros for kind, micros in by_kind.items() if micros}
    return Cost(sum(by_kind.values()), by_kind, dict.fromkeys(largest, 1))


_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


def _of_one_kind(kind: str, usd_micros: int) -> Cost:
    return Cost(usd_micros, {kind: usd_micros} if usd_micros else _NOTHING, _NOTHING)


def _rounded_up(picos: int, unit: int = PICOS_PER_MICRO) -> int:
    return -(-picos // unit)


def _price_key(model: Model, name: str, value: object) -> str:
    """The value as the price table has it: the default for None, other spellings folded."""
    spec = model.parameters[name]
    key = str(spec.default if value is None else value)
    return spec.means.get(key, key) if isinstance(spec, ChoiceSpec) else key


def _requested(request: ImageRequest, name: str) -> str | None:
    value = request.parameters.get(name)
    return value if isinstance(value, str) else None


def tokens_by_kind(usage: Usage | None) -> Mapping[str, int]:
    """Tokens as the ledger and the metrics name them, without kinds that are 0.

    Each token is of one kind: `text_in` and `image_in` are those that were not cached.
    """
    if usage is None:
        return {}
    kinds = {
        "text_in": usage.text_in - usage.cached_text_in,
        "cached_text_in": usage.cached_text_in,
        "image_in": usage.image_in - usage.cached_image_in,
        "cached_image_in": usage.cached_image_in,
        "image_out": usage.image_out,
        "text_out": usage.text_out,
        "svg_text_in": usage.svg_in,
        "svg_text_out": usage.svg_charged_out,
    }
    # Most are 0. Left out without Python code, because every purchase does it twice.
    return dict(compress(kinds.items(), kinds.values()))


def _usage_picos(
    model: Model, billing: TokenBilling, usage: Usage, parameters: Mapping[str, object]
) -> dict[str, int]:
    prices = _token_picos(billing)
    if usage.svg_model:
        prices = {**prices, **_svg_picos(model, _text_model(usage, parameters))}
    return {kind: tokens * prices[kind] for kind, tokens in tokens_by_kind(usage).items()}


def _svg_picos(model: Model, text_model: str) -> Mapping[str, int]:
    """The price of a token of the text model, by kind."""
    if model.text_models is None:  # it was not asked for, and upstream reports it all the same
        return {"svg_text_in": 0, "svg_text_out": 0}
    price = model.text_models.price_of(text_model) or model.text_models.unknown
    return {
        "svg_text_in": _millions(price.text_in),
        "svg_text_out": _millions(price.text_out),
    }


def _token_picos(billing: TokenBilling) -> Mapping[str, int]:
    """The price of a token, by kind."""
    known: Mapping[str, int] | None = billing.prepared.get(_PRICES)
    if known is None:
        usd = billing.usd_per_million_tokens
        prices = {
            "text_in": usd.text_in,
            "cached_text_in": usd.text_in if usd.cached_text_in is None else usd.cached_text_in,
            "image_in": usd.image_in,
            "cached_image_in": (
                usd.image_in if usd.cached_image_in is None else usd.cached_image_in
            ),
            "image_out": usd.image_out,
            "text_out": usd.image_out if usd.text_out is None else usd.text_out,
        }
        known = billing.prepared[_PRICES] = {k: _millions(usd) for k, usd in prices.items()}
    return known


def _millions(price: Decimal) -> int:
    """A million times a price: a whole number, as prices have at most six decimals."""
    return int(price.scaleb(6))
