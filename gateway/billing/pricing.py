"""What a purchase may cost at most, and what it did cost. Pure, exact, in micro-dollars.

A price of one dollar per million tokens is one micro-dollar per token. Sums are decimals, exact in
a hundred digits; they are rounded up to whole micro-dollars once per purchase. Which limits the
amounts count against is `billing/quota`; the prices themselves are rows of `models.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact
from typing import Final

from gateway.catalog import (
    SIZE,
    ChoiceSpec,
    ImageBilling,
    Model,
    TokenBilling,
    TokenFormula,
)
from gateway.images import Amounts, ImageRequest, Usage

PROMPT_OVERHEAD_TOKENS: Final = 16
"""On top of one token per UTF-8 byte: an upper bound of any prompt's tokens (CONTRACT §8)."""

MICROS_PER_USD: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a purchase reserves: an upper bound of images, tokens and money."""

    amounts: Amounts
    reason: str | None
    """What made it dear, for the refusal message: `quality omitted: reserved as high`."""


def is_billed_by_tokens(model: Model) -> bool:
    """Whether the model's price follows from `usage`; otherwise each image has a price."""
    return isinstance(model.billing, TokenBilling)


def estimate(model: Model, request: ImageRequest, images: int) -> Estimate:
    """An upper bound of what buying `images` images for this request costs (CONTRACT §8).

    Input tokens are the prompt's UTF-8 bytes + 16, output tokens the dearest of what is asked,
    and money is the larger of tokens × price and the per-image price where both exist. Models
    billed per image have no tokens.
    """
    if isinstance(model.billing, TokenBilling):
        return _estimate_tokens(model.billing, request, images=images)
    micros = cost_micros(
        model,
        usage=None,
        images=images,
        size=_asked(request, "size"),
        quality=_asked(request, "quality"),
    )
    return Estimate(Amounts(images=images, usd_micros=micros), None)


def cost_micros(
    model: Model, *, usage: Usage | None, images: int, size: str | None, quality: str | None
) -> int:
    """What a purchase cost, in micro-dollars, rounded up.

    Models billed by tokens cost what `usage` says. Others cost their price per delivered image,
    by `size` and `quality` as they were asked for; None is the model's default.

    Raises `ValueError` for a model billed by tokens without usage: then nobody knows the cost,
    and the caller charges the estimate (CONTRACT §8), as `charge` does.
    """
    billing = model.billing
    if isinstance(billing, ImageBilling):
        row = billing.usd_per_image[_resolve(model, "size", size)]
        return _round_up(_image_micros(row[_resolve(model, "quality", quality)], images))
    if usage is None:
        raise ValueError(f"without usage the cost of {model.id} is not known: use the estimate")
    return _round_up(_usage_micros(billing, usage))


def charge(
    model: Model, request: ImageRequest, *, usage: Usage | None, images: int, estimated: Amounts
) -> Amounts:
    """What a purchase that delivered `images` images is charged: the real cost if known.

    Otherwise, for a model billed by tokens that came without usage, `estimated` as a whole. A
    model billed per image is charged no tokens, whatever upstream reports.
    """
    by_tokens = is_billed_by_tokens(model)
    if by_tokens and usage is None:
        return estimated
    micros = cost_micros(
        model,
        usage=usage,
        images=images,
        size=_asked(request, "size"),
        quality=_asked(request, "quality"),
    )
    tokens = usage.total if by_tokens and usage is not None else 0
    return Amounts(images=images, tokens=tokens, usd_micros=micros)


def _asked(request: ImageRequest, name: str) -> str | None:
    value = request.parameters.get(name)
    return value if isinstance(value, str) else None


def _resolve(model: Model, name: str, value: str | None) -> str:
    """The value by which the price table knows it: the default for None, `auto` folded."""
    spec = model.parameters[name]
    value = str(spec.default) if value is None else value
    return spec.means.get(value, value) if isinstance(spec, ChoiceSpec) else value


# ── the bound of what is billed by tokens ───────────────────────────────────────────────────


def _estimate_tokens(billing: TokenBilling, request: ImageRequest, *, images: int) -> Estimate:
    asked_size, asked_quality = _asked(request, "size"), _asked(request, "quality")
    size = asked_size or billing.dearest_size
    tokens = _output_tokens(billing, size)
    quality = asked_quality or max(tokens, key=tokens.__getitem__)
    usage = Usage(
        text_in=len(request.prompt.encode("utf-8", "surrogatepass")) + PROMPT_OVERHEAD_TOKENS,
        image_out=images * tokens[quality] + _partial_tokens(billing, request),
    )
    price = billing.usd_per_image.get(size, {}).get(quality, Decimal(0))
    micros = max(_usage_micros(billing, usage), _image_micros(price, images))
    reasons = [
        f"{name} omitted: reserved as {reserved}"
        for name, asked, reserved in (
            ("quality", asked_quality, quality),
            ("size", asked_size, size),
        )
        if asked is None
    ]
    amounts = Amounts(images=images, tokens=usage.total, usd_micros=_round_up(micros))
    return Estimate(amounts, "; ".join(reasons) or None)


def _partial_tokens(billing: TokenBilling, request: ImageRequest) -> int:
    return request.partial_images * billing.partial_image_tokens if request.stream else 0


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
    """The formula of WIRE §5.1, in integers."""
    matched = SIZE.fullmatch(size)
    if matched is None:
        raise ValueError(f"not a size: {size}")
    shorter, longer = sorted(int(edge) for edge in matched.groups())
    cells = (2 * grid * shorter + longer) // (2 * longer)  # grid · shorter/longer, half up
    area = formula.pixels_offset + shorter * longer
    return -(-grid * cells * area // formula.pixels_divisor)


# ── prices, exact ───────────────────────────────────────────────────────────────────────────


_EXACT: Final = Context(prec=100, traps=[Inexact])


def _usage_micros(billing: TokenBilling, usage: Usage) -> Decimal:
    prices = billing.usd_per_million_tokens
    text_out = prices.image_out if prices.text_out is None else prices.text_out
    micros = _EXACT.multiply(usage.text_in, prices.text_in)
    micros = _EXACT.fma(usage.image_in, prices.image_in, micros)
    micros = _EXACT.fma(usage.image_out, prices.image_out, micros)
    return _EXACT.fma(usage.text_out, text_out, micros)


def _image_micros(usd: Decimal, images: int) -> Decimal:
    return _EXACT.multiply(usd, images * MICROS_PER_USD)


def _round_up(micros: Decimal) -> int:
    return math.ceil(micros)
