"""The charge of a purchase, and the shares of its images in it. Pure.

The table of charges is in `docs/reference/billing.md`. Prices are `billing.pricing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from gateway.billing import pricing
from gateway.billing.ledger import tokens_by_kind
from gateway.catalog import Model
from gateway.errors import Charge, UpstreamFailure
from gateway.images import Amounts, Image, ImageRequest, UpstreamAnswer, Usage

ESTIMATED: Final = "estimated"
"""The kind of tokens in the ledger that were charged although their number is not known."""


@dataclass(frozen=True, slots=True)
class Charged:
    """The charge of a purchase, as counters and ledger receive it."""

    amounts: Amounts
    tokens: Mapping[str, int]
    """Those of `amounts` by kind."""
    flags: tuple[str, ...]


def charge_answer(
    model: Model, request: ImageRequest, answer: UpstreamAnswer, *, estimate: Amounts
) -> Charged:
    """The charge for images that came."""
    amounts = pricing.charge(
        model, request, usage=answer.usage, images=len(answer.images), estimated=estimate
    )
    has_no_usage = pricing.is_billed_by_tokens(model) and answer.usage is None
    flags = ("no_usage",) if has_no_usage else ()
    return _charged(amounts, answer.usage, flags, estimate=estimate)


def charge_failure(
    model: Model, request: ImageRequest, failure: UpstreamFailure, *, estimate: Amounts
) -> Charged:
    """The charge for a purchase that brought no image: nothing, its usage, or the estimate."""
    flags = () if failure.charge is Charge.FREE else (failure.charge.value,)
    if not failure.is_charged:
        return _charged(Amounts(), None, flags, estimate=estimate)
    if failure.usage is None or not pricing.is_billed_by_tokens(model):
        return _charged(estimate, None, flags, estimate=estimate)
    images = estimate.images if failure.images is None else failure.images
    amounts = pricing.charge(model, request, usage=failure.usage, images=images, estimated=estimate)
    return _charged(amounts, failure.usage, flags, estimate=estimate)


def _charged(
    amounts: Amounts, usage: Usage | None, flags: tuple[str, ...], *, estimate: Amounts
) -> Charged:
    if amounts.exceeds(estimate):
        flags = (*flags, "over_estimate")
    return Charged(amounts, charged_tokens(usage, amounts), flags)


def charged_tokens(usage: Usage | None, charge: Amounts) -> Mapping[str, int]:
    """The tokens of a charge by kind; without a usage they are all `estimated`."""
    if not charge.tokens:
        return {}
    return tokens_by_kind(usage) if usage is not None else {ESTIMATED: charge.tokens}


def corrected_tokens(tokens: Mapping[str, int], presumed: int) -> Mapping[str, int]:
    """The tokens of a correction: those that came, less the estimate that was charged."""
    # Those that came are estimated too if there is no usage.
    corrected = {**tokens, ESTIMATED: tokens.get(ESTIMATED, 0) - presumed}
    return {kind: count for kind, count in corrected.items() if count}


def share_cost(images: Sequence[Image], answer: UpstreamAnswer, cost_micros: int) -> list[Image]:
    """The images with their integer shares of usage and cost, which add up to the whole."""
    if not images:
        return []
    count = len(images)
    usages: Sequence[Usage | None] = (
        answer.usage.shares(count) if answer.usage is not None else [None] * count
    )
    return [
        replace(
            image,
            usage=usage,
            cost_micros=cost_micros // count + (i < cost_micros % count),
            echoed=answer.echoed,
        )
        for i, (image, usage) in enumerate(zip(images, usages, strict=True))
    ]
