"""How a row is billed: its prices, and the tokens of an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr, model_validator

from gateway.catalog.rows import Name, Price, Row, Size, require

PriceTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, Price], Field(min_length=1)]]
"""US dollars per image, by size and quality."""
TokenTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]]
"""Output tokens per image, by size and quality."""


class TokenPrices(Row):
    """US dollars per million tokens, which is micro-dollars per token."""

    text_in: Price
    image_in: Price
    image_out: Price
    text_out: Price | None = None
    """None for a model without such tokens. If upstream reports some, they cost `image_out`."""
    cached_text_in: Price | None = None
    """Of input tokens that upstream had in its own cache. None: they cost `text_in`."""
    cached_image_in: Price | None = None
    """The same for `image_in`."""

    @model_validator(mode="after")
    def _cached_is_not_dearer(self) -> Self:
        # An estimate takes all input at the full price, and must be an upper bound.
        for kind in ("text_in", "image_in"):
            cached, full = getattr(self, f"cached_{kind}"), getattr(self, kind)
            require(cached is None or cached <= full, f"cached_{kind} is dearer than {kind}")
        return self


class TokenFormula(Row):
    """Output tokens of an image of any size: `docs/reference/images-api.md#output-tokens`."""

    grid: Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]
    pixels_offset: NonNegativeInt
    pixels_divisor: PositiveInt


class TokenBilling(Row):
    """Billed by the usage of the answer. The tables and the formula are for the estimate."""

    by: Literal["tokens"]
    usd_per_million_tokens: TokenPrices
    output_tokens: TokenTable | None = None
    output_tokens_formula: TokenFormula | None = None
    partial_image_tokens: NonNegativeInt
    dearest_size: Size
    """The size that `auto` is reserved as."""
    usd_per_image: PriceTable = Field(default_factory=dict)
    _prepared: dict[Any, Any] = PrivateAttr(default_factory=dict)

    @property
    def prepared(self) -> dict[Any, Any]:
        """What `billing` has computed of this row. It never changes, so that is done only once."""
        return self._prepared

    @model_validator(mode="after")
    def _has_one_source_of_tokens(self) -> Self:
        sources = (self.output_tokens, self.output_tokens_formula)
        require(sources.count(None) == 1, "needs one of output_tokens, output_tokens_formula")
        fits = self.output_tokens is None or self.dearest_size in self.output_tokens
        require(fits, "dearest_size has no row in output_tokens")
        return self


class ImageBilling(Row):
    """Billed per image, by the size and quality of the request."""

    by: Literal["image"]
    usd_per_image: Annotated[PriceTable, Field(min_length=1)]


Billing: TypeAlias = Annotated[TokenBilling | ImageBilling, Field(discriminator="by")]


class AssumedPrice(Row):
    """What an image of a model without a price is taken to cost, at the worst."""

    usd_per_image: Price

    @model_validator(mode="after")
    def _is_above_zero(self) -> Self:
        require(self.usd_per_image > 0, "usd_per_image must be above 0: nothing is bought unpaid")
        return self


def assumed_price(value: object) -> object:
    if value == "deny" or isinstance(value, Mapping | AssumedPrice):
        return None if value == "deny" else value
    raise ValueError("""write 'deny', or a worst case such as {usd_per_image: "0.70"}""")
