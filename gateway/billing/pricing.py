"""Estimates, costs and charges of purchases. Pure and exact.

A price of one dollar per million tokens is one micro-dollar per token. It has at most six decimals,
so sums are whole *picos*, millionths of a micro-dollar. They are rounded up to whole micro-dollars
once per purchase; `split_cost` divides the result among the kinds. Which limits the amounts count
against is `billing.quota`; the prices are rows of `models.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Final, NamedTuple

from gateway.catalog import (
    SIZE,
    ChoiceSpec,
    Model,
    TokenBilling,
    TokenFormula,
)
from gateway.errors import ErrorCode, InvalidRequest, shorten_name
from gateway.images import Amounts, ImageRequest, Usage

PROMPT_OVERHEAD_TOKENS: Final = 16
"""Added to one token per UTF-8 byte, this bounds any prompt's tokens, see
`docs/reference/billing.md#estimates`."""

PICOS_PER_MICRO: Final = 1_000_000
"""Picos: what prices are counted in, millionths of a micro-dollar."""

IMAGE: Final = "image"
"""The kind of a cost per image."""

ESTIMATED: Final = "estimated"
"""The kind of tokens and costs that are charged although nothing says how many they were."""

KINDS: Final = (
    *("text_in", "cached_text_in", "image_in", "cached_image_in", "image_out", "text_out"),
    *(IMAGE, ESTIMATED),
)
"""The kinds of costs. Of equal remainders the first kind is rounded up."""

UNKNOWN_PRICE: Final = "unknown_price"
"""The flag of a purchase whose model has no price: it is charged the configured worst case."""

_PRICES: Final = ("prices",)
"""The key of a row's token prices among what is prepared of it."""


class Cost(NamedTuple):
    """What a purchase costs, in whole micro-dollars."""

    usd_micros: int
    by_kind: Mapping[str, int]
    """Adds up to `usd_micros`; without kinds that cost nothing."""
    rounding: Mapping[str, int]
    """How much of each kind comes from rounding up the sum."""


@dataclass(frozen=True, slots=True)
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


def estimate(model: Model, request: ImageRequest, images: int) -> Estimate:
    """An upper bound of the cost of `images` images of this request.

    Input tokens are the prompt's UTF-8 bytes + 16. Output tokens are those of the largest size
    and quality that upstream may choose. An image costs the larger of its tokens × price and its
    own price where both exist; the prompt and partial images cost their tokens besides. Models
    billed per image, and those with an assumed price, have no tokens. See
    `docs/reference/billing.md#estimates`. Raises as `check_price`.
    """
    if isinstance(model.billing, TokenBilling):
        return _estimate_tokens(model.billing, request, images=images)
    micros = cost(
        model,
        usage=None,
        images=images,
        size=_requested(request, "size"),
        quality=_requested(request, "quality"),
    ).usd_micros
    reason = None
    if model.billing is None:
        reason = f"price unknown: reserved as ${model.assumed_usd_per_image} an image"
    return Estimate(Amounts(images=images, usd_micros=micros), reason)


def _estimate_tokens(billing: TokenBilling, request: ImageRequest, *, images: int) -> Estimate:
    requested_size = _requested(request, "size")
    requested_quality = _requested(request, "quality")
    image = _most_expensive_image(billing, requested_size, requested_quality)
    partial_images = request.partial_images if request.stream else 0
    text_in = len(request.prompt.encode("utf-8", "surrogatepass")) + PROMPT_OVERHEAD_TOKENS
    image_out = partial_images * billing.partial_image_tokens
    prices = _token_picos(billing)
    picos = image.picos * images + prices["text_in"] * text_in + prices["image_out"] * image_out
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
        tokens=text_in + image_out + images * image.tokens,
        usd_micros=_rounded_up(picos),
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
        for name, tokens in output_tokens(billing, size).items()
        if quality in (None, name)
    ]
    highest = max(images, key=lambda image: image.picos)
    # Another size or quality may have more tokens, as its price per image is lower.
    return highest._replace(tokens=max(image.tokens for image in images))


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
    area = formula.pixels_offset + shorter * longer
    return -(-grid * cells * area // formula.pixels_divisor)


# ── costs ───────────────────────────────────────────────────────────────────────────────────


def charge(
    model: Model, request: ImageRequest, *, usage: Usage | None, images: int, estimated: Amounts
) -> tuple[Amounts, Cost]:
    """The charge for a purchase that delivered `images` images: the real cost if known.

    Otherwise, for a model billed by tokens that came without usage, `estimated` as a whole. A
    model billed per image is charged no tokens, even if upstream reports some.
    """
    by_tokens = is_billed_by_tokens(model)
    if by_tokens and usage is None:
        return estimated, estimated_cost(estimated.usd_micros)
    found = cost(
        model,
        usage=usage,
        images=images,
        size=_requested(request, "size"),
        quality=_requested(request, "quality"),
    )
    tokens = usage.total if by_tokens and usage is not None else 0
    return Amounts(images=images, tokens=tokens, usd_micros=found.usd_micros), found


def cost(
    model: Model, *, usage: Usage | None, images: int, size: str | None, quality: str | None
) -> Cost:
    """The cost of a purchase.

    Models billed by tokens cost their `usage`. Others cost their price per delivered image,
    by `size` and `quality` of the request; None is the model's default. Without a price each image
    costs the configured worst case.

    Raises `ValueError` for a model billed by tokens without usage: then the cost is not known, and
    the estimate is charged (`docs/reference/billing.md#charges`), as by `charge`.
    """
    billing = model.billing
    if isinstance(billing, TokenBilling):
        if usage is None:
            raise ValueError(f"without usage the cost of {model.id} is not known: use the estimate")
        return split_cost(_usage_picos(billing, usage))
    if billing is None:
        check_price(model)
        return _of_one_kind(IMAGE, _millions(model.assumed_usd_per_image or Decimal(0)) * images)
    row = billing.usd_per_image[_price_key(model, "size", size)]
    return _of_one_kind(IMAGE, _millions(row[_price_key(model, "quality", quality)]) * images)


def estimated_cost(usd_micros: int) -> Cost:
    """A charge of which nothing but the sum is known."""
    return _of_one_kind(ESTIMATED, usd_micros)


def reported_cost(picos: int) -> Cost:
    """What upstream says that a purchase cost, as a price of its images."""
    return split_cost({IMAGE: picos})


def split_cost(picos: Mapping[str, int]) -> Cost:
    """Rounds the sum of exact costs up, and divides it among their kinds.

    `picos` are in the order of `KINDS`. Each kind has the whole micro-dollars of its exact cost.
    Those that are left of the sum, fewer than there are kinds, go one each to the kinds with the
    largest remainders.
    """
    by_kind, remainders = {}, {}
    for kind, exact in picos.items():
        micros, remainder = divmod(exact, PICOS_PER_MICRO)
        if remainder:
            remainders[kind] = remainder
        if micros or remainder:
            by_kind[kind] = micros
    if not remainders:
        return Cost(sum(by_kind.values()), by_kind, _NOTHING)
    left = _rounded_up(sum(remainders.values()))
    # Sorting is stable, so of equal remainders the first kind stays first.
    largest = sorted(remainders, key=remainders.__getitem__, reverse=True)[:left]
    for kind in largest:
        by_kind[kind] += 1
    by_kind = {kind: micros for kind, micros in by_kind.items() if micros}
    return Cost(sum(by_kind.values()), by_kind, dict.fromkeys(largest, 1))


_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


def _of_one_kind(kind: str, usd_micros: int) -> Cost:
    return Cost(usd_micros, {kind: usd_micros} if usd_micros else _NOTHING, _NOTHING)


def _rounded_up(picos: int) -> int:
    return -(-picos // PICOS_PER_MICRO)


def _price_key(model: Model, name: str, value: str | None) -> str:
    """The value as the price table has it: the default for None, other spellings folded."""
    spec = model.parameters[name]
    value = str(spec.default) if value is None else value
    return spec.means.get(value, value) if isinstance(spec, ChoiceSpec) else value


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
    }
    return {kind: count for kind, count in kinds.items() if count}


def _usage_picos(billing: TokenBilling, usage: Usage) -> dict[str, int]:
    prices = _token_picos(billing)
    return {kind: tokens * prices[kind] for kind, tokens in tokens_by_kind(usage).items()}


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
