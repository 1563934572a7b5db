"""What the same requests would have cost: at another quality, or without the cache. Pure.

It reads the sums of rows that have model, size and quality, as the totals do. What was paid is
scaled by what the price table says of both qualities, so a row at its own quality costs what it
did, and prices that have changed since do not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Final, Protocol

from gateway.billing.pricing import ESTIMATED, IMAGE, output_tokens
from gateway.billing.record_amounts import Sums
from gateway.catalog import SIZE, Catalog, ImageBilling, Model, TokenBilling
from gateway.values import nearest

CACHE_OFF: Final = "cache=off"
_QUALITY: Final = "quality="

UNKNOWN_MODEL: Final = "models.yaml does not have the model"
NO_PRICE: Final = "models.yaml has no price of the model"
OTHER_QUALITIES: Final = "the model does not have this quality"
BOUND_ONLY: Final = "of the model's tokens only a bound is known"
UNKNOWN_IMAGE: Final = "the size or quality is not known, or not in the price table"
WAS_ESTIMATED: Final = "charged at an estimate"
NO_KINDS: Final = "recorded by an older gateway, without the cost by kind"
NO_ORIGINAL: Final = "served, but what the images had cost is not known"


class Row(Protocol):
    """A row of the totals or of a report."""

    @property
    def dimensions(self) -> Mapping[str, Any]:
        """At least `model`, `size` and `quality`, where the records have them."""

    @property
    def sums(self) -> Sums:
        """What they add up to."""


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A question."""

    quality: str | None
    """Of all images; None: the cache had been off."""


@dataclass(frozen=True, slots=True)
class Uncomputed:
    """A part of the cost that the answer could not compute and has as it was."""

    model: str | None
    reason: str
    cost_micros: int


@dataclass(frozen=True, slots=True)
class WhatIfAnswer:
    """What was charged, and what would have been."""

    charged_micros: int
    cost_micros: int
    uncomputed: tuple[Uncomputed, ...]
    """The largest first, one for each model and reason."""


def parse_what_if(text: str, catalog: Catalog) -> WhatIf:
    """Reads `quality=low` or `cache=off`. Raises `ValueError` with the nearest valid one."""
    if text == CACHE_OFF:
        return WhatIf(None)
    qualities = sorted({name for model in catalog.models.values() for name in _qualities(model)})
    valid = [CACHE_OFF, *(_QUALITY + name for name in qualities)]
    if text not in valid:
        near = nearest(text, valid)
        hint = f"; the nearest valid one is '{near}'" if near else f"; valid are {', '.join(valid)}"
        raise ValueError(f"there is no what-if '{text[:64]}'{hint}")
    return WhatIf(text.removeprefix(_QUALITY))


def answer(question: WhatIf, rows: Iterable[Row], catalog: Catalog) -> WhatIfAnswer:
    """The answer for all rows together."""
    charged = cost = 0
    left: list[Uncomputed] = []
    for row in rows:
        charged += row.sums.cost_micros
        row_cost, uncomputed = answer_row(question, row, catalog)
        cost += row_cost
        left += uncomputed
    return WhatIfAnswer(charged, cost, uncomputed_parts(left))


def uncomputed_parts(of_rows: Iterable[Uncomputed]) -> tuple[Uncomputed, ...]:
    """Those of rows added up by model and reason, the largest first."""
    parts: dict[tuple[str | None, str], int] = {}
    for part in of_rows:
        group = part.model, part.reason
        parts[group] = parts.get(group, 0) + part.cost_micros
    # A presumed charge and its correction are in different rows, and cancel out.
    left = [
        Uncomputed(model, reason, micros)
        for (model, reason), micros in parts.items()
        if micros or reason == NO_ORIGINAL
    ]
    left.sort(key=lambda part: (-part.cost_micros, part.model or "", part.reason))
    return tuple(left)


def answer_row(question: WhatIf, row: Row, catalog: Catalog) -> tuple[int, tuple[Uncomputed, ...]]:
    """What one row would have cost in micro-dollars, and what of that could not be computed."""
    sums, model_id = row.sums, row.dimensions.get("model")
    if question.quality is None:
        without_cache = sums.cost_micros + sums.saved_micros
        is_known = sums.saved_micros or not sums.images_served
        return without_cache, () if is_known else (Uncomputed(model_id, NO_ORIGINAL, 0),)
    scaled = sums.costs.get("image_out", 0) + sums.costs.get(IMAGE, 0)
    reasons = {
        WAS_ESTIMATED: sums.costs.get(ESTIMATED, 0),
        NO_KINDS: sums.cost_micros - sum(sums.costs.values()),
    }
    found = _images_at(question.quality, row, catalog.models.get(model_id or ""))
    if isinstance(found, str):
        reasons[found] = scaled
        found = scaled
    uncomputed = tuple(
        Uncomputed(model_id, reason, micros) for reason, micros in reasons.items() if micros
    )
    return sums.cost_micros - scaled + found, uncomputed


def _images_at(quality: str, row: Row, model: Model | None) -> int | str:
    """The cost of a row's images at another quality, or why it is not known."""
    if model is None:
        return UNKNOWN_MODEL
    if model.billing is None:
        return NO_PRICE
    if quality not in _qualities(model):
        return OTHER_QUALITIES
    size, before = row.dimensions.get("size"), row.dimensions.get("quality")
    if before is None or (size is None and _needs_size(model.billing)):
        return UNKNOWN_IMAGE
    if isinstance(model.billing, ImageBilling):
        return _priced_at(quality, row.sums, model.billing, size=size, before=before)
    if model.billing.is_bound_only:
        return BOUND_ONLY
    return _tokens_at(quality, row.sums, model.billing, size=size, before=before)


def _needs_size(billing: TokenBilling | ImageBilling) -> bool:
    return isinstance(billing, TokenBilling) or "size" in billing.priced_by


def _priced_at(
    quality: str, sums: Sums, billing: ImageBilling, *, size: str | None, before: str
) -> int | str:
    """The totals have size and quality only: a price by anything else is not known."""
    old = billing.price_of({"size": size, "quality": before})
    new = billing.price_of({"size": size, "quality": quality})
    if not old or new is None:
        return UNKNOWN_IMAGE
    return ceil(sums.costs.get(IMAGE, 0) * Fraction(new) / Fraction(old))


def _tokens_at(
    quality: str, sums: Sums, billing: TokenBilling, *, size: str | None, before: str
) -> int | str:
    tokens, cost = sums.tokens.get("image_out", 0), sums.costs.get("image_out", 0)
    table = output_tokens(billing, size) if size and SIZE.fullmatch(size) else {}
    old, new = table.get(before), table.get(quality)
    if old is None or new is None:
        return UNKNOWN_IMAGE
    if tokens <= 0 or cost <= 0:
        return cost
    # The other tokens are partial images, which cost the same at each quality. Many of them may
    # have as many tokens as an image, so no more images are counted than were bought; except with
    # corrections, whose images are in the row of the presumed charge.
    images = tokens // old
    if sums.costs.get(ESTIMATED, 0) >= 0:
        images = min(images, sums.images_bought)
    return ceil(cost * Fraction(tokens + images * (new - old), tokens))


def _qualities(model: Model) -> frozenset[str]:
    """The qualities that the model has a price or a number of tokens of."""
    billing = model.billing
    if billing is None:
        return frozenset()
    if isinstance(billing, TokenBilling) and billing.output_tokens_formula is not None:
        return frozenset(billing.output_tokens_formula.grid)
    if isinstance(billing, ImageBilling):
        return frozenset(
            value for name, table in billing.levels() if name == "quality" for value in table
        )
    return frozenset(name for row in (billing.output_tokens or {}).values() for name in row)
