"""Estimates, costs and charges of purchases. Pure, exact, in micro-dollars.

A price of one dollar per million tokens is one micro-dollar per token. Sums are decimals, exact in
a hundred digits, and are rounded up to whole micro-dollars once per purchase. Which limits the
amounts count against is `billing.quota`; the prices are rows of `models.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from typing import Final, NamedTuple

from gateway.catalog import (
    SIZE,
    ChoiceSpec,
    ImageBilling,
    Model,
    TokenBilling,
    TokenFormula,
)
from gateway.images import Amounts, ImageRequest, Usage
from gateway.limits import MICROS_PER_USD

PROMPT_OVERHEAD_TOKENS: Final = 16
"""Added to one token per UTF-8 byte, this bounds any prompt's tokens, see
`docs/reference/billing.md#estimates`."""

# Decimals take a fifth of the time of fractions. The trap makes them as exact: an operation that
# would round raises.
_EXACT: Final = Context(prec=100, traps=[Inexact])


@dataclass(frozen=True, slots=True)
class Estimate:
    """An upper bound of images, tokens and money, which a purchase reserves."""

    amounts: Amounts
    reason: str | None
    """Why it is high, for the refusal message: `quality omitted: reserved as high`."""


def is_billed_by_tokens(model: Model) -> bool:
    """Whether the model's price follows from `usage`; otherwise each image has a price."""
    return isinstance(model.billing, TokenBilling)


# ── estimates ───────────────────────────────────────────────────────────────────────────────


def estimate(model: Model, request: ImageRequest, images: int) -> Estimate:
    """An upper bound of the cost of `images` images of this request.

    Input tokens are the prompt's UTF-8 bytes + 16. Output tokens are those of the largest size
    and quality that upstream may choose. An image costs the larger of its tokens × price and its
    own price where both exist; the prompt and partial images cost their tokens besides. Models
    billed per image have no tokens. See `docs/reference/billing.md#estimates`.
    """
    if isinstance(model.billing, TokenBilling):
        return _estimate_tokens(model.billing, request, images=images)
    usd_micros = cost_micros(
        model,
        usage=None,
        images=images,
        size=_requested(request, "size"),
        quality=_requested(request, "quality"),
    )
    return Estimate(Amounts(images=images, usd_micros=usd_micros), None)


def _estimate_tokens(billing: TokenBilling, request: ImageRequest, *, images: int) -> Estimate:
    requested_size = _requested(request, "size")
    requested_quality = _requested(request, "quality")
    image = _most_expensive_image(billing, requested_size, requested_quality)
    partial_images = request.partial_images if request.stream else 0
    usage = Usage(
        text_in=len(request.prompt.encode("utf-8", "surrogatepass")) + PROMPT_OVERHEAD_TOKENS,
        image_out=partial_images * billing.partial_image_tokens,
    )
    reasons = [
        f"{name} omitted: reserved as {reserved}"
        for name, requested, reserved in (
            ("quality", requested_quality, image.quality),
            ("size", requested_size, image.size),
        )
        if requested is None
    ]
    amounts = Amounts(
        images=images,
        tokens=usage.total + images * image.tokens,
        usd_micros=math.ceil(_EXACT.fma(image.usd_micros, images, _usage_micros(billing, usage))),
    )
    return Estimate(amounts, "; ".join(reasons) or None)


class _ImageEstimate(NamedTuple):
    """The most that one image may cost, and the size and quality at which it costs so much."""

    tokens: int
    usd_micros: Decimal
    size: str
    quality: str


def _most_expensive_image(
    billing: TokenBilling, size: str | None, quality: str | None
) -> _ImageEstimate:
    """The bound of one image; None is what upstream chooses."""
    if size is not None:
        return _highest(billing, (size,), quality)
    known: _ImageEstimate | None = billing.prepared.get(quality)
    if known is None:
        sizes = (billing.dearest_size, *(billing.output_tokens or ()), *billing.usd_per_image)
        known = billing.prepared[quality] = _highest(billing, dict.fromkeys(sizes), quality)
    return known


def _highest(billing: TokenBilling, sizes: Iterable[str], quality: str | None) -> _ImageEstimate:
    images = [
        _ImageEstimate(tokens, _image_bound(billing, tokens, size=size, quality=name), size, name)
        for size in sizes
        for name, tokens in _output_tokens(billing, size).items()
        if quality in (None, name)
    ]
    highest = max(images, key=lambda image: image.usd_micros)
    # Another size or quality may have more tokens, as its price per image is lower.
    return highest._replace(tokens=max(image.tokens for image in images))


def _image_bound(billing: TokenBilling, tokens: int, *, size: str, quality: str) -> Decimal:
    """The most that an image costs: its tokens, or its own price where that is higher.

    See `docs/reference/images-api.md#prices-per-image`.
    """
    prices = billing.usd_per_million_tokens
    per_token = max(prices.image_out, prices.text_out or prices.image_out)
    price = billing.usd_per_image.get(size, {}).get(quality, Decimal(0))
    return max(_EXACT.multiply(per_token, tokens), _image_micros(price, 1))


def _output_tokens(billing: TokenBilling, size: str) -> Mapping[str, int]:
    """Output tokens of one image of this size, by quality."""
    formula = billing.output_tokens_formula
    if formula is not None:
        return {
            quality: _formula_tokens(formula, grid, size=size)
            for quality, grid in formula.grid.items()
        }
    table = billing.output_tokens or {}
    return table[size]


def _formula_tokens(formula: TokenFormula, grid: int, *, size: str) -> int:
    """The formula of `docs/reference/images-api.md#output-tokens`, in integers."""
    matched = SIZE.fullmatch(size)
    if matched is None:
        raise ValueError(f"not a size: {size}")
    shorter, longer = sorted(int(edge) for edge in matched.groups())
    cells = (2 * grid * shorter + longer) // (2 * longer)  # grid · shorter/longer, half up
    area = formula.pixels_offset + shorter * longer
    return -(-grid * cells * area // formula.pixels_divisor)


# ── costs ───────────────────────────────────────────────────────────────────────────────────


def charge(
    model: Model, request: ImageRequest, *, usage: Usage | None, images: int, estimated: Amounts
) -> Amounts:
    """The charge for a purchase that delivered `images` images: the real cost if known.

    Otherwise, for a model billed by tokens that came without usage, `estimated` as a whole. A
    model billed per image is charged no tokens, even if upstream reports some.
    """
    by_tokens = is_billed_by_tokens(model)
    if by_tokens and usage is None:
        return estimated
    usd_micros = cost_micros(
        model,
        usage=usage,
        images=images,
        size=_requested(request, "size"),
        quality=_requested(request, "quality"),
    )
    tokens = usage.total if by_tokens and usage is not None else 0
    return Amounts(images=images, tokens=tokens, usd_micros=usd_micros)


def cost_micros(
    model: Model, *, usage: Usage | None, images: int, size: str | None, quality: str | None
) -> int:
    """The cost of a purchase in micro-dollars, rounded up.

    Models billed by tokens cost their `usage`. Others cost their price per delivered image,
    by `size` and `quality` of the request; None is the model's default.

    Raises `ValueError` for a model billed by tokens without usage: then the cost is not known, and
    the estimate is charged (`docs/reference/billing.md#charges`), as by `charge`.
    """
    billing = model.billing
    if isinstance(billing, ImageBilling):
        row = billing.usd_per_image[_price_key(model, "size", size)]
        return math.ceil(_image_micros(row[_price_key(model, "quality", quality)], images))
    if usage is None:
        raise ValueError(f"without usage the cost of {model.id} is not known: use the estimate")
    return math.ceil(_usage_micros(billing, usage))


def _price_key(model: Model, name: str, value: str | None) -> str:
    """The value as the price table has it: the default for None, other spellings folded."""
    spec = model.parameters[name]
    value = str(spec.default) if value is None else value
    return spec.means.get(value, value) if isinstance(spec, ChoiceSpec) else value


def _requested(request: ImageRequest, name: str) -> str | None:
    value = request.parameters.get(name)
    return value if isinstance(value, str) else None


def _usage_micros(billing: TokenBilling, usage: Usage) -> Decimal:
    prices = billing.usd_per_million_tokens
    text_out = prices.image_out if prices.text_out is None else prices.text_out
    usd_micros = _EXACT.multiply(usage.text_in - usage.cached_text_in, prices.text_in)
    usd_micros = _EXACT.fma(usage.image_in - usage.cached_image_in, prices.image_in, usd_micros)
    if usage.cached_text_in or usage.cached_image_in:
        text_in, image_in = prices.cached_text_in, prices.cached_image_in
        text_in = prices.text_in if text_in is None else text_in
        image_in = prices.image_in if image_in is None else image_in
        usd_micros = _EXACT.fma(usage.cached_text_in, text_in, usd_micros)
        usd_micros = _EXACT.fma(usage.cached_image_in, image_in, usd_micros)
    usd_micros = _EXACT.fma(usage.image_out, prices.image_out, usd_micros)
    return _EXACT.fma(usage.text_out, text_out, usd_micros)


def _image_micros(usd: Decimal, images: int) -> Decimal:
    return _EXACT.multiply(usd, images * MICROS_PER_USD)
