"""The charge of a purchase, and the shares of its images in it. Pure.

The table of charges is in `docs/reference/billing.md`. Prices are `billing.pricing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from gateway.billing import pricing
from gateway.billing.pricing import ESTIMATED, Cost, tokens_by_kind
from gateway.catalog import Model
from gateway.errors import Charge, UpstreamFailure
from gateway.frozen import frozen, replace
from gateway.images import Amounts, Image, ImageRequest, UpstreamAnswer, Usage


@frozen
class Charged:
    """The charge of a purchase, as counters and ledger receive it."""

    amounts: Amounts
    tokens: Mapping[str, int]
    """Those of `amounts` by kind."""
    cost: Cost
    """The money of `amounts`."""
    flags: tuple[str, ...] = ()

    @property
    def recorded(self) -> dict[str, Any]:
        """The charge as fields of a ledger record. Flags are not among them: a record has more."""
        return {
            "images": self.amounts.images,
            "tokens": self.tokens,
            "cost_micros": self.amounts.usd_micros,
            "costs": self.cost.by_kind,
            "rounding": self.cost.rounding,
        }


def charge_answer(
    model: Model,
    request: ImageRequest,
    answer: UpstreamAnswer,
    *,
    estimate: Amounts,
    factor: Decimal = pricing.LIST_PRICE,
) -> Charged:
    """The charge for images that came: what upstream says that it charged, or else their price."""
    if answer.cost_picos is not None:
        return _charge_reported(answer.cost_picos, len(answer.images), estimate=estimate)
    lacks_usage = pricing.lacks_usage(model, request, answer.usage)
    usage = None if lacks_usage else answer.usage
    amounts, cost = pricing.charge(
        model,
        request,
        usage=usage,
        images=len(answer.images),
        estimated=estimate,
        factor=factor,
    )
    flags = ("no_usage",) if lacks_usage else pricing.text_model_flags(model, request, usage)
    return _charged(amounts, cost, usage, flags=flags, estimate=estimate)


def charge_failure(
    model: Model,
    request: ImageRequest,
    failure: UpstreamFailure,
    *,
    estimate: Amounts,
    factor: Decimal = pricing.LIST_PRICE,
) -> Charged:
    """The charge for a purchase that brought no image: nothing, its usage, or the estimate."""
    flags: tuple[str, ...] = () if failure.charge is Charge.FREE else (failure.charge.value,)
    if not failure.is_charged:
        return charge_reserved(Amounts(), flags=flags)
    if failure.cost_picos is not None:
        return _charge_reported(failure.cost_picos, estimate.images, estimate=estimate, flags=flags)
    if failure.usage is None or not pricing.is_billed_by_tokens(model):
        return charge_reserved(estimate, flags=flags)
    was_made = failure.charge is Charge.UNDELIVERED
    if was_made and pricing.lacks_usage(model, request, failure.usage):
        return charge_reserved(estimate, flags=flags)
    flags += pricing.text_model_flags(model, request, failure.usage)
    images = estimate.images if failure.images is None else failure.images
    amounts, cost = pricing.charge(
        model, request, usage=failure.usage, images=images, estimated=estimate, factor=factor
    )
    return _charged(amounts, cost, failure.usage, flags=flags, estimate=estimate)


def _charge_reported(
    picos: int, images: int, *, estimate: Amounts, flags: tuple[str, ...] = ()
) -> Charged:
    cost = pricing.reported_cost(picos)
    amounts = Amounts(images=images, usd_micros=cost.usd_micros)
    return _charged(amounts, cost, None, flags=flags, estimate=estimate)


def charge_reserved(amounts: Amounts, *, flags: tuple[str, ...] = ()) -> Charged:
    """The charge of what was reserved, because nothing says what was used: all is `estimated`."""
    return Charged(
        amounts, _charged_tokens(None, amounts), pricing.estimated_cost(amounts.usd_micros), flags
    )


def _charged(
    amounts: Amounts,
    cost: Cost,
    usage: Usage | None,
    *,
    flags: tuple[str, ...],
    estimate: Amounts,
) -> Charged:
    if amounts.exceeds(estimate):
        flags = (*flags, "over_estimate")
    return Charged(amounts, _charged_tokens(usage, amounts), cost, flags)


def _charged_tokens(usage: Usage | None, charge: Amounts) -> Mapping[str, int]:
    """The tokens of a charge by kind; without a usage they are all `estimated`."""
    if not charge.tokens:
        return {}
    return tokens_by_kind(usage) if usage is not None else {ESTIMATED: charge.tokens}


def corrected_kinds(charged: Mapping[str, int], presumed: int) -> Mapping[str, int]:
    """Tokens or costs of a correction by kind: those that came, less the presumed estimate."""
    # Those that came are estimated too if there is no usage.
    corrected = {**charged, ESTIMATED: charged.get(ESTIMATED, 0) - presumed}
    return {kind: amount for kind, amount in corrected.items() if amount}


def share_cost(
    images: Sequence[Image], usage: Usage | None, cost_micros: int, *, echoed: Mapping[str, str]
) -> list[Image]:
    """The images with their integer shares of usage and cost, which add up to the whole."""
    if not images:
        return []
    count = len(images)
    usages: Sequence[Usage | None] = usage.shares(count) if usage is not None else [None] * count
    return [
        replace(
            image,
            usage=share,
            cost_micros=cost_micros // count + (i < cost_micros % count),
            echoed=echoed,
        )
        for i, (image, share) in enumerate(zip(images, usages, strict=True))
    ]
