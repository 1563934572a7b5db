"""How a row is billed: its prices, and the tokens of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveInt,
    Tag,
    model_validator,
)

from gateway.catalog.rows import Name, Price, Row, Size, require

PriceTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, Price], Field(min_length=1)]]
"""US dollars per image, by size and quality."""
TokenTable: TypeAlias = Mapping[Size, Annotated[Mapping[Name, PositiveInt], Field(min_length=1)]]
"""Output tokens per image, by size and quality."""


def _shape(value: object) -> str:
    return _TABLE if isinstance(value, Mapping) else _PRICE


_PRICE: Final = "one price"
_TABLE: Final = "prices by value"
SHAPES: Final = (_PRICE, _TABLE)
"""What pydantic puts into the path of a fault in `Prices`."""

_OnePrice: TypeAlias = Annotated[Price, Tag(_PRICE)]
_ByOne: TypeAlias = Annotated[
    _OnePrice | Annotated[Mapping[Name, Price], Field(min_length=1), Tag(_TABLE)],
    Discriminator(_shape),
]
_ByTwo: TypeAlias = Annotated[
    _OnePrice | Annotated[Mapping[Name, _ByOne], Field(min_length=1), Tag(_TABLE)],
    Discriminator(_shape),
]
Prices: TypeAlias = Annotated[
    _OnePrice | Annotated[Mapping[Name, _ByTwo], Field(min_length=1), Tag(_TABLE)],
    Discriminator(_shape),
]
"""US dollars per image: one price, or by the values of up to three parameters."""


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
    headroom_percent: NonNegativeInt = 0
    """Added where the formula is no more than a bound of what was observed."""


class TextPrices(Row):
    """US dollars per million tokens of a text model, which writes SVG images."""

    text_in: Price
    text_out: Price
    """Also of reasoning tokens."""


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
    svg_max_tokens: Annotated[Mapping[Name, PositiveInt], Field(min_length=1)] | None = None
    """The most output tokens, with reasoning, of the text model that writes an SVG image, by
    reasoning effort."""
    svg_input_tokens: PositiveInt | None = None
    """The most input tokens of that model besides the prompt."""

    @cached_property
    def prepared(self) -> dict[Any, Any]:
        """What `billing` has computed of this row. It never changes, so that is done only once."""
        # Not a private attribute: pydantic reads one in microseconds, and each request reads this.
        return {}

    @property
    def is_bound_only(self) -> bool:
        """Whether the formula only bounds the tokens, and does not reproduce them."""
        formula = self.output_tokens_formula
        return formula is not None and formula.headroom_percent > 0

    @model_validator(mode="after")
    def _has_one_source_of_tokens(self) -> Self:
        sources = (self.output_tokens, self.output_tokens_formula)
        require(sources.count(None) == 1, "needs one of output_tokens, output_tokens_formula")
        fits = self.output_tokens is None or self.dearest_size in self.output_tokens
        require(fits, "dearest_size has no row in output_tokens")
        both = (self.svg_max_tokens, self.svg_input_tokens)
        require(both.count(None) != 1, "svg_max_tokens and svg_input_tokens need each other")
        return self


class ImageBilling(Row):
    """Billed per image, by the values that the request has for the parameters of `priced_by`."""

    by: Literal["image"]
    priced_by: Annotated[tuple[Name, ...], Field(max_length=3, strict=False)] = ("size", "quality")
    """One for each level of `usd_per_image`; empty for one price of all images."""
    usd_per_image: Prices

    def price_of(self, values: Mapping[str, str | None]) -> Decimal | None:
        """US dollars of an image with these values; None if the table does not have them."""
        found: Any = self.usd_per_image
        for name in self.priced_by:
            found = found.get(values.get(name) or "") if isinstance(found, Mapping) else None
        return found if isinstance(found, Decimal) else None

    def levels(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Each parameter of `priced_by` with every table of its values.

        Raises `ValueError` if the table has more or fewer levels.
        """
        tables: list[Any] = [self.usd_per_image]
        for name in self.priced_by:
            for table in tables:
                if not isinstance(table, Mapping):
                    raise ValueError(f"usd_per_image has no prices by '{name}', as in priced_by")
                yield name, table
            tables = [below for table in tables for below in table.values()]
        if not all(isinstance(price, Decimal) for price in tables):
            named = " and ".join(f"'{name}'" for name in self.priced_by) or "nothing"
            raise ValueError(f"usd_per_image has more levels than priced_by, which names {named}")


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
