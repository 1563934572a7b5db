"""Line items: what a cost is made of. Pure.

A line item is a model and a kind of tokens, or a model, size and quality for a price per image.
Those of a row add up to its cost: what no kind explains is an item of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.billing.pricing import IMAGE, KINDS
from gateway.billing.record_amounts import OTHER, Sums

TOKENS: Final = "tokens"
IMAGES: Final = "images"

TOKEN_NAMES: Final[Mapping[str, str]] = {
    "text_in": "input_text_tokens",
    "cached_text_in": "input_cached_text_tokens",
    "image_in": "input_image_tokens",
    "cached_image_in": "input_cached_image_tokens",
    "text_out": "output_text_tokens",
    "image_out": "output_image_tokens",
    "svg_text_in": "svg_input_text_tokens",
    "svg_text_out": "svg_output_text_tokens",
}
"""Kinds of tokens as OpenAI's reports name them; others have their own name."""


@dataclass(frozen=True, slots=True)
class LineItem:
    """A part of a cost."""

    name: str
    """As in OpenAI's report of costs: `gpt-image-2, output_image_tokens`."""
    cost_micros: int
    """Micro-dollars; below zero if corrections exceed charges."""
    quantity: int | None = None
    """None if it is not known."""
    unit: str | None = None
    """`tokens` or `images`; None without a quantity."""
    kind: str | None = None
    """Of tokens, or `image`, or `estimated`; None for what no kind explains."""

    @property
    def meter(self) -> str:
        """What is counted, without the model."""
        if self.kind is None:
            return "cost without a kind"
        return TOKEN_NAMES.get(self.kind, self.kind).replace("_", " ")

    def __add__(self, other: LineItem) -> LineItem:
        """Both together, under the name of the first."""
        known = [quantity for quantity in (self.quantity, other.quantity) if quantity is not None]
        return LineItem(
            self.name,
            self.cost_micros + other.cost_micros,
            sum(known) if known else None,
            self.unit or other.unit,
            self.kind,
        )


def line_items(dimensions: Mapping[str, Any], sums: Sums) -> Iterator[LineItem]:
    """The items of a row with the dimensions `model`, `size` and `quality`."""
    model = dimensions.get("model") or OTHER
    for kind in sorted({*sums.costs, *sums.tokens}, key=_order):
        cost_micros = sums.costs.get(kind, 0)
        if kind == IMAGE:
            parts = (model, dimensions.get("size"), dimensions.get("quality"))
            name = ", ".join(filter(None, parts))
            yield LineItem(name, cost_micros, sums.images_bought, IMAGES, kind)
            continue
        name = f"{model}, {TOKEN_NAMES.get(kind, kind)}"
        quantity = sums.tokens.get(kind)
        unit = TOKENS if quantity is not None else None
        yield LineItem(name, cost_micros, quantity, unit, kind)
    rest = sums.cost_micros - sum(sums.costs.values())
    if rest:
        # Of records of older gateways, which have no cost by kind.
        yield LineItem(model, rest)


def _order(kind: str) -> tuple[bool, int, str]:
    """The known kinds first."""
    is_unknown = kind not in KINDS
    return is_unknown, 0 if is_unknown else KINDS.index(kind), kind
